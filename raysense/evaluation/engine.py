"""The resident evaluator: holds the pipeline, answers task after task, changes masks and nothing else."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

import raysense
from raysense.errors import RaysenseError
from raysense.evaluation.blobs import Blobs
from raysense.evaluation.calibration import OWL, Calibration, method_of
from raysense.evaluation.probe import Probe
from raysense.evaluation.records import CALIBRATION, OUTLIERS, Evaluation, Measure, Task, content_key
from raysense.metrics import features as feature_networks
from raysense.metrics.clip_score import clip_scores
from raysense.metrics.closeness import feature_closeness
from raysense.metrics.collapsed import why_collapsed
from raysense.metrics.frechet import frechet_interval, frechet_rise
from raysense.metrics.frechet import statistics as frechet_statistics
from raysense.metrics.kid import kid_interval, kid_rise
from raysense.metrics.statistics import Interval, mean_interval, paired_drop
from raysense.pipelines.load import load_pipeline
from raysense.pipelines.prompts import Prompt, load_prompts
from raysense.pipelines.sample import call_pipeline, metered
from raysense.pruning.allocation import Allocation, LevelGrid
from raysense.pruning.layers import Inventory, take_inventory
from raysense.pruning.masks import Pruner
from raysense.pruning.patterns import Pattern, pattern_grid
from raysense.pruning.saliency import UPDATING
from raysense.store.disk import Disk
from raysense.study import BUNDLED, ImageRung, Study, parse

logger = logging.getLogger(__name__)

REFERENCE_SEEDS = 2
"""Dense images a prompt in the reference of the distribution metrics."""

_FIRST_REFERENCE_SEED = 1_000_000
_SEEDS_A_DRAW = 1_000


@dataclass(frozen=True)
class Judged:
    """Features of a set of images, row by row the same prompts and seeds as every set of its rung.

    Attributes:
        clip: (n,) cosine of each image with its prompt, float64.
        features: (n, d) features for the distribution metrics and closeness, float32.
        collapsed: Why the images are broken, or an empty string.
    """

    clip: Tensor
    features: Tensor
    collapsed: str = ""


class Evaluator:
    """Measures allocations of one pipeline.

    Args:
        study: The study.
        directory: The study's store; dense references are cached beside it.
        threads: CPU threads for torch; None leaves torch's own choice.

    Attributes:
        inventory: The selected layers and the denominators.
        grid: Their levels.
        calibration: What the study's method learns from the dense pipeline.
        pipeline: The live pipeline.
    """

    def __init__(self, study: Study, directory: str, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.study = study
        self.device = "cuda" if study.cluster.gpus_per_evaluator > 0 else "cpu"
        self.pipeline = load_pipeline(
            study.pipeline, revision=study.revision, dtype=study.dtype, device=self.device
        )
        self.inventory, self.grid = inventory_and_grid(study, self.pipeline.components)
        self.prompts = load_prompts(study.prompts)
        self._clip, self._features = judges(study, self.device)
        self._blobs = Blobs(Disk(directory))
        self.calibration = Calibration(
            study,
            self.pipeline,
            self.inventory,
            self.grid,
            self.prompts,
            Disk(directory),
        )
        self._masker: Pruner | None = None
        self._signature = signature(study, self.grid)
        self._probe: Probe | None = None
        self._batch = study.sampling.batch
        self._notes: list[str] = []

    @property
    def masker(self) -> Pruner:
        """Holds the dense master; restores it exactly. Made when first needed: its method may have to learn."""
        if self._masker is None:
            self._masker = self.calibration.pruner()
            if self._masker.place == "mapped":
                self._notes.append(self._masker.described)
        return self._masker

    def stand_at(self, allocation: Allocation) -> None:
        """Bring the pipeline to an allocation; it stands at the dense one from the start."""
        if allocation or self._masker is not None:
            self.masker.apply(allocation)

    @torch.inference_mode()
    def evaluate(self, task: Task) -> Evaluation:
        """Measure one allocation on one rung.

        The pipeline is left at the task's allocation; the next task changes only what differs.
        """
        began = time.perf_counter()
        self._notes = []
        images = 0
        samples: Sequence[Mapping[str, Any]] = ()
        collapsed = ""
        with metered(self.pipeline) as meter:
            if task.rung == CALIBRATION:
                measures = self._calibrated()
                images = self.calibration.images
            elif task.rung == "probe":
                measures = self._probed(task.allocation)
            else:
                rung = self._rung(task.rung)
                pairs = self._pairs(task.rung, rung, task.draw)
                dense = self._dense(task.rung, rung, task.draw)
                reference = self._reference(task.rung)
                self.stand_at(task.allocation)
                pruned = dense if not task.allocation else self._judge(*pairs)
                images, collapsed = len(pairs[0]), pruned.collapsed
                measures = self._compare(pairs[0], pruned, dense, reference)
                samples = _sample_rows(pairs, pruned, dense)
        return Evaluation(
            key=task.key(self._signature),
            question="",
            stage="",
            allocation=task.allocation.key,
            rung=task.rung,
            draw=task.draw,
            measures=measures,
            zeros=self.inventory.zeros_before if self._masker is None else self._masker.count_zeros(),
            images=images,
            cost=meter.forwards,
            seconds=time.perf_counter() - began,
            collapsed=collapsed,
            method=method_of(self.study),
            notes="; ".join(note for note in (*self._notes, self.calibration.noted(task.allocation)) if note),
            samples=samples,
        )

    def sample(self, allocation: Allocation, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Tensor:
        """Images of an allocation: float32 (n, 3, height, width) in [0, 1], on the CPU."""
        self.stand_at(allocation)
        with torch.inference_mode():
            return torch.cat([images for images, _ in self._batches(prompts, seeds)])

    # --- learning -------------------------------------------------------------------------------------

    def _calibrated(self) -> dict[str, Measure]:
        """Learn what the study's method needs; gives the outlier ratios where the study allocates by them."""
        self.stand_at(Allocation())
        self.calibration.learn()
        self._notes += self.calibration.notes
        if OWL not in self.study.search.strategies:
            return {}
        n = len(self.prompts.search[: self.study.prune.calibration.prompts])
        return {
            OUTLIERS + address: Measure(ratio, ratio, ratio, n, "inputs of the dense layer")
            for address, ratio in self.calibration.outliers().items()
        }

    # --- the probe ------------------------------------------------------------------------------------

    def _probed(self, allocation: Allocation) -> dict[str, Measure]:
        if self._probe is None:
            self.stand_at(Allocation())
            rung = self.study.rungs.probe
            prompts = self.prompts.of("probe", rung.prompts)
            self._probe = Probe(
                self.pipeline,
                prompts,
                [self._seed(0, 0)] * len(prompts),
                self.study.sampling,
                rung.timesteps,
                decodes="vae" in self.study.prune.components,
            )
        self.stand_at(allocation)
        errors = self._probe.errors().numpy()
        return {"probe_error": _measure(mean_interval(errors), "denoiser output", n=self._probe.tuples)}

    # --- images ---------------------------------------------------------------------------------------

    def _rung(self, name: str) -> ImageRung:
        rung = getattr(self.study.rungs, name, None)
        if not isinstance(rung, ImageRung):
            raise RaysenseError(
                f"`rungs` has no rung {name!r}; there are probe, preview, score and validation"
            )
        return rung

    def _seed(self, draw: int, number: int) -> int:
        return self.study.seed * 10_000_000 + draw * _SEEDS_A_DRAW + number

    def _pairs(self, name: str, rung: ImageRung, draw: int) -> tuple[list[Prompt], list[int]]:
        prompts = self.prompts.of(name, rung.prompts)
        # Seed by seed, so that a rung with fewer seeds is a prefix of one with more.
        seeds = [self._seed(draw, number) for number in range(rung.seeds) for _ in prompts]
        return list(prompts) * rung.seeds, seeds

    def _dense(self, name: str, rung: ImageRung, draw: int) -> Judged:
        """The dense pipeline on the same prompts and seeds; sampled once a study."""
        return self._remembered("dense", *self._pairs(name, rung, draw))

    def _reference(self, name: str) -> Tensor:
        """Features of dense images under seeds that no evaluation uses, (n, d)."""
        largest = "validation" if name == "validation" else "score"
        prompts = self.prompts.of(largest, self._rung(largest).prompts)
        seeds = [self._seed(0, _FIRST_REFERENCE_SEED + i) for i in range(REFERENCE_SEEDS) for _ in prompts]
        return self._remembered("reference", list(prompts) * REFERENCE_SEEDS, seeds).features

    def _remembered(self, what: str, prompts: list[Prompt], seeds: list[int]) -> Judged:
        # Not under the study's signature: studies of one pipeline that share a folder share its dense images.
        key = content_key(what, dense_identity(self.study), [(p.id, p.text) for p in prompts], seeds)
        stored = self._blobs.get(key)
        if stored is None:
            self.stand_at(Allocation())
            judged = self._judge(prompts, seeds)
            if judged.collapsed:
                raise RaysenseError(
                    f"`pipeline`: the dense pipeline's own images are broken ({judged.collapsed}); check `dtype`, "
                    "`sampling.steps` and the weights"
                )
            stored = {"clip": judged.clip, "features": judged.features}
            self._blobs.put(key, stored)
        return Judged(stored["clip"], stored["features"])

    def _judge(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Judged:
        """Sample and extract features batch by batch; only features are kept."""
        clip, features, broken = [], [], []
        for images, chosen in self._batches(prompts, seeds):
            reason = why_collapsed(images)
            broken.append(reason)
            images = images.nan_to_num(0.0).clamp(0, 1)
            texts = self._clip.texts([prompt.text for prompt in chosen])
            clip.append(clip_scores(self._clip.images(images), texts))
            features.append(self._features.images(images))
        reasons = sorted({reason for reason in broken if reason})
        collapsed = "; ".join(reasons) if sum(map(bool, broken)) * 2 > len(broken) else ""
        return Judged(torch.cat(clip), torch.cat(features), collapsed)

    def _batches(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Any:
        """Images and their prompts, a batch at a time; a batch that does not fit is halved for good."""
        start = 0
        while start < len(prompts):
            stop = min(start + self._batch, len(prompts))
            try:
                images = call_pipeline(
                    self.pipeline, prompts[start:stop], seeds[start:stop], self.study.sampling
                )
            except torch.OutOfMemoryError:
                if self._batch == 1:
                    raise
                self._notes.append(f"out of memory: batch {self._batch} -> {self._batch // 2}")
                self._batch //= 2
                torch.cuda.empty_cache()
                continue
            yield images, prompts[start:stop]
            start = stop

    def _compare(
        self, prompts: Sequence[Prompt], pruned: Judged, dense: Judged, reference: Tensor
    ) -> dict[str, Measure]:
        ids = [prompt.id for prompt in prompts]
        network, clip = self._features.name, self._clip.name
        gaussian = frechet_statistics(reference)
        close = feature_closeness(pruned.features, dense.features, reference.mean(0))
        return {
            "clip_score": _measure(mean_interval(pruned.clip.numpy(), ids), clip),
            "clip_score_drop": _measure(paired_drop(dense.clip.numpy(), pruned.clip.numpy(), ids), clip),
            "frechet": _measure(frechet_interval(pruned.features, gaussian, ids), network),
            "frechet_rise": _measure(frechet_rise(pruned.features, dense.features, gaussian, ids), network),
            "kid": _measure(kid_interval(pruned.features, reference, ids), network),
            "kid_rise": _measure(kid_rise(pruned.features, dense.features, reference, ids), network),
            "closeness": _measure(mean_interval(close.numpy(), ids), network),
        }


def inventory_and_grid(study: Study, components: Mapping[str, object]) -> tuple[Inventory, LevelGrid]:
    """The layers that `study` selects from `components`, and their levels."""
    inventory = take_inventory(
        components,
        select=study.prune.components,
        include=study.prune.include,
        exclude=study.prune.exclude,
        kinds=study.prune.kinds,
    )
    if study.prune.pattern:
        return inventory, pattern_grid(inventory, Pattern.parse(study.prune.pattern))
    if study.prune.saliency in UPDATING:
        return inventory, LevelGrid(inventory.sizes, study.prune.cap, study.prune.calibration.levels)
    return inventory, LevelGrid(inventory.sizes, study.prune.cap)


def dense_identity(study: Study) -> str:
    """What the dense pipeline's images and their features follow from, prompts and seeds aside."""
    sampling, metrics = study.sampling.model_dump(), study.metrics.model_dump()
    return content_key(
        raysense.__version__, study.pipeline, study.revision, study.dtype, sampling, metrics, study.seed
    )


def signature(study: Study, grid: LevelGrid) -> str:
    """What every key of the study's evaluations starts from: whatever changes a value changes it."""
    return content_key(raysense.__version__, study.identity(), grid.signature())


def judges(
    study: Study, device: str = "cpu"
) -> tuple[feature_networks.ClipFeatures, feature_networks.FeatureExtractor]:
    """The networks that judge the study's images: for the CLIP score, and for everything else.

    Raises:
        RaysenseError: One is unknown or cannot be had.
    """
    clip = study.metrics.clip
    model = clip.model
    if model == BUNDLED:
        model = f"local-dir:{files('raysense.bundled') / 'scorer'}"
    network = feature_networks.ClipFeatures(model, clip.pretrained, device)
    return network, feature_networks.extractor(study.metrics.frechet.extractor, device)


def build(study: Mapping[str, Any], directory: str, threads: int | None = None) -> Evaluator:
    """An evaluator from plain data, as a worker receives it."""
    return Evaluator(parse(study), directory, threads)


def _measure(interval: Interval, extractor: str, n: int | None = None) -> Measure:
    return Measure(interval.value, interval.low, interval.high, n or interval.n, extractor)


def _sample_rows(
    pairs: tuple[list[Prompt], list[int]], pruned: Judged, dense: Judged
) -> list[dict[str, Any]]:
    drops = (dense.clip - pruned.clip).tolist()
    return [
        {"prompt_id": p.id, "prompt": p.text, "seed": seed, "clip_score": score, "clip_score_drop": drop}
        for p, seed, score, drop in zip(*pairs, pruned.clip.tolist(), drops, strict=True)
    ]
