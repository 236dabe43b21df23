"""The paired verdict on one candidate, an allocation or a pruned pipeline, beside the dense one: `raysense.judge`."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from raysense.allocation import Allocation
from raysense.errors import MeasuringFailed, RaysenseError
from raysense.evaluation.evaluator import Evaluator
from raysense.feasibility import IMAGE_RUNGS, Margin, is_feasible, margins, utilisation
from raysense.records import Evaluation, EvaluationRequest, Measure
from raysense.search.api import levels_of, prepared
from raysense.study import Study

Candidate = Any
"""A loaded ``DiffusionPipeline``, a path of one, an `Allocation`, or sparsities as `raysense.evaluate` takes them."""


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate stays inside a study's quality budget, with the evidence.

    Attributes:
        feasible: The whole 95 % interval of every bounded measure clears its bound.
        bounds: Each bound with the measured value, its interval, and how far inside it stays.
        used: Largest share of a bound's room that an interval's worse end uses: above 1 is outside; None if collapsed.
        sparsity: Denominator (``selected``, ``prunable``, ``components``, ``pipeline``) -> share of zeros.
        evaluation: Every measure with its interval, sample size and extractor; counted zeros.
    """

    feasible: bool
    bounds: tuple[Margin, ...]
    used: float | None
    sparsity: Mapping[str, float]
    evaluation: Evaluation

    @property
    def measures(self) -> Mapping[str, Measure]:
        """Measure -> its value and 95 % interval; those ending in ``_drop`` or ``_rise`` are paired with the dense."""
        return self.evaluation.measures

    def __str__(self) -> str:
        """A few lines for a person."""
        word = "inside the budget" if self.feasible else "outside the budget"
        lines = [
            f"{word}, {self.sparsity['components']:.1%} of the components' parameters are zero, judged on the "
            f"{self.evaluation.rung} rung",
            *(
                f"{m.bound.measure:<20}{m.value:.4g}  [{m.ci_low:.4g}, {m.ci_high:.4g}]  "
                f"{'≤' if m.bound.is_upper else '≥'} {m.bound.limit:g}: {'met' if m.margin >= 0 else 'not met'}"
                for m in self.bounds
            ),
        ]
        return "\n".join([*lines, *filter(None, (self.evaluation.collapsed, self.evaluation.notes))])


def judge(
    dense: Any,
    candidate: Candidate,
    study: Study | str | Path,
    *,
    rung: str = "validation",
    overrides: Sequence[str] = (),
    cache: str | Path | None = None,
) -> Verdict:
    """Compare a candidate with the dense pipeline: same prompts, same noise, the study's metrics, bounds and intervals.

    Args:
        dense: A loaded ``DiffusionPipeline``, a path or hub id; None for the study's own.
        candidate: A pruned pipeline, loaded or a path (`raysense.Run.export` writes one), whatever pruned it; or an
            allocation: an `Allocation`, sparsity by component, block or layer, or one sparsity for every layer.
        study: Whose prompts, sampling, metrics and bounds count; a study, or the path of a study file.
        rung: ``validation``, ``score`` or ``preview``: which prompts, and how many.
        overrides: ``key=value`` pairs that change the study.
        cache: Folder for the dense pipeline's images, to be used again; None for a temporary one.

    Raises:
        RaysenseError: Something cannot be used, or the candidate's images have another size than the dense ones.

    Example:
        >>> study = raysense.Study.load("study.yaml")  # doctest: +SKIP
        >>> raysense.judge(None, "pruned", study).feasible  # doctest: +SKIP
    """
    if rung not in IMAGE_RUNGS:
        raise RaysenseError(f"`rung` is {rung!r}, but must be one of {', '.join(IMAGE_RUNGS)}")
    if not isinstance(study, Study):
        study = Study.load(study)
    with tempfile.TemporaryDirectory(prefix="raysense-judge-") as scratch:
        place = str(cache or scratch)
        ready = prepared(_with_pipeline(study, dense, "dense"), overrides, place)
        if _is_pipeline(candidate):
            other = prepared(_with_pipeline(study, candidate, "candidate"), overrides, place)
            evaluation, shares = _of_pipeline(ready, other, place, rung)
        else:
            evaluator = Evaluator(ready, place)
            evaluation = evaluator.evaluate(EvaluationRequest(levels_of(evaluator, candidate), rung))
            shares = evaluator.inventory.sparsities(evaluation.zeros)
    return _verdict(ready, evaluation, shares)


def _verdict(study: Study, evaluation: Evaluation, shares: Mapping[str, float]) -> Verdict:
    bounds = study.constraints.bounds()
    missing = [bound.measure for bound in bounds if bound.measure not in evaluation.measures]
    if missing and not evaluation.collapsed:
        raise MeasuringFailed(f"{missing[0]} could not be measured")
    return Verdict(
        feasible=not missing and is_feasible(evaluation, bounds),
        bounds=tuple(margins(evaluation, [bound for bound in bounds if bound.measure not in missing])),
        used=None if missing else utilisation(evaluation, bounds),
        sparsity={name.removeprefix("sparsity_"): share for name, share in shares.items()},
        evaluation=evaluation,
    )


@torch.inference_mode()
def _of_pipeline(study: Study, other: Study, place: str, rung: str) -> tuple[Evaluation, dict[str, float]]:
    """A pipeline of its own beside the dense one; they are in memory one after the other."""
    evaluator = Evaluator(study, place)
    sets = evaluator.sets
    pairs, dense = sets.pairs(rung, 0), sets.dense(rung, 0)
    reference, scorer, prompts = sets.reference(rung, 0, dense), evaluator.scorer, evaluator.prompts
    del evaluator, sets
    gc.collect()
    judged = Evaluator(other, place, prompts=prompts)
    images = judged.sampler.scored(pairs, range(len(dense)), dense, rung, 0)
    if images.size != dense.size:
        raise RaysenseError(
            f"`candidate` makes images of {images.size} pixels, the dense pipeline of {dense.size}; set "
            "`sampling.height` and `sampling.width`, so that they can be paired"
        )
    measures, _ = scorer.compare(pairs[0], images, dense, reference)
    zeros = judged.live.zeros
    evaluation = Evaluation(
        rung=rung, measures=measures, zeros=zeros, images=len(images), nfe=0, seconds=0.0,
        collapsed=images.collapsed, method="as given",
    )  # fmt: skip
    return evaluation, judged.inventory.sparsities(zeros)


def _is_pipeline(candidate: Candidate) -> bool:
    return isinstance(candidate, str | Path) or (
        hasattr(candidate, "components") and not isinstance(candidate, Allocation)
    )


def _with_pipeline(study: Study, pipeline: Any, argument: str) -> Study:
    """The study of another pipeline.

    Raises:
        RaysenseError: It is no pipeline.
    """
    if pipeline is None and argument == "dense":
        return study
    if isinstance(pipeline, str | Path):
        folder = Path(pipeline)
        name = str(folder.resolve()) if folder.exists() else str(pipeline)
        changed = study.model_copy(update={"pipeline": name, "revision": None})
        changed._live = replace(study.live, pipeline=None)
        return changed
    if not (hasattr(pipeline, "components") and hasattr(pipeline, "save_pretrained")):
        raise RaysenseError(
            f"`{argument}` must be a loaded pipeline, or a path or hub id of one, but is {pipeline!r:.80}"
        )
    changed = study.model_copy(update={"revision": None})
    changed._live = replace(study.live, pipeline=pipeline)
    return changed
