"""The first stage: the dense pipeline on every rung, and how far noise alone moves the measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from raysense.allocation import Allocation
from raysense.errors import MeasuringFailed, RaysenseError
from raysense.feasibility import margins
from raysense.names import UNIFORM
from raysense.pipelines.cost import Cost
from raysense.records import CALIBRATION, Bound, Evaluation, EvaluationRequest, TrialSpec
from raysense.strategies.affordable import answer_cost, reserve_of
from raysense.strategies.asking import asked_for
from raysense.strategies.budget import BudgetTracker
from raysense.strategies.context import Findings, SearchContext
from raysense.strategies.noise import LIGHT, is_difference, paired, refuse_noise, shows_no_harm, spread_of
from raysense.strategies.runner import Coroutine, OutOfBudget, Stage, StrategyRunner
from raysense.strategies.verdict import held_out_stretch


def baseline(runner: StrategyRunner[Findings], context: SearchContext) -> Stage[dict[str, Evaluation]]:
    """Measure the dense pipeline; gives rung -> its evaluation.

    Raises:
        RaysenseError: The dense pipeline is not inside the quality budget, noise alone is not, or there is too little
            to spend.
    """
    runner.headline = "measuring the dense pipeline"
    calibrations = [_dense(context, "calibration", (CALIBRATION,))] if context.costs.calibration else []
    measured = yield [
        *calibrations,
        _dense(context, "search", ("preview", "score")),
        _dense(context, "validation", ("validation",)),
    ]
    if None in measured:
        raise RaysenseError(
            f"{runner.tracker.refusal}; too little to measure even the dense pipeline: raise it or shrink `rungs`"
            + " or `prune.calibration`" * bool(calibrations)
        )
    dense = {evaluation.rung: evaluation for evaluations in measured for evaluation in evaluations}
    _refuse_failed(dense.values())
    _recount(context, runner.tracker)
    refuse_impossible(dense, context.bounds, held_out_stretch(context.study))
    runner.headline = "how far noise alone moves the measures"
    (spreads,) = yield [_noise(context)]
    refuse_noise(context.study, spreads)
    return dense


def _refuse_failed(dense: Iterable[Evaluation]) -> None:
    for evaluation in dense:
        if evaluation.failed:
            raise MeasuringFailed(
                f"the dense pipeline could not be measured: {evaluation.failed}. Mend the cause and go on with "
                "--resume: it is asked again"
            )


def _dense(context: SearchContext, name: str, rungs: Sequence[str]) -> Coroutine:
    """The dense pipeline on some rungs; returns the evaluations."""
    requests = tuple(EvaluationRequest(Allocation(), rung) for rung in rungs)
    return (yield from asked_for(context, TrialSpec(f"baseline/{name}", "baseline", requests)))


def _noise(context: SearchContext) -> Coroutine:
    """Bounded measure -> spread of a harmless candidate: the least lightly pruned one that shows no harm in it.

    Where none is harmless, a difference from the dense pipeline keeps the lightest one's spread; what is compared with
    the dense images themselves has none, as its interval narrows with the harm.
    """
    bounds, prompts = paired(context.bounds), context.study.rungs.preview.prompts
    spreads: dict[str, float] = {}
    harmless: set[str] = set()
    for share in LIGHT:
        allocation = context.rules[UNIFORM](context.zeros(share))
        if len(harmless) == len(bounds) or not allocation:
            break
        spec = TrialSpec(
            f"search/{UNIFORM}/light-{share:g}", "search", (EvaluationRequest(allocation, "preview"),)
        )
        try:
            (found,) = yield from asked_for(context, spec)
        except OutOfBudget:
            break
        if found.failed or found.collapsed:
            continue
        for bound in bounds:
            measure = found.measures[bound.measure]
            if bound.measure in harmless:
                continue
            harmless |= {bound.measure} if shows_no_harm(bound, measure) else set()
            if bound.measure in harmless or is_difference(bound):
                spreads[bound.measure] = spread_of(measure, prompts)
    return spreads


def refuse_impossible(dense: Mapping[str, Evaluation], bounds: Sequence[Bound], stretch: float) -> None:
    """A bound that the dense pipeline itself does not meet can never be met by pruning.

    Args:
        dense: Rung -> its evaluation.
        bounds: The quality budget.
        stretch: How many times wider than reported the intervals are that are tested on held-out prompts.
    """
    for rung, wider, how in (
        ("score", 1.0, ""),
        ("validation", stretch, f", tested {stretch:.3g} times as wide"),
    ):
        for margin in margins(dense[rung], bounds, wider):
            if margin.margin < 0:
                raise RaysenseError(
                    f"`{margin.bound.field}` is {margin.bound.limit:g}, but the dense pipeline itself has "
                    f"{margin.bound.measure} {margin.value:.4g} [{margin.ci_low:.4g}, {margin.ci_high:.4g}] on the "
                    f"{rung} rung{how if wider > 1 else ''}; loosen the bound"
                )


def _recount(context: SearchContext, tracker: BudgetTracker) -> None:
    """From here on an image costs what it was counted to cost: foreseen is not yet known.

    Raises:
        RaysenseError: It costs more than was foreseen, and what is left of the budget is not enough for an answer.
    """
    counted = tracker.image_cost
    if counted in (None, context.costs.image.image):
        return
    steps = max(context.costs.image.steps, context.study.sampling.steps)
    assert counted is not None
    image = Cost(counted, steps, "counted on the dense pipeline's images")
    context.costs = replace(context.costs, image=image)
    tracker.reserve = reserve_of(context)
    limit, needs = context.study.budget.max_nfe, answer_cost(context)
    if limit is not None and tracker.spent + needs > limit:
        raise RaysenseError(
            f"`budget.max_nfe` is {limit:,} NFE: an image of this pipeline takes {counted:,} of them, so "
            f"after the dense pipeline's {tracker.spent:,} a validated answer takes some {needs:,} more; set it to "
            f"{tracker.spent + needs:,} and start again with --resume, or shrink `rungs`"
        )
