"""Is an evaluation inside the quality budget? The one place that decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from raysense.evaluation.records import Evaluation, StopRule
from raysense.metrics.statistics import LEVEL, look_levels
from raysense.study import Bound, Rungs

_NEEDS_FULL_SAMPLE = (
    "frechet",
    "frechet_rise",
    "cmmd",
    "precision",
    "precision_drop",
    "recall",
    "recall_drop",
)
"""Measures whose bias depends on the number of images: a smaller rung says nothing certain about a larger one."""


@dataclass(frozen=True)
class Margin:
    """How one bound fares.

    Attributes:
        bound: The bound.
        value: The measured value, in the measure's unit.
        low: Lower end of its two-sided 95 % interval.
        high: Upper end.
        margin: How far the whole interval stays inside the bound; negative: it does not.
    """

    bound: Bound
    value: float
    low: float
    high: float
    margin: float


def margins(evaluation: Evaluation, bounds: Sequence[Bound]) -> list[Margin]:
    """Every bound beside what was measured."""
    result = []
    for bound in bounds:
        measure = evaluation.measures[bound.measure]
        margin = bound.margin(measure.low, measure.high)
        result.append(Margin(bound, measure.value, measure.low, measure.high, margin))
    return result


def is_feasible(evaluation: Evaluation, bounds: Sequence[Bound]) -> bool:
    """Whether each measure's whole 95 % interval clears its bound (so each errs in at most 2.5 % of cases)."""
    if evaluation.failed or evaluation.collapsed:
        return False
    return all(margin.margin >= 0 for margin in margins(evaluation, bounds))


def hopeless(bounds: Sequence[Bound], rungs: Rungs) -> StopRule:
    """Stop climbing the rungs once an interval lies wholly on the wrong side of a bound.

    The preview is a first look at the sample that the score rung completes. By alpha spending (Lan & DeMets 1983;
    here the error grows in step with the images) it may use up the share preview / score of the error, split
    evenly among the bounds. So a candidate that truly keeps every bound is dropped on the way, at the preview or
    in the end for lying wholly outside, with probability 2.5 % at most, as if it had been looked at once.

    Args:
        bounds: The quality budget.
        rungs: How large the looks are.
    """
    certain = [bound for bound in bounds if bound.measure not in _NEEDS_FULL_SAMPLE]
    return StopRule(
        above={bound.measure: bound.limit for bound in certain if bound.is_upper},
        below={bound.measure: bound.limit for bound in certain if not bound.is_upper},
        stretch=preview_stretch(rungs, len(certain)),
    )


def preview_stretch(rungs: Rungs, bounds: int) -> float:
    """How many times wider than 95 % the preview's intervals must be to decide; see `hopeless`."""
    fraction = rungs.preview.prompts * rungs.preview.seeds / (rungs.score.prompts * rungs.score.seeds)
    alpha = (1 - LEVEL) / max(bounds, 1)
    level = look_levels([fraction] if fraction == 1 else [fraction, 1.0], alpha)[0]
    freedom = rungs.preview.prompts - 1
    return float(stats.t.ppf((1 + level) / 2, freedom) / stats.t.ppf((1 + LEVEL) / 2, freedom))
