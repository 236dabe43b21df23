"""The schedule of a sweep: the dense pipeline, the listed points, then points between them at a curve's cliff."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from raysense.allocation import Allocation
from raysense.errors import MeasuringFailed, RaysenseError
from raysense.evaluation.rungs.cost import RungCosts
from raysense.feasibility import IMAGE_RUNGS
from raysense.names import OUTLIERS
from raysense.pipelines.cost import Cost
from raysense.records import CALIBRATION, Evaluation, EvaluationRequest, TrialSpec
from raysense.strategies.affordable import with_shards
from raysense.strategies.asking import asked_for
from raysense.strategies.budget import BudgetTracker
from raysense.strategies.cliffs import FEWEST, Seen, next_place, seen_at, whole_of
from raysense.strategies.context import SearchContext
from raysense.strategies.rules import outliers_of
from raysense.strategies.runner import Coroutine, OutOfBudget, Schedule, Stage, StrategyRunner
from raysense.strategies.sweep_points import TOGETHER, Layout, Point
from raysense.study.sweep import loss_on

STAGE = "sweep"

TRIAL_POINTS = 4
"""Points of a trial: enough that a cluster's evaluators stay busy, few enough that one curve is not one evaluator's."""

BETWEEN = 5
"""Points between a curve's own that its cliff takes to be known to one point, from points ten apart."""


@dataclass(frozen=True)
class Measured:
    """A point and what measuring it gave."""

    point: Point
    evaluation: Evaluation


@dataclass(frozen=True)
class Swept:
    """What a sweep measured.

    Attributes:
        dense: Rung -> the dense pipeline's evaluation, of rungs with images.
        points: What was measured, those put between others last; what the budget did not cover is missing.
        wanted: How many points the study lists.
    """

    dense: Mapping[str, Evaluation]
    points: Sequence[Measured]
    wanted: int


def make_sweep(
    layout: Layout,
    cost: Cost,
    calibration: int = 0,
    methods: Mapping[str, int] | None = None,
    told: list[Measured] | None = None,
) -> StrategyRunner[Swept]:
    """The study's sweep as a strategy.

    Args:
        layout: Its layers.
        cost: Of an image, as foreseen; replaced by what the dense images are counted to take.
        calibration: NFE of the study's own calibration at most; 0 if it needs none.
        methods: What calibrations of the sweep's other methods take at most, one of `OUTLIERS` for that rule's.
        told: Gets every point as soon as it is measured.

    Raises:
        RaysenseError: A point cannot be measured, or the budget buys none; nothing is spent yet.
    """
    study = layout.study
    costs = RungCosts(study, cost, calibration, dict(methods or {}))
    context = SearchContext(study, layout.inventory, layout.grid, {}, study.constraints.bounds(), costs)
    layout.check()
    refuse_small_budget(context, layout)

    def cost_of(spec: TrialSpec) -> int:
        return sum(context.costs.of(request) for request in spec.requests)

    tracker = BudgetTracker(study.budget, cost_of)
    measured = [] if told is None else told
    return StrategyRunner(lambda runner: _stages(runner, context, layout, measured), cost_of, tracker)


def first_requests(context: SearchContext, layout: Layout) -> list[EvaluationRequest]:
    """The dense pipeline on every rung with images, and what methods learn from it."""
    dense = [rung for rung in layout.sweep.rungs if rung in IMAGE_RUNGS]
    own = [EvaluationRequest(Allocation(), CALIBRATION)] if context.costs.calibration else []
    others = [EvaluationRequest(Allocation(), CALIBRATION, method=name) for name in context.costs.methods]
    return [*own, *others, *(EvaluationRequest(Allocation(), rung) for rung in dense)]


def refuse_small_budget(context: SearchContext, layout: Layout) -> None:
    """A budget that buys no point is refused before anything is spent."""
    limit = context.study.budget.max_nfe
    if limit is None:
        return
    first = first_requests(context, layout)
    parts = with_shards(context.study, Allocation(), [r.rung for r in first if r.rung in IMAGE_RUNGS])
    least = sum(context.costs.of(request) for request in {*first, *parts})
    one = Allocation({layout.grid.addresses[0]: 1})
    point = min(
        sum(context.costs.of(request) for request in with_shards(context.study, one, [rung]))
        for rung in layout.sweep.rungs
    )
    if limit < least + point:
        raise RaysenseError(
            f"`budget.max_nfe` is {limit:,} NFE, which buys no point of the sweep: the dense pipeline takes {least:,} "
            f"and the cheapest point {point:,}; set it to {least + point:,} at least, or shrink `rungs`"
        )


class _Expectation:
    """How much a sweep will ask in all, for the live view; said anew once the points are known."""

    def __init__(self, runner: StrategyRunner[Swept], context: SearchContext, layout: Layout) -> None:
        self._runner, self._context, self._layout = runner, context, layout
        known = layout.counts is None or not set(OUTLIERS) & set(layout.sweep.rules)
        self.counted(layout.points() if known else [])

    def counted(self, points: Sequence[Point]) -> None:
        """These points are to come, and where cliffs are looked for, some between those of each curve."""
        costs = self._context.costs
        first = {*first_requests(self._context, self._layout), *(point.request for point in points)}
        curves = {
            point.curve: point.request for point in points if sum(map(bool, point.shares.values())) == 1
        }
        cliffs = self._layout.sweep.cliffs
        between = 0 if cliffs is None else min(cliffs.most, BETWEEN)
        self._runner.wanted = len(first) + between * len(curves)
        self._runner.wanted_nfe = sum(map(costs.of, first)) + between * sum(map(costs.of, curves.values()))


def _stages(
    runner: StrategyRunner[Swept], context: SearchContext, layout: Layout, told: list[Measured]
) -> Schedule[Swept]:
    """Baseline, the listed points, the points between them."""
    expectation = _Expectation(runner, context, layout)
    dense = yield from _baseline(runner, context, layout)
    points = layout.points()
    expectation.counted(points)
    runner.headline = f"{len(points)} points of {len(layout.sweep.points) + bool(layout.sweep.screen)} sets"
    found: list[list[Measured] | None] = yield [
        _asked(context, number, chunk, told) for number, chunk in enumerate(_chunks(points))
    ]
    measured = [one for chunk in found if chunk for one in chunk]
    if layout.sweep.cliffs is not None:
        curves = curves_of(measured, layout)
        runner.headline = f"looking for the cliffs of {len(curves)} curves"
        between: list[list[Measured]] = yield [
            _between(context, layout, curve, _whole(measured, curve, layout), told) for curve in curves
        ]
        measured += [one for curve in between for one in curve]
    return Swept(dense, measured, len(points))


def _baseline(
    runner: StrategyRunner[Swept], context: SearchContext, layout: Layout
) -> Stage[dict[str, Evaluation]]:
    """Measure the dense pipeline and have methods learn; gives rung -> the dense evaluation.

    Raises:
        RaysenseError: It could not be measured, or there is too little to spend.
    """
    runner.headline = "measuring the dense pipeline"
    requests = first_requests(context, layout)
    found: list[Sequence[Evaluation] | None] = yield [_dense(context, request) for request in requests]
    if None in found:
        raise RaysenseError(
            f"{runner.tracker.refusal}; too little to measure even the dense pipeline: raise it"
        )
    dense: dict[str, Evaluation] = {}
    for request, evaluations in zip(requests, found, strict=True):
        assert evaluations is not None
        if evaluations[-1].failed:
            raise MeasuringFailed(
                f"the dense pipeline could not be measured: {evaluations[-1].failed}. Mend the cause and go on with "
                "--resume: it is asked again"
            )
        if request.method in OUTLIERS and layout.counts is not None:
            layout.outliers[request.method] = outliers_of(request.method, evaluations[-1])
        if request.rung != CALIBRATION:
            dense[request.rung] = evaluations[-1]
    counted = runner.tracker.image_cost
    if counted is not None and counted != context.costs.image.image:
        steps = max(context.costs.image.steps, context.study.sampling.steps)
        image = Cost(counted, steps, "counted on the dense pipeline's images")
        context.costs = replace(context.costs, image=image)
    return dense


def _dense(context: SearchContext, request: EvaluationRequest) -> Coroutine:
    name = "/".join(filter(None, ("baseline/sweep", request.rung, request.method)))
    return (yield from asked_for(context, TrialSpec(name, "baseline", (request,))))


def _chunks(points: Sequence[Point]) -> list[list[Point]]:
    """Points of one curve a few at a time; what two points have in common is asked once."""
    chunks: list[list[Point]] = []
    asked: set[EvaluationRequest] = set()
    requests = 0
    for point in points:
        is_new = point.request not in asked
        last = chunks[-1][0] if chunks else None
        same = last is not None and (last.set, last.method, last.request.steps, last.request.rung) == (
            point.set, point.method, point.request.steps, point.request.rung
        )  # fmt: skip
        if not same or requests + is_new > TRIAL_POINTS:
            chunks.append([])
            requests = 0
        chunks[-1].append(point)
        asked.add(point.request)
        requests += is_new
    return chunks


def _asked(context: SearchContext, number: int, points: Sequence[Point], told: list[Measured]) -> Coroutine:
    """Some points as one trial; what the budget does not cover at once, point by point. Returns what was measured."""
    name = f"{STAGE}/{points[0].set}/{number}"
    requests = list(dict.fromkeys(point.request for point in points))
    answers: dict[EvaluationRequest, Evaluation] = {}
    try:
        found = yield from asked_for(context, TrialSpec(name, STAGE, tuple(requests)))
        answers.update(zip(requests, found, strict=True))
    except OutOfBudget:
        try:
            for place, request in enumerate(requests if len(requests) > 1 else ()):
                (evaluation,) = yield from asked_for(context, TrialSpec(f"{name}.{place}", STAGE, (request,)))
                answers[request] = evaluation
        except OutOfBudget:
            pass
    found = [Measured(point, answers[point.request]) for point in points if point.request in answers]
    told.extend(found)
    return found


def _between(
    context: SearchContext, layout: Layout, curve: Sequence[Measured], whole: float, told: list[Measured]
) -> Coroutine:
    """Points between a curve's own until its cliff is known, or enough are measured. Returns them."""
    cliffs = layout.sweep.cliffs
    assert cliffs is not None
    first = curve[0].point
    (group,) = (name for name, share in first.shares.items() if share)
    measure = loss_on(layout.sweep, first.request.rung)
    known, found = list(curve), list[Measured]()
    try:
        while len(found) < cliffs.most:
            seen = seen_of(known, measure, layout, whole)
            place = next_place(seen, whole, cliffs.within, context.grid.max_layer_sparsity)
            if place is None:
                break
            point = layout.point(
                first.set, first.over, first.request.rung, {group: place}, first.rules, first.method,
                first.request.steps, listed=False,
            )  # fmt: skip
            if any(one.point.request == point.request for one in known):
                break  # the layers' levels are no finer
            name = f"{STAGE}/{first.set}/cliff/{'/'.join(map(str, first.curve[1:]))}/{len(found)}"
            (evaluation,) = yield from asked_for(context, TrialSpec(name, STAGE, (point.request,)))
            found.append(Measured(point, evaluation))
            known.append(found[-1])
            told.append(found[-1])
    except OutOfBudget:
        pass
    return found


def curves_of(measured: Sequence[Measured], layout: Layout) -> list[list[Measured]]:
    """What was measured of one group at three sparsities or more, curve by curve, ascending."""
    curves: dict[tuple[object, ...], list[Measured]] = {}
    for one in measured:
        if one.point.over != TOGETHER and sum(map(bool, one.point.shares.values())) == 1:
            curves.setdefault(one.point.curve, []).append(one)
    kept = [sorted(curve, key=lambda one: _share(one, layout)) for curve in curves.values()]
    return [curve for curve in kept if len({one.point.request for one in curve}) >= FEWEST]


def _whole(measured: Iterable[Measured], curve: Sequence[Measured], layout: Layout) -> float:
    """What there is to lose on a curve's rung."""
    rung = curve[0].point.request.rung
    name = loss_on(layout.sweep, rung)
    lost = (one.evaluation.measures.get(name) for one in measured if one.point.request.rung == rung)
    return whole_of(name, (measure.value for measure in lost if measure is not None))


def seen_of(curve: Iterable[Measured], measure: str, layout: Layout, whole: float) -> list[Seen]:
    """A curve as numbers; a broken output has lost all there is to lose, what failed is left out."""
    found = []
    for one in curve:
        evaluation, share = one.evaluation, _share(one, layout)
        told = evaluation.measures.get(measure)
        if evaluation.failed or not share:
            continue
        loss = None if told is None or evaluation.collapsed else (told.value, told.ci_low, told.ci_high)
        found.append(seen_at(share, loss, whole))
    return found


def _share(one: Measured, layout: Layout) -> float:
    """The share of the group's weights that really leaves: levels are whole."""
    return layout.grid.zeros(one.point.request.allocation) / layout.weights(one.point.shares)
