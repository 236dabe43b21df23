"""Where a measured curve accelerates and where it collapses, each with an interval. Pure arithmetic.

A curve is a loss over the share of a group's weights that leaves, from nothing at 0. What there is to lose, `whole`, is
the most that any point of the sweep lost on the same rung.

*Collapse*: where the loss first reaches half of `whole`. The place is read off the straight lines between measured
points; its interval goes from where the upper ends of the points' intervals reach the half to where the lower ends do,
and is never narrower than the two points between which the values cross.

*Knee*: where the loss per removed weight accelerates. Up to the first point past the collapse, two straight lines are
fitted (least squares, the first through the origin, the second steeper): the knee is where they meet. Its interval is
that of `DRAWS` refits to values drawn from the points' own intervals, and never narrower than the two measured points
around it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raysense.metrics.builtin import SPECS
from raysense.metrics.intervals import NORMAL
from raysense.metrics.spec import base_of

Floats = npt.NDArray[np.float64]

FEWEST = 3
"""Points of a curve that is asked where its cliff is."""

DRAWS = 400
"""Refits behind a knee's interval."""

_FINE = 0.0025  # of the knees that are tried


@dataclass(frozen=True)
class Seen:
    """A measured point of a curve.

    Attributes:
        sparsity: Share of the group's weights that left.
        value: The loss.
        ci_low: Lower end of its 95 % interval.
        ci_high: Upper end.
    """

    sparsity: float
    value: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class Place:
    """A sparsity with its interval."""

    value: float
    ci_low: float
    ci_high: float


def seen_at(sparsity: float, told: tuple[float, float, float] | None, whole: float) -> Seen:
    """A point whose loss was told with both ends; a broken output, which has no finite loss, has lost all there is."""
    if told is None or not math.isfinite(told[0]):
        return Seen(sparsity, whole, whole, whole)
    return Seen(sparsity, *told)


def whole_of(measure: str, lost: Iterable[float]) -> float:
    """What there is to lose on a rung: the most that any point lost; of an error at most 1, when nothing is left."""
    most = max((value for value in lost if math.isfinite(value)), default=0.0)
    spec = SPECS.get(base_of(measure))
    return min(most, 1.0) if spec is not None and spec.kind == "probe" else most


def collapse_of(seen: Sequence[Seen], whole: float) -> Place | None:
    """Where the loss first reaches half of `whole`; None where no measured point does."""
    points = _from_origin(seen)
    half = whole / 2
    if whole <= 0 or not (bracket := _crossing(points, half)):
        return None
    low, high = bracket
    place = _reached(points, half, lambda point: point.value)
    assert place is not None
    early = _reached(points, half, lambda point: point.ci_high)
    late = _reached(points, half, lambda point: point.ci_low)
    last = points[-1].sparsity
    return Place(
        place,
        min(low.sparsity, place if early is None else early),
        max(high.sparsity, last if late is None else late),
    )


def knee_of(seen: Sequence[Seen], whole: float, seed: int = 0) -> Place | None:
    """Where the loss accelerates; None for fewer than three points before the collapse, or if it does not."""
    points = _up_to_collapse(seen, whole)
    place = _knee(points)
    if place is None:
        return None
    rng = np.random.default_rng(seed)
    values = np.array([point.value for point in points])
    sd = np.array([(point.ci_high - point.ci_low) / (2 * NORMAL) for point in points])
    drawn = values + sd * rng.standard_normal((DRAWS, len(points)))
    found = _best_knees(np.array([point.sparsity for point in points]), drawn)
    found = found[np.isfinite(found)]
    low, high = np.percentile(found, [2.5, 97.5]) if len(found) else (place, place)
    left, right = _around(points, place)
    return Place(place, min(float(low), left), max(float(high), right))


def next_place(seen: Sequence[Seen], whole: float, within: float, top: float) -> float | None:
    """Where the next point tells most about collapse and knee; None where both are known to ± `within`.

    Args:
        seen: What is measured.
        whole: What there is to lose.
        within: How far on either side a place may be open.
        top: The largest sparsity that can be measured.
    """
    points = _from_origin(seen)
    if bracket := _crossing(points, whole / 2):
        low, high = bracket
        if high.sparsity - low.sparsity > 2 * within + 1e-9:
            return (low.sparsity + high.sparsity) / 2
    near = _up_to_collapse(seen, whole)
    if (place := _knee(near)) is None:
        return None
    left, right = _around(near, place)
    if right - left <= 2 * within + 1e-9:
        return None
    inside = left + within / 2 < place < right - within / 2
    return min(place if inside else (left + right) / 2, top)


def _from_origin(seen: Sequence[Seen]) -> list[Seen]:
    return [Seen(0.0, 0.0, 0.0, 0.0), *sorted(seen, key=lambda point: point.sparsity)]


def _crossing(points: Sequence[Seen], half: float) -> tuple[Seen, Seen] | None:
    """The neighbours between which the value first reaches `half`."""
    return next(((a, b) for a, b in itertools.pairwise(points) if a.value < half <= b.value), None)


def _reached(points: Sequence[Seen], half: float, of: Callable[[Seen], float]) -> float | None:
    """Where the straight lines between points first reach `half`."""
    for a, b in itertools.pairwise(points):
        if of(a) < half <= of(b):
            return a.sparsity + (half - of(a)) / (of(b) - of(a)) * (b.sparsity - a.sparsity)
    return None


def _up_to_collapse(seen: Sequence[Seen], whole: float) -> list[Seen]:
    """The points up to the first one that lost half of all."""
    points = _from_origin(seen)
    end = next((i for i, point in enumerate(points) if point.value >= whole / 2 > 0), len(points) - 1)
    return points[: end + 1]


def _around(points: Sequence[Seen], place: float) -> tuple[float, float]:
    """The measured sparsities on either side of a place."""
    left = max(point.sparsity for point in points if point.sparsity <= place)
    right = min((point.sparsity for point in points if point.sparsity > place), default=left)
    return left, right


def _knee(points: Sequence[Seen]) -> float | None:
    if len(points) < 4:
        return None
    at = np.array([point.sparsity for point in points])
    found = float(_best_knees(at, np.array([[point.value for point in points]]))[0])
    return found if np.isfinite(found) else None


def _best_knees(at: Floats, values: Floats) -> Floats:
    """The knee of each row of (rows, points) values; NaN where no second line is steeper than the first."""
    tried = np.arange(at[1], at[-1], _FINE)
    best = np.full(len(values), np.inf)
    knees = np.full(len(values), np.nan)
    for knee in tried:
        basis = np.stack([at, np.maximum(at - knee, 0.0)], axis=1)
        slopes = values @ np.linalg.pinv(basis).T
        left = ((values - slopes @ basis.T) ** 2).sum(axis=1)
        better = (left < best) & (slopes[:, 1] > 0)
        best, knees = np.where(better, left, best), np.where(better, knee, knees)
    return knees
