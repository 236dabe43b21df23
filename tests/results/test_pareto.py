"""Fronts by hand."""

from __future__ import annotations

import math

from raysense.results.pareto import front


def test_nothing_on_the_front_is_beaten() -> None:
    points = [(0.1, 0.0), (0.5, 0.2), (0.4, 0.3), (0.9, 1.0), (0.9, 1.0), (0.7, math.nan)]
    assert front(points) == [0, 1, 3]
    assert front([]) == []
