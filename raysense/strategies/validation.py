"""The last stage: contenders on held-out prompts, least sparse first."""

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
    """Test the best of all strategies and of those that compete; gives the finalists that were tested."""
    runner.headline = "validating on held-out prompts: " + headline_of(context, tried)
    tests: list[list[Candidate]] = yield [
        _validate(context, contender.strategy, _below(context, contender, rules), contender.zeros)
        for contender in _contenders(context, tried)
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


def _validate(context: SearchContext, strategy: str, rule: AllocationRule, zeros: int) -> Coroutine:
    """Held-out prompts, least sparse first, stopping at the first failure: no test has to share with the next.

    Fixed-sequence testing keeps the error of passing *any* infeasible finalist of a strategy at that of one test
    (Maurer, Hothorn & Lehmacher 1995; Westfall & Krishen 2001, "Optimally weighted, fixed sequence and gatekeeper
    multiple testing procedures"). The strategies that compete share the error: see `held_out_stretch`.
    """
    tested: list[Candidate] = []
    try:
        for share in context.safer:
            allocation = rule(int(zeros * share))
            spec = TrialSpec(
                f"validation/{strategy}/{share}", "validation", (EvaluationRequest(allocation, "validation"),)
            )
            (evaluation,) = yield from asked_for(context, spec)
            feasible = is_feasible(evaluation, context.bounds, held_out_stretch(context.study))
            tested.append(
                Candidate(strategy, allocation, context.grid.zeros(allocation), evaluation, feasible)
            )
            if not feasible:
                break
    except OutOfBudget:
        pass
    return tested


def _below(
    context: SearchContext, contender: Candidate, rules: Mapping[str, AllocationRule]
) -> AllocationRule:
    """The contender itself, and what its strategy gives at smaller totals."""

    def rule(zeros: int) -> Allocation:
        if zeros >= contender.zeros:
            return contender.allocation
        own = rules.get(contender.strategy)
        return own(zeros) if own is not None else scaled(context.grid, contender.allocation, zeros)

    return rule
