"""The schedule of a study, from the dense baseline to a validated winner. Pure: knows no Ray, no disk, no clock."""

from __future__ import annotations

from collections.abc import Mapping

from raysense.allocation import LevelGrid
from raysense.evaluation.rungs.cost import RungCosts
from raysense.names import UNIFORM
from raysense.pipelines.cost import Cost, assumed
from raysense.pruning.allocation_rules import AllocationRule
from raysense.pruning.layers import Inventory
from raysense.records import TrialSpec
from raysense.strategies.affordable import Expectation, refuse_small_budget, reserve_of
from raysense.strategies.baseline import baseline
from raysense.strategies.budget import BudgetTracker
from raysense.strategies.climbing import climb, rules_of, search_jointly
from raysense.strategies.context import Findings, SearchContext, best_of
from raysense.strategies.runner import Schedule, StrategyRunner
from raysense.strategies.sensitivity import sensitivity
from raysense.strategies.user_defined import UserStrategy, user_strategies
from raysense.strategies.validation import validate
from raysense.study import Study


def make_strategy(
    study: Study,
    inventory: Inventory,
    grid: LevelGrid,
    rules: Mapping[str, AllocationRule],
    calibration_cost: int = 0,
    cost: Cost | None = None,
    own: Mapping[str, UserStrategy] | None = None,
    swept: Mapping[str, Mapping[int, float]] | None = None,
) -> StrategyRunner[Findings]:
    """The study's strategy.

    Args:
        study: The study.
        inventory: Its layers.
        grid: Their levels.
        rules: Allocation rules that need no measurement, by name.
        calibration_cost: NFE of the calibration at most; 0 if the study needs none.
        cost: Of an image, as foreseen; replaced by what the baseline counts.
        own: Search strategies of the user's own; those that the study names by dotted path if missing.
        swept: Group -> zeros -> probe error that a sweep of the same study has stored.

    Raises:
        RaysenseError: `budget.max_nfe` does not even cover the dense pipeline; nothing is spent yet.
    """
    costs = RungCosts(study, cost or assumed(study.sampling), calibration_cost)
    own = user_strategies(study.search.strategies) if own is None else own
    context = SearchContext(
        study, inventory, grid, rules, study.constraints.bounds(), costs, own, swept or {}
    )
    refuse_small_budget(context)

    def cost_of(spec: TrialSpec) -> int:
        return sum(context.costs.of(request) for request in spec.requests)

    tracker = BudgetTracker(study.budget, cost_of, reserve_of(context))
    return StrategyRunner(lambda runner: _stages(runner, context), cost_of, tracker)


def _stages(runner: StrategyRunner[Findings], context: SearchContext) -> Schedule[Findings]:
    """Baseline, sensitivity, search, validation."""
    expect = Expectation(runner, context)
    dense = yield from baseline(runner, context)

    expect.from_here("sensitivity")
    curves = yield from sensitivity(runner, context)

    expect.from_here("climbs")
    rules = rules_of(context, dense, curves)
    climbed = yield from climb(runner, context, rules)
    expect.from_here("joint")
    tried = climbed + (yield from search_jointly(runner, context, curves, climbed))

    expect.from_here("validation")
    validated = yield from validate(runner, context, rules, tried)
    # Whatever passed competes, whichever strategy looked best on the search's own prompts.
    uniform = best_of([candidate for candidate in validated if candidate.strategy == UNIFORM])
    return Findings(dense, curves, tried, validated, best_of(validated), uniform)
