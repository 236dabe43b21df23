"""The recipe a researcher would write, against the engine: the same images, the same networks, the same decisions.

    python -m benchmarks.naive [--bed BED]    # 48 images an evaluation; 2 stages × 6 levels; 3 minutes of a core a bed
    python -m benchmarks.naive --full         # 256 images; all stages × 6 levels: ten times the work
    python -m benchmarks.naive --quick        # 12 images, 2 steps; 1 stage × 3 levels

Two pipelines: both bundled ones, with the sampling and the components of their studies.
The recipe: for every configuration load the pipeline, prune with `torch.nn.utils.prune`, generate one image after
the other, save PNG files, FID-style distance by torch-fidelity from the folder (the reference's statistics cached),
CLIP score in a loop of single images with a freshly loaded model. The engine: `Evaluator.evaluate`, reference
cached too. The recipe's steps are timed apart, so each saving is itemised.

The sweep: one stage of a pipeline at a time over the levels. Stages are the text encoders, and the denoiser's blocks in
network order, cut in two where half of its weights are passed. The recipe measures every level in full; the last one
before the CLIP score has fallen by more than the bound is the cliff. The engine narrows it down to one level with
previews, and measures in full only where these do not decide; its cliff must lie within one level of the recipe's.
The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch_fidelity
from PIL import Image
from torch.nn.utils import prune

from benchmarks.beds import STUDIES, study_of
from raysense.allocation import Allocation
from raysense.evaluation.evaluator import Evaluator
from raysense.metrics.features import extractor
from raysense.pipelines.adapter import call_arguments, denoisers_of
from raysense.pipelines.load import modules_of
from raysense.pipelines.origin import pipeline_folder
from raysense.pipelines.sample import noise_seed
from raysense.pruning.layers import Layer
from raysense.records import Bound, Evaluation, EvaluationRequest
from raysense.strategies.verdict import hopeless
from raysense.study import Study

cut: Any = prune.l1_unstructured  # untyped
keep: Any = prune.remove
BAR_EVALUATION, BAR_SWEEP = 2.0, 20.0
SPARSITIES = (0.3, 0.5, 0.65, 0.8, 0.9, 0.95)
REFERENCE = "raysense-naive-reference"
BOUND = 0.02
"""How far the CLIP score may fall in the sweep."""


@dataclass(frozen=True)
class Size:
    """How much is measured on each bed.

    Attributes:
        overrides: Of its study.
        pairs: Evaluations by both.
        stages: Indices into its stages; None for all.
        levels: Sparsities that each stage is swept over.
    """

    overrides: tuple[str, ...]
    pairs: int
    stages: tuple[int, ...] | None
    levels: tuple[float, ...] = SPARSITIES


FULL = Size(("rungs.preview.prompts=32", "rungs.score.prompts=256"), 3, None)
USUAL = Size(("rungs.preview.prompts=16", "rungs.score.prompts=48"), 3, (0, -1))
QUICK = Size(
    ("rungs.preview.prompts=8", "rungs.score.prompts=12", "sampling.steps=2"), 1, (-1,), SPARSITIES[::2]
)


class Recipe:
    """The researcher's script, timed step by step.

    Args:
        study: Prompts, steps, guidance, networks.
        evaluator: Only asked for prompts, seeds and addresses.
        folder: Where images go.
    """

    def __init__(self, study: Study, evaluator: Evaluator, folder: Path) -> None:
        self.study, self.evaluator, self.folder = study, evaluator, folder
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.prompts = evaluator.prompts.of("score", study.rungs.score.prompts)
        self.features = extractor(study.metrics.features.extractor).name  # registers it with torch-fidelity
        self.generate({}, folder / "reference", seed=1_000_000)
        self.distance(folder / "reference")  # caches the reference's features
        self.seconds.clear()

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Adds to a step's seconds."""
        began = time.perf_counter()
        yield
        self.seconds[step].append(time.perf_counter() - began)

    def evaluate(self, sparsity: dict[str, float]) -> dict[str, float]:
        """Prune layers, given their sparsities, and measure."""
        target = self.folder / "images"
        self.generate(sparsity, target)
        with self.timed("distance"):
            distance = self.distance(target)
        with self.timed("clip"):
            score = self.clip_score(target)
        return {"frechet": distance, "clip_score": score}

    def generate(self, sparsity: dict[str, float], target: Path, seed: int = 0) -> None:
        """One image after the other, saved as PNG."""
        target.mkdir(exist_ok=True)
        with self.timed("load"):
            pipeline = plain(self.study.pipeline)
        with self.timed("prune"):
            for address, rate in sparsity.items():
                component, _, path = address.partition(":")
                module = modules_of(pipeline)[component].get_submodule(path)
                cut(module, "weight", rate)
                keep(module, "weight")
        arguments = {**call_arguments(pipeline, self.study.sampling), "output_type": "pil"}
        for number, prompt in enumerate(self.prompts):
            with self.timed("sample"):
                generator = torch.Generator().manual_seed(noise_seed(prompt.id, seed))
                image = pipeline(prompt.text, generator=generator, **arguments).images[0]
            with self.timed("save"):
                image.save(target / f"{number:05d}.png")

    def distance(self, target: Path) -> float:
        """Fréchet distance of a folder by torch-fidelity."""
        found = torch_fidelity.calculate_metrics(
            input1=str(target),
            input2=str(self.folder / "reference"),
            input2_cache_name=REFERENCE,
            cache_root=str(self.folder / "cache"),
            feature_extractor=self.features,
            fid=True,
            cuda=False,
            verbose=False,
        )
        return float(found["frechet_inception_distance"])

    def clip_score(self, target: Path) -> float:
        """Mean cosine of image and prompt, image by image."""
        source = f"local-dir:{files('raysense.bundled') / 'scorer'}"
        model, _, transform = open_clip.create_model_and_transforms(source)
        tokenizer = open_clip.get_tokenizer(source)
        model.eval()
        scores = []
        with torch.no_grad():
            for number, prompt in enumerate(self.prompts):
                image = transform(Image.open(target / f"{number:05d}.png"))[None]
                a, b = model.encode_image(image), model.encode_text(tokenizer([prompt.text]))
                scores.append(float(torch.cosine_similarity(a, b)))
        return statistics.mean(scores)


def plain(bed: str) -> Any:
    """A bundled pipeline as diffusers alone loads it."""
    from diffusers import DiffusionPipeline

    folder = Path(pipeline_folder(bed))
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    # Stable Diffusion 3 without T5: diffusers wants to be told of parts that the index leaves out.
    absent = {
        name: None for name in ("text_encoder_3", "tokenizer_3") if index.get(name, ...) == [None, None]
    }
    pipeline = DiffusionPipeline.from_pretrained(folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def one_evaluation(recipe: Recipe, evaluator: Evaluator, pairs: int) -> dict[str, Any]:
    """Interleaved pairs of one evaluation each, and where the recipe's time goes."""
    ratios, engine = [], []
    everything = evaluator.grid.addresses
    began = time.perf_counter()
    # Once a study the engine finds the order in which weights are removed; given apart.
    evaluator.evaluate(EvaluationRequest(level(evaluator, everything, 0.08), "score"))
    first = time.perf_counter() - began
    for number in range(pairs):
        allocation = level(evaluator, everything, 0.1 + 0.02 * number)
        began = time.perf_counter()
        theirs = recipe.evaluate(rates(evaluator, allocation))
        middle = time.perf_counter()
        mine = evaluator.evaluate(EvaluationRequest(allocation, "score"))
        end = time.perf_counter()
        ratios.append((middle - began) / (end - middle))
        engine.append(end - middle)
        print(f"pair {number + 1}: recipe {middle - began:.1f} s, engine {end - middle:.1f} s", flush=True)
        gap = abs(theirs["clip_score"] - mine.measures["clip_score"].value)
        assert gap < 0.02, f"the two sides measure different things: CLIP scores differ by {gap}"
    steps = {step: round(sum(values) / pairs, 3) for step, values in recipe.seconds.items()}
    return {
        "images": len(recipe.prompts),
        "pairs": pairs,
        "ratios": [round(ratio, 2) for ratio in ratios],
        "recipe_to_engine": round(statistics.median(ratios), 2),
        "recipe_seconds_by_step": steps,
        "engine_seconds": round(statistics.median(engine), 2),
        "engine_first_evaluation_seconds": round(first, 2),
    }


def level(evaluator: Evaluator, addresses: Sequence[str], sparsity: float) -> Allocation:
    """The same sparsity in some layers."""
    own = set(evaluator.grid.addresses)
    return Allocation({a: evaluator.grid.level_for(a, sparsity) for a in addresses if a in own})


def rates(evaluator: Evaluator, allocation: Allocation) -> dict[str, float]:
    """Sparsity of every pruned layer, as the recipe's tool takes it."""
    grid, sizes = evaluator.grid, {layer.address: layer.n for layer in evaluator.inventory.layers}
    return {
        a: grid.removed(a, allocation[leader]) / sizes[a]
        for leader in allocation
        for a in grid.members(leader)
    }


def stages(blocks: Iterable[Sequence[Layer]], denoisers: Collection[str]) -> dict[str, list[str]]:
    """Stage -> its layers: each text encoder, and the earlier and the later blocks of each denoiser.

    Args:
        blocks: The layers of each block, in network order.
        denoisers: Components that are cut in two, at the first block before which half of their weights have passed.
    """
    blocks = list(blocks)
    whole, passed = defaultdict[str, int](int), defaultdict[str, int](int)
    for layer in itertools.chain.from_iterable(blocks):
        whole[layer.component] += layer.n
    found: dict[str, list[str]] = defaultdict(list)
    for layers in blocks:
        component = layers[0].component
        later = passed[component] >= whole[component] / 2
        passed[component] += sum(layer.n for layer in layers)
        name = (
            f"{component}, {'later' if later else 'earlier'} blocks" if component in denoisers else component
        )
        found[name] += [layer.address for layer in layers]
    return dict(found)


def sweep(
    recipe: Recipe,
    evaluator: Evaluator,
    groups: Mapping[str, Sequence[str]],
    levels: Sequence[float],
    bound: float,
) -> dict[str, Any]:
    """Cliffs by both, and the ratio of their times."""
    cliffs: dict[str, tuple[int, int]] = {}
    theirs = mine = 0.0
    dense = evaluator.evaluate(EvaluationRequest(Allocation(), "score")).measures["clip_score"].value
    evaluator.evaluate(EvaluationRequest(Allocation(), "preview"))
    for name, addresses in groups.items():
        steps = [level(evaluator, addresses, sparsity) for sparsity in levels]
        began = time.perf_counter()
        drops = [dense - recipe.evaluate(rates(evaluator, step))["clip_score"] for step in steps]
        middle = time.perf_counter()
        # The last level before the first fall beyond the bound; 0: none holds.
        naive = next((k for k, drop in enumerate(drops) if drop > bound), len(steps))
        found = cliff(evaluator, steps, bound)
        theirs += middle - began
        mine += time.perf_counter() - middle
        cliffs[name] = (naive, found)
        print(
            f"{name}: CLIP score drops {[round(drop, 4) for drop in drops]} by the recipe, cliff after {naive}"
        )
        print(
            f"{name}: cliff after {found} by the engine; {theirs:.0f} s and {mine:.0f} s so far", flush=True
        )
    return {
        "groups": len(groups),
        "levels": len(levels),
        "cliffs_recipe_engine": cliffs,
        "agree_within_one_level": all(abs(a - b) <= 1 for a, b in cliffs.values()),
        "recipe_seconds": round(theirs, 1),
        "engine_seconds": round(mine, 1),
        "recipe_to_engine": round(theirs / mine, 2),
    }


def cliff(evaluator: Evaluator, steps: Sequence[Allocation], bound: float) -> int:
    """How many levels hold, to within one level.

    Between `low` and `high` levels hold. The level in the middle is measured first; one that the preview does not
    decide is put aside, and measured in full only where no other level narrows the bracket.
    """
    limit = Bound("constraints.clip_score.max_drop", "clip_score_drop", True, bound)
    stop = hopeless([limit], evaluator.study.rungs)
    low, high = 0, len(steps)
    aside: set[int] = set()
    while high - low > 2:
        inside = range(low + 1, high + 1)
        fresh = [number for number in inside if number not in aside]
        middle = min(fresh or inside, key=lambda number: abs(2 * number - low - high - 1))
        evaluation = evaluator.evaluate(EvaluationRequest(steps[middle - 1], "preview" if fresh else "score"))
        if evaluation.collapsed or stop.says_stop(evaluation):
            holds = False
        elif clears(evaluation, bound, stop.stretch):
            holds = True
        elif fresh:
            aside.add(middle)
            continue
        else:
            holds = evaluation.measures["clip_score_drop"].value <= bound
        low, high = (middle, high) if holds else (low, middle - 1)
    return (low + high) // 2


def clears(evaluation: Evaluation, bound: float, stretch: float) -> bool:
    """Whether the preview's widened interval lies wholly inside the bound."""
    drop = evaluation.measures["clip_score_drop"]
    return drop.value + stretch * (drop.ci_high - drop.value) <= bound


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs and prints the result as JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--full", action="store_true", help="256 images, all stages, six levels")
    sizes.add_argument("--quick", action="store_true", help="12 images, 2 steps, one stage")
    parser.add_argument("--bed", choices=STUDIES, help="one of the two pipelines; default: both")
    chosen = parser.parse_args(arguments)
    size = FULL if chosen.full else QUICK if chosen.quick else USUAL
    figures = {bed: measure(bed, size) for bed in ([chosen.bed] if chosen.bed else STUDIES)}
    holds = all(
        found["evaluation"]["recipe_to_engine"] >= BAR_EVALUATION
        and found["sweep"]["recipe_to_engine"] >= BAR_SWEEP
        and found["sweep"]["agree_within_one_level"]
        for found in figures.values()
    )
    bar = {"evaluation": BAR_EVALUATION, "sweep": BAR_SWEEP}
    print(json.dumps({"benchmark": "naive", "figures": figures, "bar": bar, "holds": holds}))
    return 0 if holds else 1


def measure(bed: str, size: Size) -> dict[str, Any]:
    """Both comparisons on one bed."""
    study = study_of(bed, [*size.overrides, "prune.max_layer_sparsity=0.99"])
    with tempfile.TemporaryDirectory() as folder:
        evaluator = Evaluator(study, f"{folder}/engine")
        evaluator.evaluate(EvaluationRequest(Allocation(), "score"))
        evaluator.evaluate(EvaluationRequest(Allocation(), "preview"))
        recipe = Recipe(study, evaluator, Path(folder))
        evaluation = one_evaluation(recipe, evaluator, size.pairs)
        own = {layer.address: layer for layer in evaluator.inventory.layers}
        blocks = [[own[a] for a in block] for block in evaluator.inventory.groups("block").values()]
        groups = list(stages(blocks, denoisers_of(evaluator.pipeline)).items())
        chosen = dict(groups if size.stages is None else [groups[index] for index in size.stages])
        return {"evaluation": evaluation, "sweep": sweep(recipe, evaluator, chosen, size.levels, BOUND)}


if __name__ == "__main__":
    sys.exit(main())
