"""Pareto fronts: what nothing else beats in both sparsity and a measure."""

from __future__ import annotations

import math
from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the points that no other point beats in both coordinates.

    Args:
        points: (gain, loss): more gain and less loss are better. A loss that is no number is never on the front.

    Returns:
        Positions, least gain first. Of equal points the first.
    """
    best, found = math.inf, []
    for position in sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1], i)):
        if points[position][1] < best:
            best = points[position][1]
            found.append(position)
    return found[::-1]
