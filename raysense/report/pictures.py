"""Dense beside pruned, from the same noise: the picture that says more than the metrics."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.evaluation.calibration import Calibration
from raysense.evaluation.engine import inventory_and_grid
from raysense.pipelines.load import load_pipeline
from raysense.pipelines.prompts import load_prompts
from raysense.pipelines.sample import call_pipeline
from raysense.pruning.allocation import Allocation
from raysense.pruning.priors import uniform
from raysense.store.disk import Disk
from raysense.store.store import Store
from raysense.study import parse

LABEL_HEIGHT = 22
SMALLEST_TILE = 96


def paint_comparison(run: Path, out: Path, count: int = 12) -> None:
    """Write a PNG with three rows: dense, the study's winner, and one ratio for all layers at the same sparsity.

    The prompts are held-out ones; all rows share prompts and noise.

    Args:
        run: A finished study's folder.
        out: The PNG to write.
        count: Images a row.

    Raises:
        RaysenseError: The folder holds no finished study, or the study has no winner.
    """
    try:
        summary = json.loads((run / "summary.json").read_text())
    except (OSError, ValueError):
        raise RaysenseError(
            f"`{run}` holds no finished study (no readable summary.json); run it first"
        ) from None
    if not summary["feasible"]:
        raise RaysenseError(f"`{run}`: the study has no winner to paint; loosen its constraints")
    definition = Store.open(str(run)).study
    assert definition is not None
    study = parse(definition["definition"])
    pipeline = load_pipeline(study.pipeline, revision=study.revision, dtype=study.dtype)
    inventory, grid = inventory_and_grid(study, pipeline.components)
    prompt_sets = load_prompts(study.prompts)
    pruner = Calibration(study, pipeline, inventory, grid, prompt_sets, Disk(str(run))).pruner()
    winner = Allocation(summary["levels"])
    same = uniform(inventory, grid, grid.zeros(winner))
    share = f"{summary['sparsity_components']:.0%}"
    rows = {
        "dense": Allocation(),
        f"raysense: {share} of the parameters removed": winner,
        f"one ratio for all layers: {share} removed": same,
    }
    prompts = prompt_sets.validation[:count]
    painted = []
    for allocation in rows.values():
        pruner.apply(allocation)
        with torch.inference_mode():
            painted.append(call_pipeline(pipeline, prompts, [0] * len(prompts), study.sampling))
    picture(painted, list(rows)).save(out)


def picture(rows: list[Tensor], labels: list[str]) -> Image.Image:
    """Rows of images, each under its label.

    Args:
        rows: Float tensors (n, 3, h, w) in [0, 1], all of one shape.
        labels: One a row.
    """
    count, _, height, width = rows[0].shape
    scale = max(1, -(-SMALLEST_TILE // width))
    tile_w, tile_h = width * scale, height * scale
    canvas = Image.new("RGB", (count * tile_w, len(rows) * (tile_h + LABEL_HEIGHT)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    for number, (images, label) in enumerate(zip(rows, labels, strict=True)):
        top = number * (tile_h + LABEL_HEIGHT)
        draw.text((4, top + 2), label, fill="black", font=font)
        strip = images.clamp(0, 1).nan_to_num(0).permute(2, 0, 3, 1).reshape(height, count * width, 3)
        tiles = Image.fromarray((strip * 255).round().byte().numpy())
        enlarged = tiles.resize((count * tile_w, tile_h), Image.Resampling.NEAREST)
        canvas.paste(enlarged, (0, top + LABEL_HEIGHT))
    return canvas
