"""Where the next total of a climb lies, on utilisations that are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysense.strategies.line_search import EDGE, Step, next_share

MOST = 0.95
EDGES = np.linspace(0.1, 0.7, 61).tolist()
"""Where the budget ends."""


def found(utilisation: Callable[[float], float], steps: int = 5, most: float = MOST) -> float:
    """The largest share inside the budget after so many steps."""
    tried = list[Step]()
    for _ in range(steps):
        share = next_share(tried, most)
        used = utilisation(share)
        tried.append(Step(share, used <= 1, used if used < 20 else math.inf))
    return max((step.share for step in tried if step.feasible), default=0.0)


def test_the_first_step_is_the_middle_and_what_breaks_is_halved() -> None:
    assert next_share([], MOST) == MOST / 2
    assert next_share([Step(0.4, False, math.inf)], MOST) == pytest.approx(0.2)


def test_a_power_law_through_both_ends_is_solved_at_once() -> None:
    tried = [Step(0.5, False, 32 * 0.8**5), Step(0.25, True, 0.8**5)]  # utilisation (share / 0.3125)⁵
    assert next_share(tried, MOST) == pytest.approx(0.3125)


def test_after_two_steps_on_one_side_it_meets_the_middle() -> None:
    one = [Step(0.475, False, math.inf), Step(0.2, True, 0.3)]
    two = [*one, Step(0.25, True, 0.5)]
    guess = 0.25 * 0.5**-0.25
    assert next_share(two, MOST) == pytest.approx((guess + (0.25 + 0.475) / 2) / 2)


@pytest.mark.parametrize("power", [2.0, 4.0, 7.0])
def test_five_steps_end_nearer_than_bisection_could(power: float) -> None:
    """Bisection ends with a bracket of 1/32 of all shares: on average half of that is lost."""
    shares = [found(lambda share, edge=edge: (share / edge) ** power) / edge for edge in EDGES]
    assert np.mean(shares) > 0.985
    assert max(shares) <= 1


def test_a_wall_that_nothing_foretells_costs_little() -> None:
    """Where the utilisation says nothing of the bound, bisection would end at 0.99."""
    shares = [
        found(lambda share, edge=edge: 0.3 * share / edge if share <= edge else math.inf, steps=7) / edge
        for edge in EDGES
    ]
    assert np.mean(shares) > 0.93


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.floats(0, 100)), max_size=6))
def test_a_step_lies_inside_the_bracket_whatever_was_measured(rows: list[tuple[float, bool, float]]) -> None:
    tried = [Step(share * MOST, feasible, used) for share, feasible, used in rows]
    low = max((step.share for step in tried if step.feasible), default=0.0)
    high = min((s.share for s in tried if not s.feasible and s.share > low), default=MOST)
    if high > low:
        share = next_share(tried, MOST)
        slack = EDGE * (high - low)
        assert low + slack * 0.999 <= share <= high - slack * 0.999
