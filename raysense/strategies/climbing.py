"""The third stage: every strategy's sparsest total, then those that learn from one measurement to the next."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from raysense.allocation import Allocation
from raysense.metrics.builtin.probe_error import PROBE_ERROR
from raysense.names import EVOPRESS, ITERATIVE, JOINT, OUTLIERS, RANDOM, SOLVER, SWITCHES, TPE
from raysense.pruning.allocation_rules import AllocationRule
from raysense.records import CALIBRATION, Evaluation, EvaluationRequest, TrialSpec
from raysense.strategies.asking import asked_for, judged
from raysense.strategies.baselines import Random, Switches, Tpe
from raysense.strategies.context import (
    Candidate,
    Findings,
    SearchContext,
    best_of,
    candidate_of,
    headline_of,
    utilisation_of,
)
from raysense.strategies.curves import Curve, damages_of
from raysense.strategies.evopress import evopress
from raysense.strategies.joint import JointProposer
from raysense.strategies.line_search import Step, next_share
from raysense.strategies.proposers import Proposer
from raysense.strategies.rules import outlier_weighed, solved
from raysense.strategies.runner import Coroutine, OutOfBudget, Stage, StrategyRunner
from raysense.strategies.user_defined import propose


def rules_of(
    context: SearchContext, dense: Mapping[str, Evaluation], curves: Sequence[Curve]
) -> dict[str, AllocationRule]:
    """The allocation rules of the study's strategies, by name."""
    strategies = context.study.search.strategies
    rules = {name: context.rules[name] for name in context.rule_names}
    for name in [name for name in OUTLIERS if name in strategies]:
        rules[name] = outlier_weighed(name, context.inventory, context.grid, dense[CALIBRATION])
    if curves:
        rules[SOLVER] = _solver(context, [curve.refined() for curve in curves], {})
    return rules


def climb(
    runner: StrategyRunner[Findings], context: SearchContext, rules: Mapping[str, AllocationRule]
) -> Stage[list[Candidate]]:
    """Every rule's sparsest total inside the budget; gives all candidates."""
    runner.headline = "climbing: the sparsest total of every strategy"
    climbed: list[list[Candidate]] = yield [_climb(context, name, rule) for name, rule in rules.items()]
    return [candidate for candidates in climbed for candidate in candidates]


def search_jointly(
    runner: StrategyRunner[Findings],
    context: SearchContext,
    curves: Sequence[Curve],
    climbed: Sequence[Candidate],
) -> Stage[list[Candidate]]:
    """Let the strategies that learn propose, side by side; gives their candidates."""
    search = context.study.search
    runner.headline = "searching jointly: " + headline_of(context, climbed)
    coroutines: list[Coroutine] = []
    for name, proposer in _proposers(context, curves).items():
        # Everybody starts from what the allocation rules gave; the joint search also from the solver's climb.
        for known in climbed:
            if name == JOINT or known.strategy != SOLVER:
                proposer.tell(known.allocation, utilisation_of(known, context.bounds))
        left = itertools.count()
        coroutines += [
            _lane(context, name, proposer, left)
            for _ in range(min(search.lookahead, search.offspring if search.rounds else 0))
        ]
    allowed = _allowed(context, curves)
    start = best_of([candidate for candidate in climbed if candidate.strategy not in (SOLVER, JOINT)])
    if EVOPRESS in search.strategies and start is not None:
        coroutines.append(_evopress(context, start.allocation, allowed))
    coroutines += [propose(context, name, own, climbed, allowed) for name, own in context.own.items()]
    if not coroutines:
        return []
    found: list[list[Candidate]] = yield coroutines
    return [candidate for candidates in found if candidates for candidate in candidates]


def _proposers(context: SearchContext, curves: Sequence[Curve]) -> dict[str, Proposer]:
    study, grid, groups = context.study, context.grid, context.groups
    strategies, seeds = study.search.strategies, {n: [study.seed, i] for i, n in enumerate(ITERATIVE)}
    proposers: dict[str, Proposer] = {}
    if curves and study.search.rounds:
        proposers[JOINT] = _learned(context, curves)
    if RANDOM in strategies:
        proposers[RANDOM] = Random(grid, groups, seeds[RANDOM])
    if SWITCHES in strategies:
        proposers[SWITCHES] = Switches(grid, seeds[SWITCHES])
    if TPE in strategies:
        proposers[TPE] = Tpe(grid, groups, study.seed)
    return proposers


def _climb(context: SearchContext, strategy: str, rule: AllocationRule) -> Coroutine:
    """The sparsest total of an allocation rule that stays inside the budget; returns all candidates."""
    tried, steps = list[Candidate](), list[Step]()
    most = context.grid.max_zeros / context.grid.n
    try:
        for number in range(context.study.search.bisections):
            share = next_share(steps, most)
            candidate = yield from judged(
                context, strategy, f"{strategy}/{number}", rule(context.zeros(share))
            )
            tried.append(candidate)
            steps.append(Step(share, candidate.feasible, context.utilisation(candidate)))
    except OutOfBudget:
        pass
    return tried


def _lane(context: SearchContext, strategy: str, proposer: Proposer, left: Iterator[int]) -> Coroutine:
    """Proposes, has it judged, tells, again and again; as many lanes side by side as may be outstanding.

    There are no generations: a lane goes on as soon as its own candidate is judged. `search.offspring` lanes, so that
    all but the first of each know what came before. Returns its candidates.
    """
    found: list[Candidate] = []
    try:
        while (number := next(left)) < context.study.search.rounds * context.study.search.offspring:
            allocation = proposer.propose()
            candidate: Candidate = yield from judged(context, strategy, f"{strategy}/{number}", allocation)
            proposer.tell(allocation, utilisation_of(candidate, context.bounds))
            found.append(candidate)
    except OutOfBudget:
        pass
    return found


def _allowed(context: SearchContext, curves: Sequence[Curve]) -> int:
    """NFE that a strategy beside the joint search may spend: its candidates', its curves' and the solver's climb's."""
    search, costs = context.study.search, context.costs
    probes = sum(len(curve.zeros) - 1 for curve in curves)
    solver = search.bisections if curves else 0
    return (search.rounds * search.offspring + solver) * costs.climb + probes * costs.probe


def _evopress(context: SearchContext, start: Allocation, allowed: int) -> Coroutine:
    """EvoPress's procedure on the study's rungs, for so many NFE."""
    study, found, spent = context.study, list[Candidate](), 0
    procedure = evopress(context.grid, start, [study.seed, len(ITERATIVE)])
    stage, pool = next(procedure)
    try:
        for number in itertools.count():
            if spent >= allowed:
                break
            rung = ("probe", "preview", "score")[stage]
            name = f"search/{EVOPRESS}/{number}"
            requests = tuple(EvaluationRequest(a, rung) for a in pool)
            evaluations = yield from asked_for(context, TrialSpec(name, "search", requests))
            spent += sum(evaluation.nfe for evaluation in evaluations)
            if rung == "probe":
                losses = [math.inf if e.failed else e.measures[PROBE_ERROR].value for e in evaluations]
            else:
                candidates = [
                    candidate_of(context, EVOPRESS, a, e) for a, e in zip(pool, evaluations, strict=True)
                ]
                found += candidates if rung == "score" else []
                losses = [utilisation_of(candidate, context.bounds) for candidate in candidates]
            stage, pool = procedure.send(losses)
    except OutOfBudget:
        pass
    return found


def _solver(context: SearchContext, curves: Sequence[Curve], weights: Mapping[str, float]) -> AllocationRule:
    objective = context.study.search.objective
    return solved(curves, context.groups, context.inventory, context.grid, weights, objective)


def _learned(context: SearchContext, curves: Sequence[Curve]) -> JointProposer:
    """The joint search on the study's curves."""
    fine = [curve.refined() for curve in curves]
    damages = damages_of(fine, context.groups, context.grid)

    def solve(zeros: int, weights: Mapping[str, float]) -> Allocation:
        return _solver(context, fine, weights)(zeros)

    return JointProposer(context.grid, damages, [c.group for c in fine], solve, [context.study.seed, 0])
