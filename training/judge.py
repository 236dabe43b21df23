"""Measure the bundled models: ``python -m training.judge --emoji DIR``. Prints and writes one JSON object.

Everything is taken on held-out combinations, with three seeds: does the scorer know real images, does the pipeline
paint what the caption says, how far are its images from real ones, and does it degrade under pruning like large
pipelines do, with a cliff. ``docs/bundled-pipeline.md`` quotes the result; the model card carries it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from raysense.metrics.features import ClipFeatures, EfficientNetLite0Features
from raysense.metrics.frechet import frechet_distance
from raysense.pipelines.load import load_pipeline, modules_of
from raysense.pipelines.prompts import Prompt
from raysense.pipelines.sample import call_pipeline
from raysense.pruning.allocation import Allocation, LevelGrid
from raysense.pruning.layers import take_inventory
from raysense.pruning.masks import Masker
from raysense.study import Sampling

from .world import Painter, Scene, attributes, objects, scenes

SEEDS = (0, 1, 2)
CHOICES = 100
SAMPLING = Sampling()
FRECHET_SIZES = (224, 96)
"""The network's own input size, as FID resizes to Inception's; and the cheaper one of the bundled studies."""


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


def generated(pipeline: DiffusionPipeline, chosen: Sequence[Scene], seed: int) -> Tensor:
    """Sample one image a scene with the default settings."""
    prompts = [Prompt(scene.caption, scene.caption) for scene in chosen]
    with torch.inference_mode():
        parts = [
            call_pipeline(pipeline, prompts[i : i + 64], [seed] * len(prompts[i : i + 64]), SAMPLING)
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
    pipeline: DiffusionPipeline, scorer: ClipFeatures, texts: Texts, chosen: Sequence[Scene], component: str
) -> dict[str, float]:
    """Object R@1 under uniform magnitude pruning of one component, relative to dense, by sparsity."""
    inventory = take_inventory(pipeline.components, select=[component])
    grid = LevelGrid(inventory.sizes, 1.0)
    masker = Masker(modules_of(pipeline), inventory, grid)
    hits = {}
    for percent in range(0, 100, 5):
        masker.apply(grid.uniform(percent / 100) if percent else Allocation())
        found = [
            retrieval(scorer, texts, generated(pipeline, chosen, seed), chosen)["object"] for seed in SEEDS
        ]
        hits[percent] = float(np.mean(found))
        print(f"{component} at {percent} %: object R@1 {hits[percent]:.3f}", flush=True)
    masker.restore()
    return {str(percent): value / hits[0] for percent, value in hits.items()}


def paint_grid(pipeline: DiffusionPipeline, chosen: Sequence[Scene], file: Path) -> dict[str, float]:
    """64 images as a picture, and how long they took."""
    generated(pipeline, chosen[:8], 0)
    began = time.perf_counter()
    images = generated(pipeline, chosen, 0)
    seconds = time.perf_counter() - began
    tiles = images.reshape(8, 8, 3, 32, 32).permute(0, 3, 1, 4, 2).reshape(256, 256, 3)
    Image.fromarray((tiles * 255).round().byte().numpy()).resize((768, 768), 0).save(file)
    return {"seconds_for_64": seconds, "threads": torch.get_num_threads()}


def frechet_to_real(painter: Painter, pipeline: DiffusionPipeline, chosen: Sequence[Scene]) -> dict[str, Any]:
    """Fréchet distances to real images of generated ones, of other real ones, and of noisy real ones."""
    real, other = (real_images(painter, chosen, seed) for seed in (10, 11))
    noise = torch.randn(other.shape, generator=torch.Generator().manual_seed(0))
    compared = {
        "real_again": other,
        "generated": generated(pipeline, chosen, 0),
        "noisy": (other + 0.15 * noise).clamp(0, 1),
    }
    result: dict[str, Any] = {}
    for size in FRECHET_SIZES:
        network = EfficientNetLite0Features(size)
        wanted = network.images(real)
        distances = {k: frechet_distance(network.images(images), wanted) for k, images in compared.items()}
        result[network.name] = {"n": len(chosen)} | distances
    return result


def fingerprint() -> str:
    """Of the bundled weights: figures of others are not these."""
    digest = hashlib.sha256()
    for path in sorted(Path(str(files("raysense.bundled"))).rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--emoji", type=Path, required=True, help="unpacked npm package emoji-datasource-google"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("training/runs"), help="where the JSON and the grid go"
    )
    parser.add_argument("--scenes", type=int, default=300, help="held-out scenes a seed")
    parser.add_argument("--images", type=int, default=2000, help="images behind the Fréchet distances")
    parser.add_argument("--pruned-scenes", type=int, default=100, help="scenes a seed under pruning; 0: skip")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    painter = Painter(args.emoji / "img/google/64")
    pool = scenes(held_out=True)
    order = np.random.default_rng(3).permutation(len(pool))
    chosen = [pool[i] for i in order[: args.scenes]]
    scorer = ClipFeatures(f"local-dir:{files('raysense.bundled') / 'scorer'}")
    texts = Texts(scorer)
    pipeline = load_pipeline("bundled")

    result: dict[str, Any] = {
        "weights": fingerprint(),
        "scenes": len(chosen),
        "seeds": len(SEEDS),
        "steps": SAMPLING.steps,
        "guidance": SAMPLING.guidance,
    }
    file = args.out / "judged.json"
    earlier = json.loads(file.read_text()) if file.exists() else {}
    if {key: earlier.get(key) for key in result} == result:
        result = earlier

    def measured(name: str, measure: Callable[[], Any]) -> None:
        """Measure unless an earlier call has, on the same weights; keep what is measured at once."""
        if name not in result:
            result[name] = measure()
            file.write_text(json.dumps(result, indent=2) + "\n")
        print(f"{name}: {json.dumps(result[name])}", flush=True)

    measured(
        "real",
        lambda: over_seeds(
            [retrieval(scorer, texts, real_images(painter, chosen, s), chosen) for s in SEEDS]
        ),
    )
    measured(
        "dense",
        lambda: over_seeds([retrieval(scorer, texts, generated(pipeline, chosen, s), chosen) for s in SEEDS]),
    )
    measured("speed", lambda: paint_grid(pipeline, [pool[i] for i in order[-64:]], args.out / "grid.png"))
    many = [pool[i] for i in order[: args.images]]
    measured("frechet_to_real", lambda: frechet_to_real(painter, pipeline, many))
    if args.pruned_scenes:
        few = chosen[: args.pruned_scenes]
        measured("pruned_scenes", lambda: len(few))
        measured("degradation_unet", lambda: degradation(pipeline, scorer, texts, few, "unet"))
        measured(
            "degradation_text_encoder", lambda: degradation(pipeline, scorer, texts, few, "text_encoder")
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
