"""The second stage: a sensitivity curve a group, from few probes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from raysense.allocation import Allocation
from raysense.metrics.builtin.probe_error import PROBE_ERROR
from raysense.names import SOLVER
from raysense.records import EvaluationRequest, StopRule, TrialSpec
from raysense.strategies.context import Findings, SearchContext
from raysense.strategies.curves import Curve, least_known, removed_energy, sparsity_removing
from raysense.strategies.runner import Coroutine, OutOfBudget, Stage, StrategyRunner

HOPELESS_PROBE = 1.0
"""Relative probe error at which a curve ends: the guided prediction is as far off as predicting nothing."""

HARMLESS_PROBE = 3e-5
"""Relative probe error below which a group is as good as untouched: a hundred such groups are not seen in images."""

DOUBT = 0.4
"""Standard deviation of log damage below which a curve is known well enough: halving it changed no allocation's
total damage by more than 2 % on the bundled pipeline, at twice the probes."""


SWEPT = 2
"""Points of a group in a stored sweep from which its curve begins instead of from the two of its own."""


def sensitivity(runner: StrategyRunner[Findings], context: SearchContext) -> Stage[list[Curve]]:
    """Measure how each group's damage grows; gives the curves, none where no strategy needs them."""
    search = context.study.search
    if SOLVER not in search.strategies:
        return []
    runner.headline = f"learning how sensitive {len(context.groups)} {search.granularity}s are"
    found = yield [_curve(context, group, members) for group, members in context.groups.items()]
    return [curve for curve in found if curve is not None]


def _curve(context: SearchContext, group: str, members: Sequence[str]) -> Coroutine:
    """One group's curve from few points: the largest sparsity, a lighter one, then wherever it is least certain.

    It ends where nothing happens (the largest sparsity does no harm), where the probe says that nothing is left of the
    group's work, where the curve is known well enough, or at `search.levels` points.
    """
    grid, most = context.grid, context.study.search.levels
    size = sum(grid.weights(address) for address in members)
    measured: dict[int, float] = dict(context.swept.get(group, {}))
    asked: set[Allocation] = set()

    def curve() -> Curve:
        points = [(0, 0.0)]
        for zeros, damage in sorted(measured.items()):
            points.append((zeros, damage))
            if damage > HOPELESS_PROBE:
                break
        return Curve(group, tuple(z / size for z, _ in points), *zip(*points, strict=True))

    def at(sparsity: float) -> Allocation:
        return Allocation({address: grid.level_for(address, sparsity) for address in members})

    cap = min(grid.max_layer_sparsity, 0.95)
    lighter = sparsity_removing(float(removed_energy(np.array(cap))) / 6)
    wanted = [at(cap), at(lighter)]
    stop: StopRule | None = StopRule(below={PROBE_ERROR: HARMLESS_PROBE})
    if len(measured) >= SWEPT:  # a sweep has: only where it leaves the curve in doubt
        sparsity, doubt = least_known(curve(), HARMLESS_PROBE, HOPELESS_PROBE)
        wanted, stop = [at(sparsity)] if doubt > DOUBT else [], None
    while wanted := [
        allocation for allocation in dict.fromkeys(wanted) if allocation and allocation not in asked
    ]:
        requests = tuple(EvaluationRequest(allocation, "probe") for allocation in wanted)
        name = f"sensitivity/{group}" + (f"/{len(asked)}" if asked else "")
        try:
            evaluations = yield TrialSpec(name, "sensitivity", requests, stop)
        except OutOfBudget:
            return curve() if measured else None
        stop = None
        asked.update(wanted)
        for allocation, evaluation in zip(wanted, evaluations, strict=False):
            if evaluation.failed or not math.isfinite(evaluation.measures[PROBE_ERROR].value):
                continue
            measured[grid.zeros(allocation)] = evaluation.measures[PROBE_ERROR].value
        if len(asked) >= most or len(evaluations) < len(wanted):
            break
        sparsity, doubt = least_known(curve(), HARMLESS_PROBE, HOPELESS_PROBE)
        wanted = [at(sparsity)] if doubt > DOUBT else []
    return curve() if measured or not asked else None
