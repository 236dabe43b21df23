"""The last stage: contenders on held-out prompts, least sparse first, and on beyond what the search found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raysense.allocation import Allocation
from raysense.feasibility import is_feasible
from raysense.names import UNIFORM
from raysense.pruning.allocation_rules import AllocationRule
from raysense.records import EvaluationRequest, TrialSpec
from raysense.strategies.asking import asked_for
from raysense.strategies.context import Candidate, Findings, SearchContext, best_of, headline_of
from raysense.strategies.proposers import scaled
from raysense.strategies.runner import Coroutine, OutOfBudget, Stage, StrategyRunner
from raysense.strategies.verdict import held_out_stretch


def validate(
    runner: StrategyRunner[Findings],
    context: SearchContext,
    rules: Mapping[str, AllocationRule],
    tried: Sequence[Candidate],
) -> Stage[list[Candidate]]:
    """Test the best of all strategies and of those that compete; gives the finalists that were tested.

    Held-out prompts are usually more than the search's own, so their intervals leave room for more zeros. Whoever
    passed with all of its total goes on beyond it, once nobody else needs the budget for that.
    """
    runner.headline = "validating on held-out prompts: " + headline_of(context, tried)
    contenders = _contenders(context, tried)
    lines = {c.strategy: _line(context, c, rules) for c in contenders}
    tests: list[list[Candidate]] = yield [
        _in_turn(context, contender, lines[contender.strategy], context.safer) for contender in contenders
    ]
    unbeaten = [
        contender
        for contender, test in zip(contenders, tests, strict=True)
        if test and test[-1].feasible and test[-1].zeros == contender.zeros
    ]
    if unbeaten and context.beyond:
        tests += yield [
            _in_turn(context, contender, lines[contender.strategy], context.beyond) for contender in unbeaten
        ]
    return [candidate for test in tests for candidate in test]


def _contenders(context: SearchContext, tried: Sequence[Candidate]) -> list[Candidate]:
    """The best of all, and the best of each other strategy that is to be validated beside it."""
    best = best_of(tried)
    if best is None:
        return []
    names = dict.fromkeys(c.strategy for c in tried) if context.study.search.compare else (UNIFORM,)
    rivals = [best_of([c for c in tried if c.strategy == name]) for name in names if name != best.strategy]
    return [best, *(rival for rival in rivals if rival is not None)]


def _in_turn(
    context: SearchContext, contender: Candidate, line: AllocationRule, shares: Sequence[float]
) -> Coroutine:
    """Held-out prompts, least sparse first, stopping at the first failure: no test has to share with the next.

    Fixed-sequence testing keeps the error of passing *any* infeasible finalist of a strategy at that of one test
    (Maurer, Hothorn & Lehmacher 1995; Westfall & Krishen 2001, "Optimally weighted, fixed sequence and gatekeeper
    multiple testing procedures"). The sequence is fixed by the search, before any held-out image. The strategies that
    compete share the error: see `held_out_stretch`.

    Args:
        context: The study.
        contender: What the strategy found.
        line: Its allocations by total.
        shares: Of the contender's total, in the order of testing.
    """
    tested: list[Candidate] = []
    strategy, grid = contender.strategy, context.grid
    least = 0 if shares[0] <= 1 else contender.zeros
    try:
        for share in shares:
            allocation = line(min(int(contender.zeros * share), grid.max_zeros))
            zeros = grid.zeros(allocation)
            if zeros <= least:
                continue  # no sparser than what passed: levels are coarse, or nothing more is allowed
            name = f"validation/{strategy}/{share:.4g}"
            spec = TrialSpec(name, "validation", (EvaluationRequest(allocation, "validation"),))
            (evaluation,) = yield from asked_for(context, spec)
            feasible = is_feasible(evaluation, context.bounds, held_out_stretch(context.study))
            tested.append(Candidate(strategy, allocation, zeros, evaluation, feasible))
            if not feasible:
                break
            least = zeros
    except OutOfBudget:
        pass
    return tested


def _line(
    context: SearchContext, contender: Candidate, rules: Mapping[str, AllocationRule]
) -> AllocationRule:
    """The contender itself, and what its strategy gives at other totals."""

    def rule(zeros: int) -> Allocation:
        if zeros == contender.zeros:
            return contender.allocation
        own = rules.get(contender.strategy)
        return own(zeros) if own is not None else scaled(context.grid, contender.allocation, zeros)

    return rule
