"""The order in which finalists are tested on held-out prompts."""

from __future__ import annotations

from raysense.allocation import Allocation
from raysense.evaluation.rungs.cost import RungCosts
from raysense.pipelines.cost import assumed
from raysense.records import EvaluationRequest
from raysense.strategies.context import SAFER, Candidate, SearchContext
from raysense.strategies.validation import _in_turn
from tests.strategies.test_schedule import Landscape, made_up


def test_shares_that_come_to_the_same_zeros_are_tested_once_and_the_best_itself_still() -> None:
    study, inventory, grid, _ = made_up()
    landscape = Landscape(inventory, grid)
    light, best = grid.uniform(0.02), grid.uniform(0.04)
    found = landscape.evaluate(EvaluationRequest(best, "score"))
    contender = Candidate("mine", best, grid.zeros(best), found, True)

    def coarse(zeros: int) -> Allocation:
        return best if zeros >= contender.zeros else light

    costs = RungCosts(study, assumed(study.sampling), 0)
    context = SearchContext(study, inventory, grid, {}, study.constraints.bounds(), costs)
    testing = _in_turn(context, contender, coarse, SAFER)
    spec = next(testing)
    asked = []
    try:
        while True:
            asked.append(spec.name)
            spec = testing.send([landscape.evaluate(request) for request in spec.requests])
    except StopIteration as finished:
        tested = finished.value
    assert asked == ["validation/mine/0.8", "validation/mine/1"]
    assert [candidate.allocation for candidate in tested] == [light, best]
    assert all(candidate.feasible for candidate in tested)
