"""Is what was measured inside the quality budget, and how much of the budget does it use? The one place that decides.

Plain data in, plain data out: the search asks here, and the store writes the answers into its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raysense.metrics.builtin import SPECS, spec_of
from raysense.metrics.spec import RELATIVE, base_of
from raysense.records import Bound, Evaluation

IMAGE_RUNGS = ("preview", "score", "validation")
"""Rungs whose rows are judged."""

_SMALLEST_ROOM = 1e-9


@dataclass(frozen=True)
class Margin:
    """How one bound fares.

    Attributes:
        bound: The bound.
        value: The measured value, in the measure's unit.
        ci_low: Lower end of its two-sided 95 % interval.
        ci_high: Upper end.
        margin: How far the whole interval stays inside the bound; negative: it does not.
    """

    bound: Bound
    value: float
    ci_low: float
    ci_high: float
    margin: float


def margins(evaluation: Evaluation, bounds: Sequence[Bound], stretch: float = 1.0) -> list[Margin]:
    """Every bound beside what was measured.

    Args:
        evaluation: What was measured.
        bounds: The quality budget.
        stretch: How many times wider than the reported interval the one is that must clear the bound.
    """
    result = []
    for bound in bounds:
        m = evaluation.measures[bound.measure]
        margin = bound.margin(
            m.value - stretch * (m.value - m.ci_low), m.value + stretch * (m.ci_high - m.value)
        )
        result.append(Margin(bound, m.value, m.ci_low, m.ci_high, margin))
    return result


def is_feasible(evaluation: Evaluation, bounds: Sequence[Bound], stretch: float = 1.0) -> bool:
    """Whether each measure's whole interval clears its bound.

    With the reported 95 % interval each errs in at most 2.5 % of cases.
    """
    if evaluation.failed or evaluation.collapsed:
        return False
    return all(margin.margin >= 0 for margin in margins(evaluation, bounds, stretch))


def utilisation(evaluation: Evaluation, bounds: Sequence[Bound], stretch: float = 1.0) -> float | None:
    """The largest share of a bound's room, from the dense pipeline to the bound, that the interval's worse end uses.

    0 is the dense pipeline, 1 lies on a bound, above 1 is outside; None where nothing could be judged.
    """
    if evaluation.failed or evaluation.collapsed:
        return None
    shares = []
    for margin in margins(evaluation, bounds, stretch):
        room = abs(margin.bound.limit - _dense(evaluation, margin.bound.measure))
        shares.append(1 - margin.margin / max(room, _SMALLEST_ROOM))
    return max(shares)


def by_value(evaluation: Evaluation, bounds: Sequence[Bound]) -> float | None:
    """As `utilisation`, by the values instead of the intervals' worse ends."""
    return utilisation(evaluation, bounds, stretch=0.0)


def _dense(evaluation: Evaluation, measure: str) -> float:
    """The dense pipeline's value, from the evaluation's own paired measures."""
    spec = spec_of(measure)
    if measure != base_of(measure):
        return 0.0
    if spec.dense is not None:
        return spec.dense
    # Of a metric of the study's own the row itself says which of the two differences it has.
    endings = (spec.relative,) if measure in SPECS else RELATIVE
    ending = next(ending for ending in endings if measure + ending in evaluation.measures)
    difference = evaluation.measures[measure + ending].value
    return evaluation.measures[measure].value + (difference if ending == "_drop" else -difference)


@dataclass(frozen=True)
class Budget:
    """The quality budget of a study as its store keeps it.

    Attributes:
        bounds: The bounds.
        stretch: Rung -> how many times wider than the reported intervals those are that must clear the bounds;
            1 where missing.
    """

    bounds: tuple[Bound, ...]
    stretch: Mapping[str, float] = field(default_factory=dict)

    def judged(self, evaluation: Evaluation) -> dict[str, Any]:
        """The columns ``feasible`` and ``constraint_utilisation`` of an evaluation's row; nulls where none applies."""
        if evaluation.rung not in IMAGE_RUNGS or evaluation.failed:
            return {"feasible": None, "constraint_utilisation": None}
        if evaluation.collapsed or any(b.measure not in evaluation.measures for b in self.bounds):
            return {"feasible": False, "constraint_utilisation": None}
        stretch = self.stretch.get(evaluation.rung, 1.0)
        return {
            "feasible": is_feasible(evaluation, self.bounds, stretch),
            "constraint_utilisation": utilisation(evaluation, self.bounds, stretch),
        }

    def to_fields(self) -> dict[str, Any]:
        """As plain JSON-able fields."""
        bounds = [
            {"field": b.field, "metric": b.measure, "is_upper": b.is_upper, "bound": b.limit}
            for b in self.bounds
        ]
        return {"bounds": bounds, "stretch": dict(self.stretch)}

    @staticmethod
    def from_fields(fields: Mapping[str, Any]) -> Budget:
        """What `to_fields` gave."""
        bounds = [Bound(b["field"], b["metric"], b["is_upper"], b["bound"]) for b in fields["bounds"]]
        return Budget(tuple(bounds), dict(fields["stretch"]))
