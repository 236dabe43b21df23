"""Is an evaluation inside the quality budget? The one place that decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raysense.evaluation.records import Evaluation, StopRule
from raysense.study import Bound

_NEEDS_FULL_SAMPLE = ("frechet", "frechet_rise")
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


def hopeless(bounds: Sequence[Bound]) -> StopRule:
    """Stop climbing the rungs once an interval lies wholly on the wrong side of a bound."""
    certain = [bound for bound in bounds if bound.measure not in _NEEDS_FULL_SAMPLE]
    return StopRule(
        above={bound.measure: bound.limit for bound in certain if bound.is_upper},
        below={bound.measure: bound.limit for bound in certain if not bound.is_upper},
    )
