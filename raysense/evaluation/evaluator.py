"""The resident evaluator: holds the pipeline, answers request after request, changes masks and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from raysense import plugins
from raysense.allocation import Allocation
from raysense.evaluation.cache import TensorCache, TensorMemory
from raysense.evaluation.identity import Identity
from raysense.evaluation.image_sets import ImageSets
from raysense.evaluation.inputs import device_in_words, stored_prompts, versions
from raysense.evaluation.live_pipeline import LivePipeline
from raysense.evaluation.rungs.base import Found, Rung
from raysense.evaluation.rungs.calibration import CalibrationRung
from raysense.evaluation.rungs.images import ImagesRung, ShardRung
from raysense.evaluation.rungs.layer import LayerRung
from raysense.evaluation.rungs.probe import ProbeRung
from raysense.evaluation.sampler import Sampler
from raysense.evaluation.scoring import ImageScorer
from raysense.hashing import KnownFile, know
from raysense.pipelines.sample import metered
from raysense.prompts.sets import Prompt, PromptSets, load_prompts
from raysense.pruning.masks import Pruner
from raysense.records import CALIBRATION, SHARD, Evaluation, EvaluationRequest
from raysense.store.disk import Disk
from raysense.study import Study, parse


class Evaluator:
    """Measures allocations of one pipeline: hands each request to its rung and writes the row.

    Args:
        study: The study.
        directory: The study's store; dense references are cached beside it.
        threads: CPU threads for torch; None leaves torch's own choice.
        prompts: The study's prompts; None to read them from where the study says.

    Attributes:
        study: See above.
        prompts: See above.
        live: The pipeline with its masks.
        pipeline: The pipeline itself.
        inventory: The selected layers and the denominators.
        grid: Their levels.
        identity: The study's keys.
        sets: Dense, reference and pruned images of every rung.
    """

    def __init__(
        self,
        study: Study,
        directory: str,
        threads: int | None = None,
        prompts: PromptSets | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.study = study
        self.prompts = prompts or load_prompts(study.prompts)
        self.live = live = LivePipeline(study, directory, self.prompts)
        self.pipeline, self.inventory, self.grid = live.pipeline, live.inventory, live.grid
        self._ran_on = {
            "device": device_in_words(live.device),
            "versions": " ".join(f"{name} {version}" for name, version in versions().items()),
        }

        def scorer() -> ImageScorer:
            return self.scorer

        cache = TensorCache(Disk(directory))
        memory = TensorMemory(cache)
        self.identity = Identity(study, self.prompts, self.grid, live.device, scorer)
        self.sampler = Sampler(live, scorer)
        self.sets = sets = ImageSets(live, self.sampler, self.identity, cache, memory, scorer)
        probe = ProbeRung(live)
        calibration = CalibrationRung(live, probe, self.identity, memory)
        live.select_methods = calibration.methods
        self._images = ImagesRung(live, sets, scorer)
        self._others: Mapping[str, Rung] = {
            CALIBRATION: calibration,
            "layer": LayerRung(live),
            "probe": probe,
            SHARD: ShardRung(live, sets),
        }

    @cached_property
    def scorer(self) -> ImageScorer:
        """Loaded when the first image is scored: an export needs none."""
        return ImageScorer(self.study, self.live.device)

    @property
    def inputs(self) -> dict[str, Any]:
        """What the study is measured on, by content."""
        return self.identity.inputs

    @property
    def signature(self) -> str:
        """What every key starts from."""
        return self.identity.signature

    @property
    def masker(self) -> Pruner:
        """See `LivePipeline.masker`."""
        return self.live.masker

    def stand_at(self, allocation: Allocation) -> None:
        """Bring the pipeline to an allocation."""
        self.live.stand_at(allocation)

    @torch.inference_mode()
    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        """Measure one allocation on one rung.

        The pipeline is left at the request's allocation; the next request changes only what differs.
        """
        began = time.perf_counter()
        self.live.begin()
        self.live.prune_by(request.method)
        self.live.steps = request.steps
        with metered(self.pipeline) as meter:
            found = self._others.get(request.rung, self._images).measure(request)
        return self._row(request, found, meter.nfe + found.nfe, time.perf_counter() - began)

    def sample(self, allocation: Allocation, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Tensor:
        """Images of an allocation by the study's own method: float32 (n, 3, height, width) in [0, 1], on the CPU."""
        self.live.prune_by("")
        self.live.steps = None
        self.stand_at(allocation)
        with torch.inference_mode():
            return self.sampler.images((list(prompts), list(seeds)))

    def _row(self, request: EvaluationRequest, found: Found, cost: int, seconds: float) -> Evaluation:
        live = self.live
        notes = (*live.notes, live.calibration.noted(request.allocation), _of_steps(request))
        return Evaluation(
            key=request.key(self.identity.signature),
            allocation=request.allocation.key,
            rung=request.rung,
            replicate=request.replicate,
            measures=found.measures,
            zeros=live.zeros,
            images=live.sampled,
            nfe=cost,
            seconds=seconds,
            collapsed=found.collapsed,
            method=" ".join(
                part for part in (live.saliency(request.allocation), self.study.prune.pattern) if part
            ),
            notes="; ".join(filter(None, notes)),
            samples=found.samples,
            **self._ran_on,
        )


def _of_steps(request: EvaluationRequest) -> str:
    """What a row says of a denoiser that was pruned for a part of the trajectory."""
    if request.steps is None:
        return ""
    return f"the denoiser was pruned from {request.steps[0]:.0%} to {request.steps[1]:.0%} of the steps only"


def build(
    study: Mapping[str, Any],
    directory: str,
    threads: int | None = None,
    expected: Mapping[str, Any] | None = None,
    code: Mapping[str, Any] | None = None,
    files: Iterable[KnownFile] = (),
) -> Evaluator:
    """An evaluator from plain data, as a worker receives it.

    Args:
        study: The study's definition.
        directory: Its store.
        threads: See `Evaluator`.
        expected: What the driver's `inputs_of` gave; None for no comparison.
        code: What the driver's `plugins.packed` gave.
        files: What the driver has read, see `raysense.hashing.known_files`.
    """
    know(files)
    plugins.unpack(code or {})
    known = None if expected is None else stored_prompts(Disk(directory), expected["prompts"])
    evaluator = Evaluator(parse(study), directory, threads, known)
    if expected is not None:
        evaluator.identity.expect(expected)
    return evaluator
