"""Knee and collapse of curves whose places are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from raysense.strategies.cliffs import Seen, collapse_of, knee_of, next_place

WIDTH = 0.01


def hinge(sparsity: float, knee: float = 0.52) -> float:
    """A loss of 0.05 a whole weight up to the knee, then 2; saturated at 0.6."""
    return min(0.05 * sparsity + max(0.0, sparsity - knee) * 2, 0.6)


def smooth(sparsity: float) -> float:
    """As pruning does: next to nothing, then a cliff, then saturation; half of 0.6 at 0.7."""
    return float(0.6 / (1 + np.exp(-(sparsity - 0.7) / 0.03)) - 0.6 / (1 + np.exp(0.7 / 0.03)))


def seen(curve: Callable[[float], float], at: list[float], width: float = WIDTH) -> list[Seen]:
    return [Seen(s, curve(s), curve(s) - width, curve(s) + width) for s in at]


GRID = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def refined(curve: Callable[[float], float], within: float, most: int = 20) -> tuple[list[Seen], int]:
    points, asked = seen(curve, GRID), 0
    while asked < most and (place := next_place(points, 0.6, within, 0.95)) is not None:
        points += seen(curve, [place])
        asked += 1
    return points, asked


def test_a_hinge_is_found_where_it_is() -> None:
    points, asked = refined(hinge, 0.01)
    assert asked <= 12
    knee, collapse = knee_of(points, 0.6), collapse_of(points, 0.6)
    assert knee is not None and collapse is not None  # noqa: PT018 (for mypy)
    assert knee.value == pytest.approx(0.52, abs=0.01)
    assert knee.ci_low <= 0.52 <= knee.ci_high
    # 0.05 s + 2 (s - 0.52) = 0.3
    assert collapse.value == pytest.approx(1.34 / 2.05, abs=0.01)
    assert collapse.ci_low <= 1.34 / 2.05 <= collapse.ci_high
    assert collapse.ci_high - collapse.ci_low < 0.05


@pytest.mark.parametrize("within", [0.01, 0.04])
def test_refinement_stops_once_the_places_are_known_to_the_wanted_width(within: float) -> None:
    points, asked = refined(smooth, within)
    assert 0 < asked < 16
    at = sorted(point.sparsity for point in points)
    low = max(s for s in at if smooth(s) < 0.3)
    high = min(s for s in at if smooth(s) >= 0.3)
    assert high - low <= 2 * within + 1e-9
    collapse = collapse_of(points, 0.6)
    assert collapse is not None
    assert collapse.ci_low <= 0.7 <= collapse.ci_high


def test_wider_intervals_of_points_widen_those_of_places() -> None:
    places = [collapse_of(seen(hinge, GRID, width), 0.6) for width in (0.01, 0.2)]
    widths = [place.ci_high - place.ci_low for place in places if place]
    assert widths[1] > widths[0]


def test_a_straight_line_has_no_knee_and_what_loses_little_no_collapse() -> None:
    line = seen(lambda s: 0.1 * s, GRID)
    assert collapse_of(line, 0.6) is None
    bent = seen(lambda s: 0.1 * s**0.5, GRID)  # it slows down
    assert knee_of(bent, 0.6) is None
    assert next_place(bent, 0.6, 0.01, 0.95) is None
    assert knee_of(line[:2], 0.6) is None
