"""Along one line of allocations, the sparsest total inside the quality budget, in few steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

POWER = 4.0
"""How the constraint utilisation grows with the total, ``u ∝ total^POWER``, as long as one point is all that is known.
Between 0.9 and 1 of the sparsest total of the two bundled pipelines' default studies it is 4 to 7, and less below."""

EDGE = 0.1
"""A step stays so far inside the bracket, relatively: estimates are not exact, and an interval has to shrink."""


@dataclass(frozen=True)
class Step:
    """A total that was judged.

    Attributes:
        share: The total, as a share of all selected weights.
        feasible: Whether it lies inside the quality budget.
        utilisation: Its constraint utilisation; infinite where the output broke.
    """

    share: float
    feasible: bool
    utilisation: float


def next_share(tried: Sequence[Step], most: float) -> float:
    """The share to judge next: where the utilisation is expected to be 1, kept inside the bracket.

    A bracket, from the largest share that was inside the budget to the smallest that was not, shrinks with every step.
    Where the utilisations of both its ends are known, a power law through them says where 1 lies (the secant rule on
    logarithms); where only one is, a power law through that one. Bisection otherwise, and after two steps that fell on
    the same side: a false position converges from one side only, see Dowell & Jarratt, "A modified regula falsi method
    for computing the root of an equation", 1971.

    Args:
        tried: What was judged so far.
        most: The largest share there is.

    Returns:
        A share above 0 and below `most`.
    """
    low = max((step for step in tried if step.feasible), key=lambda s: s.share, default=Step(0.0, True, 0.0))
    beyond = [step for step in tried if not step.feasible and step.share > low.share]
    high = min(beyond, key=lambda s: s.share, default=Step(most, False, math.inf))
    width, middle = high.share - low.share, (low.share + high.share) / 2
    guess = _guess(low, high)
    if guess is None:
        return middle
    if len(tried) > 1 and tried[-1].feasible == tried[-2].feasible:
        # Once more on that side would halve the bracket at best if it were wrong: meet in between.
        guess = (guess + middle) / 2
    return min(max(guess, low.share + EDGE * width), high.share - EDGE * width)


def _guess(low: Step, high: Step) -> float | None:
    """Where the utilisation is 1 by a power law through what is known of both ends."""
    known_low = low.share > 0 and 0 < low.utilisation < 1
    known_high = 1 < high.utilisation < math.inf
    if known_low and known_high:
        power = math.log(high.utilisation / low.utilisation) / math.log(high.share / low.share)
        return low.share * math.pow(low.utilisation, -1 / power)
    if known_low:
        return low.share * math.pow(low.utilisation, -1 / POWER)
    if known_high:
        return high.share * math.pow(high.utilisation, -1 / POWER)
    return None
