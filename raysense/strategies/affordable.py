"""What a study's stages cost together: what is held back for later ones, what is refused, what is foreseen."""

from __future__ import annotations

from collections.abc import Sequence

from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.evaluation.shards import shards_of
from raysense.names import OUTLIERS, SOLVER
from raysense.records import CALIBRATION, EvaluationRequest
from raysense.strategies.context import Findings, SearchContext
from raysense.strategies.runner import StrategyRunner
from raysense.study import Study


def reserve_of(context: SearchContext) -> dict[str, int]:
    """Stage -> what its trials leave: curves are worth nothing without a climb, nor a climb without validation."""
    validation = 2 * len(context.safer) * context.costs.images("validation")
    climb = context.study.search.bisections * context.costs.climb
    return {"sensitivity": climb + validation, "search": validation}


def answer_cost(context: SearchContext) -> int:
    """What one strategy's climb to a validated answer takes beside the baseline; curves only where all need them."""
    search = context.study.search
    curves = 0
    if not (context.rule_names or set(OUTLIERS) & set(search.strategies)):
        probes = len(context.groups) * min(3, search.levels)
        curves = probes * context.costs.probe
    return curves + reserve_of(context)["sensitivity"]


def refuse_small_budget(context: SearchContext) -> None:
    """A budget that cannot pay for a validated answer buys nothing: refused before anything is spent."""
    study = context.study
    least = sum(context.costs.of(request) for request in _baseline_requests(context))
    answer = least + answer_cost(context)
    if study.budget.max_nfe is not None and study.budget.max_nfe < least:
        raise RaysenseError(
            f"`budget.max_nfe` is {study.budget.max_nfe:,} NFE, but measuring the dense pipeline takes "
            f"{least:,} and one strategy's climb to a validated answer some {answer:,} in all; raise it or shrink "
            "`rungs`" + " or `prune.calibration`" * bool(context.costs.calibration)
        )


class Expectation:
    """How much a study will ask in all, for the live view; said anew at each stage, as candidates may end early."""

    def __init__(self, runner: StrategyRunner[Findings], context: SearchContext) -> None:
        self._runner, study, search = runner, context.study, context.study.search
        climbs = len(context.rule_names) + sum(name in search.strategies for name in (SOLVER, *OUTLIERS))
        climbs, joint = climbs * search.bisections, search.rounds * search.offspring * (1 + len(context.own))
        probes, finalists = (
            len(context.groups) * min(3, search.levels),
            2 * (len(context.safer) + bool(context.beyond)),
        )
        first, one = _baseline_requests(context), Allocation({context.grid.addresses[0]: 1})
        climb, test = (with_shards(study, one, rungs) for rungs in (("preview", "score"), ("validation",)))
        runner.wanted = len(first) + probes + (climbs + joint) * len(climb) + finalists * len(test)
        score, held_out = (context.costs.images(rung) for rung in ("score", "validation"))
        self._costs = {
            "baseline": sum(context.costs.of(request) for request in first),
            "sensitivity": probes * context.costs.probe,
            "climbs": climbs * score,
            "joint": joint * score,
            "validation": finalists * held_out,
        }
        self.from_here("baseline")

    def from_here(self, stage: str) -> None:
        """A stage begins: this and what follows is still to come, beside what is spent."""
        stages = list(self._costs)
        left = stages[stages.index(stage) :]
        self._runner.wanted_nfe = self._runner.tracker.spent + sum(self._costs[name] for name in left)


def with_shards(study: Study, allocation: Allocation, rungs: Sequence[str]) -> set[EvaluationRequest]:
    """The requests of some evaluations, with those of their shards."""
    shards = {shard for rung in rungs for shard in shards_of(study, allocation, rung)}
    return {*(EvaluationRequest(allocation, rung) for rung in rungs), *shards}


def _baseline_requests(context: SearchContext) -> set[EvaluationRequest]:
    rungs = ["preview", "score", "validation", *([CALIBRATION] if context.costs.calibration else [])]
    return with_shards(context.study, Allocation(), rungs)
