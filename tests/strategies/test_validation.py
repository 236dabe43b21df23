"""The order in which finalists are tested on held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence

from raysense.allocation import Allocation
from raysense.evaluation.rungs.cost import RungCosts
from raysense.pipelines.cost import assumed
from raysense.pruning.allocation_rules import AllocationRule, uniform
from raysense.records import Bound, EvaluationRequest
from raysense.strategies.context import SAFER, Candidate, SearchContext
from raysense.strategies.validation import _in_turn
from tests.strategies.test_schedule import Landscape, made_up


def context_of(bounds: Sequence[Bound] | None = None) -> SearchContext:
    """A made-up study's, with its own bounds or others."""
    study, inventory, grid, _ = made_up()
    costs = RungCosts(study, assumed(study.sampling), 0)
    bounds = study.constraints.bounds() if bounds is None else bounds
    return SearchContext(study, inventory, grid, {}, bounds, costs)


def contender_of(context: SearchContext, allocation: Allocation) -> Candidate:
    """An allocation as the search has judged it."""
    found = Landscape(context.inventory, context.grid).evaluate(EvaluationRequest(allocation, "score"))
    return Candidate("mine", allocation, context.grid.zeros(allocation), found, True)


def in_turn(
    context: SearchContext, contender: Candidate, line: AllocationRule, shares: Sequence[float]
) -> tuple[list[str], list[Candidate]]:
    """The trials that are asked, and the finalists."""
    landscape = Landscape(context.inventory, context.grid)
    testing = _in_turn(context, contender, line, shares)
    asked: list[str] = []
    try:
        spec = next(testing)
        while True:
            asked.append(spec.name)
            spec = testing.send([landscape.evaluate(request) for request in spec.requests])
    except StopIteration as finished:
        return asked, finished.value


def test_shares_that_come_to_the_same_zeros_are_tested_once_and_the_best_itself_still() -> None:
    context = context_of()
    light, best = context.grid.uniform(0.02), context.grid.uniform(0.04)
    contender = contender_of(context, best)

    def coarse(zeros: int) -> Allocation:
        return best if zeros >= contender.zeros else light

    asked, found = in_turn(context, contender, coarse, SAFER)
    assert asked == ["validation/mine/0.8", "validation/mine/1"]
    assert [candidate.allocation for candidate in found] == [light, best]
    assert all(candidate.feasible for candidate in found)


def test_beyond_the_best_ends_where_nothing_more_can_be_removed() -> None:
    """Rules refuse totals that the largest sparsity of a layer does not allow."""
    context = context_of(bounds=[])
    grid = context.grid

    def line(zeros: int) -> Allocation:
        return uniform(context.inventory, grid, zeros)

    contender = contender_of(context, line(int(0.99 * grid.max_zeros)))
    asked, found = in_turn(context, contender, line, (1.025, 1.05, 1.075))
    assert asked == ["validation/mine/1.025"]
    assert [candidate.zeros for candidate in found] == [grid.max_zeros]
