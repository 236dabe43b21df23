"""Dense beside pruned, from the same noise: the picture that says more than the metrics."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

from raysense import plugins
from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.evaluation.cache import TensorCache
from raysense.evaluation.evaluator import Evaluator
from raysense.evaluation.inputs import prompts_of, refuse_other, use_code
from raysense.hashing import content_key
from raysense.metrics.spec import base_of
from raysense.pipelines.sample import first_seed
from raysense.prompts.sets import Prompt, PromptSets
from raysense.pruning.allocation_rules import uniform
from raysense.results.run import Run
from raysense.store.disk import write_file
from raysense.strategies.proposers import scaled
from raysense.study import Study

logger = logging.getLogger(__name__)

LABEL_HEIGHT = 22
SMALLEST_TILE = 96
LARGEST_THUMBNAIL = 256
"""Pixels, the longer side; larger images are made smaller for the page."""

MILDER = (0.5, 0.8)
"""Shares of the winner's zeros shown beside it."""

BEYOND = (0.0, 0.5, 1.0)
"""Which of the rows over the cliff are shown: from the nearest to the farthest, where a person sees the damage."""

FARTHER = 1.35
"""Of the winner's zeros, painted last though nobody measured it: a search ends where a person sees nothing yet."""

ONE_FAMILY = ("solver", "joint")
"""Strategies that are shown as one: the joint search goes on from the solver's allocations."""


@dataclass(frozen=True)
class Strip:
    """One row of the page's pictures.

    Attributes:
        label: The allocation in words.
        note: What was measured of it.
        kind: How the page marks the row.
        prompts: One a picture.
        pixels: uint8 (n, height, width, 3).
    """

    label: str
    note: str
    kind: Literal["dense", "inside", "winner", "outside", "compared"]
    prompts: tuple[str, ...]
    pixels: npt.NDArray[np.uint8]


def strips(
    run: Run, candidates: pd.DataFrame, count: int, paint: bool, tell: Callable[[str], None] | None = None
) -> list[Strip]:
    """Dense, then the winner's family from mild to over the cliff, then one ratio for all at the winner's sparsity.

    Everything is painted once, by the real pipeline from the stored allocations, with the prompts and the noise
    of the validation rung, and kept in the study's cache.

    Args:
        run: The study.
        candidates: `Run.candidates`.
        count: Prompts.
        paint: Whether what is not in the cache may be painted now; otherwise its absence gives no strips.
        tell: Called with a line before each row that is painted.

    Raises:
        RaysenseError: The pipeline or the prompts cannot be had.
    """
    chosen = choose_rows(candidates, (run.summary or {}).get("allocation"))
    if not chosen:
        return []
    prompts = held_out(prompts_of(run.record, run.study, run.disk), run.study, count)
    painter = Painter(run, prompts)
    found = []
    for number, row in enumerate(chosen, 1):
        painter.tell = partial(tell, f"Painting pictures: {number} of {len(chosen)} …") if tell else None
        allocation = run.allocation(row["allocation"])
        pixels = painter.pixels(allocation, paint)
        if pixels is None:
            return []
        found.append(_strip(row, prompts, pixels, run.study))
        if row["kind"] == "winner" and row["strategy"] != "uniform":
            same = _uniform_like(run, painter, allocation, paint)
            if same is not None:
                label = f"{row['sparsity_components']:.0%}, one ratio for all layers"
                note = "same sparsity as the winner, shared out evenly"
                found += _compared(painter, same, paint, label, note)
    won = [row for row in chosen if row["kind"] == "winner"]
    return found + [strip for row in won for strip in _farther(run, painter, row, paint)]


def _farther(run: Run, painter: Painter, winner: dict[str, Any], paint: bool) -> list[Strip]:
    """The winner's proportions at `FARTHER` times its zeros; nothing where that may not be painted."""
    allocation = run.allocation(winner["allocation"])
    zeros = run.grid.zeros(allocation)
    if not zeros:
        return []
    on = scaled(run.grid, allocation, int(FARTHER * zeros))
    share = winner["sparsity_components"] * run.grid.zeros(on) / zeros
    note = "the winner’s proportions carried on; not measured"
    return _compared(painter, on, paint, f"{share:.0%} removed", note)


def _compared(painter: Painter, allocation: Allocation, paint: bool, label: str, note: str) -> list[Strip]:
    """A row that was not judged; none where it may not be painted."""
    pixels = painter.pixels(allocation, paint)
    texts = tuple(prompt.text for prompt in painter.prompts)
    return [] if pixels is None else [Strip(label, note, "compared", texts, pixels)]


def choose_rows(candidates: pd.DataFrame, winner: str | None) -> list[dict[str, Any]]:
    """Which stored allocations to show, least sparse first: dense, milder ones, the winner, ones over the cliff.

    Each is a row of `candidates` with its ``kind``. Without a winner, the strategy with the sparsest feasible
    allocation is shown, or the one that was tried most.
    """
    if candidates.empty:
        return []
    preference = {"validation": 0, "score": 1}
    ranked = candidates.assign(rank=[preference.get(rung, 2) for rung in candidates["rung"]]).sort_values(
        ["zeros", "rank"]
    )
    once = ranked.drop_duplicates("allocation")
    dense = once[once["strategy"] == "dense"].head(1)
    pruned = once[once["strategy"] != "dense"]
    if pruned.empty:
        return []
    won = pruned[pruned["allocation"] == winner]
    feasible = pruned[pruned["feasible"]]
    if len(won):
        strategy, top = won["strategy"].iloc[0], float(won["zeros"].iloc[0])
    elif len(feasible):
        strategy, top = feasible["strategy"].iloc[-1], float(feasible["zeros"].iloc[-1])
    else:
        strategy, top = pruned["strategy"].mode().iloc[0], 0.0
    family = list(ONE_FAMILY) if strategy in ONE_FAMILY else [strategy]
    own = pruned[pruned["strategy"].isin(family)]
    milder = own[own["feasible"] & (own["zeros"] < top)]
    near = [int((milder["zeros"] - share * top).abs().to_numpy().argmin()) for share in MILDER if len(milder)]
    over = own[~own["feasible"] & (own["zeros"] > top)].drop_duplicates("zeros")
    beyond = over.iloc[sorted({round(share * (len(over) - 1)) for share in BEYOND if len(over)})]
    here = own[own["zeros"] == top] if not len(won) else won
    shown = pd.concat([milder.iloc[list(dict.fromkeys(near))], here.head(1), beyond]).sort_values("zeros")
    records = pd.concat([dense, shown]).to_dict("records")
    return [{**{str(k): v for k, v in row.items()}, "kind": _kind(row, winner)} for row in records]


def _kind(row: dict[Any, Any], winner: str | None) -> str:
    if row["strategy"] == "dense":
        return "dense"
    if row["allocation"] == winner:
        return "winner"
    return "inside" if row["feasible"] else "outside"


def in_words(measure: str, study: Study) -> str:
    """A measure's name as a person reads it: ``clip_score_drop`` → CLIP score drop."""
    return study.spec_of(measure).label + measure.removeprefix(base_of(measure)).replace("_", " ")


def why_outside(row: Mapping[str, Any], study: Study) -> str:
    """The bounds that a candidate's interval does not clear: ``Fréchet distance rise up to 61.2, bound ≤ 50``."""
    found = []
    for bound in study.constraints.bounds():
        low, high = row.get(f"{bound.measure}_ci_low"), row.get(f"{bound.measure}_ci_high")
        if low is None or high is None or not bound.margin(low, high) < 0:  # NaN: not measured
            continue
        worst, words, sign = (high, "up to", "≤") if bound.is_upper else (low, "down to", "≥")
        found.append(f"{in_words(bound.measure, study)} {words} {worst:.3g}, bound {sign} {bound.limit:g}")
    return "; ".join(found)


def _strip(
    row: dict[str, Any], prompts: tuple[Prompt, ...], pixels: npt.NDArray[np.uint8], study: Study
) -> Strip:
    share = f"{row['sparsity_components']:.0%}"
    where = "held-out prompts" if row["rung"] == "validation" else "the search's prompts"
    label, note = {
        "dense": ("dense", "nothing removed"),
        "winner": (f"{share} removed", f"the winner: inside the budget on {where}"),
        "inside": (f"{share} removed", f"inside the budget on {where}"),
        "outside": (
            f"{share} removed",
            f"images collapsed on {where}"
            if row["collapsed"]
            else why_outside(row, study) or f"outside the budget on {where}",
        ),
    }[row["kind"]]
    return Strip(label, note, row["kind"], tuple(prompt.text for prompt in prompts), pixels)


def _uniform_like(run: Run, painter: Painter, winner: Allocation, paint: bool) -> Allocation | None:
    """One ratio for all layers with the winner's zeros; needs the pipeline's inventory, so only where painting may."""
    zeros = run.grid.zeros(winner)
    key = content_key("uniform", run.record["signature"], zeros)
    stored = painter.cache.get(key)
    if stored is None:
        if not paint:
            return None
        evaluator = painter.evaluator()
        levels = uniform(evaluator.inventory, evaluator.grid, zeros)
        values = torch.tensor([levels[layer] for layer in run.grid.layers], dtype=torch.int64)
        painter.cache.put(key, {"levels": values})
        return levels
    return Allocation(dict(zip(run.grid.layers, stored["levels"].tolist(), strict=True)))


class Painter:
    """Pictures of a study's allocations, from its cache or from the pipeline, which is loaded when first needed."""

    def __init__(self, run: Run, prompts: tuple[Prompt, ...]) -> None:
        self.cache = TensorCache(run.disk)
        self._run, self.prompts = run, prompts
        self._evaluator: Evaluator | None = None
        self.tell: Callable[[], None] | None = None

    def evaluator(self) -> Evaluator:
        """Holds the pipeline, from the first call on."""
        if self._evaluator is None:
            self._evaluator = evaluator_of(self._run)
        return self._evaluator

    def pixels(self, allocation: Allocation, paint: bool) -> npt.NDArray[np.uint8] | None:
        """uint8 (n, height, width, 3), or None where they are not in the cache and may not be painted."""
        seeds = noise_of_pictures(self._run.study, len(self.prompts))
        ids = [prompt.id for prompt in self.prompts]
        key = content_key(
            "picture", self._run.record["signature"], allocation.key, ids, seeds, LARGEST_THUMBNAIL
        )
        stored = self.cache.get(key)
        if stored is None:
            if not paint:
                return None
            if self.tell is not None:
                self.tell()
            images = self.evaluator().sample(allocation, self.prompts, seeds)
            stored = {"pixels": thumbnails(images)}
            self.cache.put(key, stored)
        pixels: npt.NDArray[np.uint8] = stored["pixels"].numpy()
        return pixels


def held_out(prompts: PromptSets, study: Study, count: int) -> tuple[Prompt, ...]:
    """The first so many of the prompts that finalists are tested on."""
    return prompts.validation[study.rungs.validation.skip :][:count]


def noise_of_pictures(study: Study, count: int) -> list[int]:
    """Seeds of pictures that are shown: those of the first images of a rung."""
    return [first_seed(study.seed)] * count


def thumbnails(images: Tensor) -> Tensor:
    """Images for a page: uint8 (n, height, width, 3), at most `LARGEST_THUMBNAIL` pixels on the longer side.

    Args:
        images: Float (n, 3, height, width) in [0, 1]; what is not finite is shown black.
    """
    images = images.nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)
    longest = max(images.shape[-2:])
    if longest > LARGEST_THUMBNAIL:
        factor = LARGEST_THUMBNAIL / longest
        images = interpolate(images, scale_factor=factor, mode="bilinear", antialias=True)
    return (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).contiguous()


def can_paint(study: Study) -> bool:
    """Whether this machine has what the study's evaluators need: a GPU, if they have one."""
    return not study.cluster.gpus_per_evaluator or torch.cuda.is_available()


def on_this_machine(study: Study) -> Study:
    """The study with its evaluator on the CPU where this machine has no GPU."""
    if can_paint(study):
        return study
    return study.model_copy(update={"cluster": study.cluster.model_copy(update={"gpus_per_evaluator": 0.0})})


def evaluator_of(run: Run) -> Evaluator:
    """An evaluator on this machine of what a stored study measured.

    Raises:
        RaysenseError: The pipeline, or the code that chose weights, is another one than the study measured.
    """
    if code := plugins.code_of(run.study):
        logger.warning("this runs code that the study names: %s", ", ".join(code))
    use_code(run.disk)
    refuse_other(run.record, run.study, run.uri)
    prompts = prompts_of(run.record, run.study, run.disk)
    return Evaluator(on_this_machine(run.study), run.uri, prompts=prompts)


def paint_comparison(folder: Path, out: Path, count: int = 12) -> None:
    """Write a PNG with three rows: dense, the study's winner, and one ratio for all layers at the same sparsity.

    The prompts are held-out ones; all rows share prompts and noise.

    Args:
        folder: A finished study's folder or address.
        out: The PNG to write.
        count: Images a row.

    Raises:
        RaysenseError: The folder holds no finished study, or the study has no winner.
    """
    run = Run(str(folder))
    summary = run.summary
    if summary is None:
        raise RaysenseError(f"`{folder}` holds no finished study (no summary.json); run it first")
    if not summary["feasible"]:
        raise RaysenseError(f"`{folder}`: the study has no winner to paint; loosen its constraints")
    evaluator = evaluator_of(run)
    grid = evaluator.grid
    winner = Allocation(summary["levels"])
    same = uniform(evaluator.inventory, grid, grid.zeros(winner))
    share = f"{summary['sparsity_components']:.0%}"
    rows = {
        "dense": Allocation(),
        f"raysense: {share} of the parameters removed": winner,
        f"one ratio for all layers: {share} removed": same,
    }
    prompts = held_out(evaluator.prompts, run.study, count)
    seeds = noise_of_pictures(run.study, len(prompts))
    painted = [evaluator.sample(allocation, prompts, seeds) for allocation in rows.values()]
    stream = io.BytesIO()
    picture(painted, list(rows)).save(stream, "PNG")
    write_file(out, stream.getvalue())


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
