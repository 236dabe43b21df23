"""Measure a bed: ``python -m training.judge --emoji DIR [--bed NAME]``. Prints and writes one JSON object.

Everything is taken on held-out combinations, with three seeds: does the scorer know real images, does the pipeline
paint what the caption says, how far are its images from real ones, is there weight that does nothing, and does it
degrade under pruning like large pipelines do, with a cliff.
``docs/explanation/bundled-pipeline.md`` quotes the result; the model card carries it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from raysense.allocation import Allocation, LevelGrid
from raysense.metrics.features import ClipFeatures, EfficientNetLite0Features
from raysense.metrics.gaussians import frechet_distance
from raysense.pipelines.load import load_pipeline, modules_of
from raysense.pipelines.sample import call_pipeline
from raysense.prompts.sets import Prompt
from raysense.pruning.layers import take_inventory
from raysense.pruning.masks import Masker
from raysense.study import Sampling

from .beds import BEDS, Bed
from .dead_weight import dead_weight
from .stages import assembled
from .world import Painter, Scene, attributes, objects, scenes

SEEDS = (0, 1, 2)
CHOICES = 100
FRECHET_SIZES = (224, 96)
"""The network's own input size, as FID resizes to Inception's; and the cheaper one of the bundled studies."""

Paint = Callable[[Sequence[Scene], int], Tensor]
"""(scenes, seed) -> images."""


class Texts:
    """Features of every caption of the world, made once."""

    def __init__(self, scorer: ClipFeatures) -> None:
        captions = [scene.caption for held_out in (False, True) for scene in scenes(held_out)]
        self._row = {caption: row for row, caption in enumerate(captions)}
        parts = [scorer.texts(captions[i : i + 512]) for i in range(0, len(captions), 512)]
        self._features = torch.cat(parts)

    def of(self, captions: Sequence[str]) -> Tensor:
        """(len(captions), d) features."""
        return self._features[[self._row[caption] for caption in captions]]


def rivals(scene: Scene, rng: np.random.Generator) -> dict[str, list[str]]:
    """The right caption first, then 99 that differ in the object only, or in the attributes only."""
    names = [name for name in objects() if name != scene.object]
    rest = [a for a in attributes() if a != (scene.size, scene.sky, scene.floor)]
    return {
        "object": [scene.caption]
        + [
            Scene(names[i], scene.size, scene.sky, scene.floor).caption
            for i in rng.permutation(len(names))[: CHOICES - 1]
        ],
        "attributes": [scene.caption]
        + [Scene(scene.object, *rest[i]).caption for i in rng.permutation(len(rest))[: CHOICES - 1]],
    }


def retrieval(
    scorer: ClipFeatures, texts: Texts, images: Tensor, chosen: Sequence[Scene]
) -> dict[str, float]:
    """R@1: how often the right caption is the nearest of 100, by what the wrong ones differ in."""
    rng = np.random.default_rng(5)
    seen = scorer.images(images)
    right: dict[str, list[bool]] = {"object": [], "attributes": []}
    for feature, scene in zip(seen, chosen, strict=True):
        for kind, captions in rivals(scene, rng).items():
            right[kind].append(int((texts.of(captions) @ feature).argmax()) == 0)
    return {kind: float(np.mean(hits)) for kind, hits in right.items()}


def real_images(painter: Painter, chosen: Sequence[Scene], seed: int) -> Tensor:
    """Paint scenes: float (n, 3, 32, 32) in [0, 1]."""
    painted = painter.batch(list(chosen), np.random.default_rng([seed, 77]))
    return torch.from_numpy(painted).permute(0, 3, 1, 2).float() / 255


def generated(pipeline: DiffusionPipeline, sampling: Sampling, chosen: Sequence[Scene], seed: int) -> Tensor:
    """Sample one image a scene."""
    prompts = [Prompt(scene.caption, scene.caption) for scene in chosen]
    with torch.inference_mode():
        parts = [
            call_pipeline(pipeline, prompts[i : i + 64], [seed] * len(prompts[i : i + 64]), sampling)
            for i in range(0, len(prompts), 64)
        ]
    return torch.cat(parts)


def over_seeds(results: list[dict[str, float]]) -> dict[str, Any]:
    """Mean and each seed's value."""
    return {
        kind: {"mean": float(np.mean([r[kind] for r in results])), "seeds": [r[kind] for r in results]}
        for kind in results[0]
    }


def degradation(
    pipeline: DiffusionPipeline, found: Callable[[int], dict[str, float]], component: str
) -> dict[str, float]:
    """Object R@1 under uniform magnitude pruning of one component, relative to dense, by sparsity."""
    inventory = take_inventory(pipeline.components, select=[component])
    grid = LevelGrid(inventory.sizes, 1.0)
    masker = Masker(modules_of(pipeline), inventory, grid)
    hits = {}
    for percent in range(0, 100, 5):
        masker.apply(grid.uniform(percent / 100) if percent else Allocation())
        hits[percent] = float(np.mean([found(seed)["object"] for seed in SEEDS]))
        print(f"{component} at {percent} %: object R@1 {hits[percent]:.3f}", flush=True)
    masker.restore()
    return {str(percent): value / hits[0] for percent, value in hits.items()}


def paint_grid(paint: Paint, chosen: Sequence[Scene], file: Path) -> dict[str, float]:
    """64 images as a picture, and how long they took."""
    paint(chosen[:8], 0)
    began = time.perf_counter()
    images = paint(chosen, 0)
    seconds = time.perf_counter() - began
    tiles = images.reshape(8, 8, 3, 32, 32).permute(0, 3, 1, 4, 2).reshape(256, 256, 3)
    Image.fromarray((tiles * 255).round().byte().numpy()).resize((768, 768), 0).save(file)
    return {"seconds_for_64": seconds, "threads": torch.get_num_threads()}


def frechet_to_real(painter: Painter, paint: Paint, chosen: Sequence[Scene]) -> dict[str, Any]:
    """Fréchet distances to real images of generated ones, of other real ones, and of noisy real ones."""
    real, other = (real_images(painter, chosen, seed) for seed in (10, 11))
    noise = torch.randn(other.shape, generator=torch.Generator().manual_seed(0))
    compared = {
        "real_again": other,
        "generated": paint(chosen, 0),
        "noisy": (other + 0.15 * noise).clamp(0, 1),
    }
    result: dict[str, Any] = {}
    for size in FRECHET_SIZES:
        network = EfficientNetLite0Features(size)
        wanted = network.images(real)
        distances = {k: frechet_distance(network.images(images), wanted) for k, images in compared.items()}
        result[network.name] = {"n": len(chosen)} | distances
    return result


def fingerprint(pipeline: DiffusionPipeline) -> str:
    """Of a pipeline's weights: figures of others are not these."""
    digest = hashlib.sha256()
    for name, part in sorted(modules_of(pipeline).items()):
        for key, weight in sorted(part.state_dict().items()):
            digest.update(f"{name}.{key}".encode())
            digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class Report:
    """What has been measured, kept on disk at once: an interrupted call goes on.

    Args:
        file: Where; figures of the same subject that are there already are not measured again.
        subject: What the figures are of.
    """

    def __init__(self, file: Path, subject: dict[str, Any]) -> None:
        self._file = file
        earlier = json.loads(file.read_text()) if file.exists() else {}
        self.result = earlier if {key: earlier.get(key) for key in subject} == subject else dict(subject)

    def measure(self, name: str, how: Callable[[], Any]) -> None:
        """Measure unless an earlier call has."""
        if name not in self.result:
            self.result[name] = how()
            self._file.write_text(json.dumps(self.result, indent=2) + "\n")
        print(f"{name}: {json.dumps(self.result[name])}", flush=True)


def judge(bed: Bed, pipeline: DiffusionPipeline, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one bed."""
    painter = Painter(args.emoji / "img/google/64")
    pool = scenes(held_out=True)
    order = np.random.default_rng(3).permutation(len(pool))
    chosen, few = ([pool[i] for i in order[:count]] for count in (args.scenes, args.pruned_scenes))
    scorer = ClipFeatures(f"local-dir:{files('raysense.bundled') / 'scorer'}")
    texts = Texts(scorer)
    components = list(bed.parts(bed.tokenizer()))
    subject = {
        "bed": bed.name,
        "weights": fingerprint(pipeline),
        "scenes": len(chosen),
        "seeds": len(SEEDS),
        "steps": bed.sampling.steps,
        "guidance": bed.sampling.guidance,
    }
    report = Report(args.out / f"judged-{bed.name}.json", subject)

    paint = partial(generated, pipeline, bed.sampling)

    def found(picture: Paint, asked: Sequence[Scene], seed: int) -> dict[str, float]:
        return retrieval(scorer, texts, picture(asked, seed), asked)

    report.measure(
        "real", lambda: over_seeds([found(partial(real_images, painter), chosen, s) for s in SEEDS])
    )
    report.measure("dense", lambda: over_seeds([found(paint, chosen, seed) for seed in SEEDS]))
    grid = args.out / f"grid-{bed.name}.png"
    report.measure("speed", lambda: paint_grid(paint, [pool[i] for i in order[-64:]], grid))
    prompts = [Prompt(pool[i].caption, pool[i].caption) for i in order[-args.dead_weight_images :]]
    network = EfficientNetLite0Features(96)
    report.measure(
        "dead_weight", lambda: dead_weight(pipeline, components, prompts, network, bed.sampling).as_json()
    )
    if args.images:
        many = [pool[i] for i in order[: args.images]]
        report.measure("frechet_to_real", lambda: frechet_to_real(painter, paint, many))
    if few:
        report.measure("pruned_scenes", lambda: len(few))
        for name in components:
            measured = partial(degradation, pipeline, partial(found, paint, few), name)
            report.measure(f"degradation_{name}", measured)
    return report.result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--emoji", type=Path, required=True, help="unpacked npm package emoji-datasource-google"
    )
    parser.add_argument(
        "--bed", default="bundled", choices=BEDS, help="which pipeline (default: %(default)s)"
    )
    parser.add_argument(
        "--unfinished",
        action="store_true",
        help="judge the last checkpoint under --out, not what is exported",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("training/runs"), help="where the JSON and the grid go"
    )
    parser.add_argument("--scenes", type=int, default=300, help="held-out scenes a seed")
    parser.add_argument(
        "--images", type=int, default=2000, help="images behind the Fréchet distances; 0: skip"
    )
    parser.add_argument("--pruned-scenes", type=int, default=100, help="scenes a seed under pruning; 0: skip")
    parser.add_argument("--dead-weight-images", type=int, default=32, help="images behind each loss")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    bed = BEDS[args.bed]
    pipeline = assembled(bed, args.out) if args.unfinished else load_pipeline(bed.name)
    pipeline.set_progress_bar_config(disable=True)
    print(json.dumps(judge(bed, pipeline, args)))


if __name__ == "__main__":
    main()
