"""The plan of a study, from the dense baseline to a validated winner. Pure: knows no Ray, no disk, no clock."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from raysense.allocation import Allocation, LevelGrid
from raysense.errors import MeasuringFailed, RaysenseError
from raysense.evaluation.shards import images_of, is_split, parts_of, ranges_of, reference_rung
from raysense.feasibility import is_feasible, margins, utilisation
from raysense.names import EVOPRESS, ITERATIVE, JOINT, OWL, RANDOM, SOLVER, SWITCHES, TPE, UNIFORM
from raysense.pipelines.cost import Cost, assumed
from raysense.pruning.allocation_rules import Family
from raysense.pruning.layers import Inventory
from raysense.records import CALIBRATION, Bound, Evaluation, Question, StopRule, Task
from raysense.strategies.budget import Purse
from raysense.strategies.curves import Curve, least_known, removed_energy, sparsity_removing
from raysense.strategies.joint import Learned, Proposer, Random, Switches, Tpe, evopress, scaled
from raysense.strategies.noise import LIGHT, is_difference, paired, refuse_noise, shows_no_harm, spread_of
from raysense.strategies.rules import outlier_weighed, solved
from raysense.strategies.runner import Inquiry, OutOfBudget, Plan, Story
from raysense.strategies.verdict import held_out_stretch, hopeless
from raysense.study import Study

HOPELESS_PROBE = 1.0
"""Relative probe error at which a curve ends: the guided prediction is as far off as predicting nothing."""

HARMLESS_PROBE = 3e-5
"""Relative probe error below which a group is as good as untouched: a hundred such groups are not seen in images."""

DOUBT = 0.4
"""Standard deviation of log damage below which a curve is known well enough: halving it changed no allocation's
total damage by more than 2 % on the bundled pipeline, at twice the probes."""

SAFER = (0.8, 0.9, 0.95, 1.0)
"""Shares of the best total that are validated, least sparse first."""


@dataclass(frozen=True)
class Candidate:
    """An allocation with its evaluation on the rung that judged it.

    Attributes:
        strategy: The family it comes from.
        allocation: What is pruned.
        zeros: Zeros in the selected layers by the grid's arithmetic.
        evaluation: Its last evaluation.
        feasible: Whether that lies inside the quality budget.
    """

    strategy: str
    allocation: Allocation
    zeros: int
    evaluation: Evaluation
    feasible: bool


@dataclass(frozen=True)
class Findings:
    """What a study found.

    Attributes:
        dense: Rung -> evaluation of the dense pipeline.
        curves: Sensitivity curves of the groups.
        tried: Everything that was judged at the score rung or fell before it.
        validated: Finalists judged on held-out prompts, each strategy's in the order of testing, least sparse first.
        winner: The sparsest finalist that passed, whichever strategy's; None if none passed.
        uniform: The sparsest uniform one that passed: what the gain is measured against.
    """

    dense: Mapping[str, Evaluation]
    curves: Sequence[Curve]
    tried: Sequence[Candidate]
    validated: Sequence[Candidate]
    winner: Candidate | None
    uniform: Candidate | None


@dataclass
class _Ground:
    """What every part of the plan needs."""

    study: Study
    inventory: Inventory
    grid: LevelGrid
    families: Mapping[str, Family]
    bounds: Sequence[Bound] = field(default_factory=list)
    calibration_cost: int = 0
    cost: Cost | None = None

    @property
    def an_image(self) -> Cost:
        """What an image costs."""
        return self.cost or assumed(self.study.sampling)

    def zeros(self, share: float) -> int:
        """Zeros at a share of all selected weights, at most what the grid can remove."""
        return min(int(share * self.grid.n), self.grid.max_zeros)


def make_story(
    study: Study,
    inventory: Inventory,
    grid: LevelGrid,
    families: Mapping[str, Family],
    calibration_cost: int = 0,
    cost: Cost | None = None,
) -> Story[Findings]:
    """The study's strategy.

    Args:
        study: The study.
        inventory: Its layers.
        grid: Their levels.
        families: Closed-form families by name.
        calibration_cost: Sample-forwards of the calibration at most; 0 if the study needs none.
        cost: Of an image, as foreseen; replaced by what the baseline counts.

    Raises:
        RaysenseError: `budget.max_cost` does not even cover the dense pipeline; nothing is spent yet.
    """
    ground = _Ground(study, inventory, grid, families, study.constraints.bounds(), calibration_cost, cost)
    _refuse_small_budget(ground)

    def cost_of(question: Question) -> int:
        return sum(_cost_of(ground, task) for task in question.tasks)

    return Story(lambda story: _plan(story, ground), cost_of, Purse(study.budget, cost_of, _reserve(ground)))


def _plan(story: Story[Findings], ground: _Ground) -> Plan[Findings]:
    study, search = ground.study, ground.study.search
    groups = _groups(ground)
    strategies = [name for name in search.strategies if name not in (SOLVER, OWL, *ITERATIVE)]
    climbs = len(strategies) + (SOLVER in search.strategies) + (OWL in search.strategies)
    probes, finalists = len(groups) * min(3, search.levels), 2 * len(SAFER[-search.finalists :])
    first, one = _baseline_tasks(ground), Allocation({ground.grid.addresses[0]: 1})
    climb, test = (_with_parts(study, one, rungs) for rungs in (("preview", "score"), ("validation",)))
    story.wanted = (
        len(first)
        + probes
        + (climbs * search.bisections + search.rounds * search.offspring) * len(climb)
        + finalists * len(test)
    )
    score, held_out = (_images_cost(ground, rung) for rung in ("score", "validation"))
    costs = {
        "curves": probes * ground.an_image.probe(study.rungs.probe),
        "climbs": climbs * search.bisections * score,
        "joint": search.rounds * search.offspring * score,
        "tests": finalists * held_out,
    }

    def expect(*stages: str) -> None:
        """What is still to come, beside what is spent; said anew at each stage, as candidates may end early."""
        story.wanted_cost = story.purse.spent + sum(costs[stage] for stage in stages)

    expect("curves", "climbs", "joint", "tests")
    story.wanted_cost += sum(_cost_of(ground, task) for task in first)
    story.headline = "measuring the dense pipeline"
    calibrations = [_baseline(ground, "calibration", (CALIBRATION,))] if ground.calibration_cost else []
    measured = yield [
        *calibrations,
        _baseline(ground, "search", ("preview", "score")),
        _baseline(ground, "validation", ("validation",)),
    ]
    if None in measured:
        raise RaysenseError(
            f"{story.purse.refusal}; too little to measure even the dense pipeline: raise it or shrink `rungs`"
            + " or `prune.calibration`" * bool(calibrations)
        )
    for evaluations in measured:
        for evaluation in evaluations:
            if evaluation.failed:
                raise MeasuringFailed(
                    f"the dense pipeline could not be measured: {evaluation.failed}. Mend the cause and go on with "
                    "--resume: it is asked again"
                )
    baseline = {evaluation.rung: evaluation for evaluations in measured for evaluation in evaluations}
    _recount(ground, story.purse)
    _refuse_impossible(baseline, ground.bounds, held_out_stretch(study))
    story.headline = "how far noise alone moves the measures"
    (spreads,) = yield [_noise(ground)]
    refuse_noise(study, spreads)

    curves: list[Curve] = []
    expect("curves", "climbs", "joint", "tests")
    if SOLVER in search.strategies:
        story.headline = f"learning how sensitive {len(groups)} {search.granularity}s are"
        found = yield [_curve(ground, group, members) for group, members in groups.items()]
        curves = [curve for curve in found if curve is not None]

    families = {name: ground.families[name] for name in strategies}
    if OWL in search.strategies:
        families[OWL] = outlier_weighed(ground.inventory, ground.grid, baseline[CALIBRATION])
    if curves:
        families[SOLVER] = _solver(ground, curves, groups, {})
    expect("climbs", "joint", "tests")
    story.headline = "climbing: the sparsest total of every strategy"
    climbed: list[list[Candidate]] = yield [_climb(ground, name, family) for name, family in families.items()]
    tried = [candidate for climb in climbed for candidate in climb]
    expect("joint", "tests")
    story.headline = "searching jointly: " + _headline(ground, tried)
    proposers: dict[str, Proposer] = {}
    if curves and search.rounds:
        proposers[JOINT] = _learned(ground, curves, groups)
    seeds = {name: [study.seed, number] for number, name in enumerate(ITERATIVE)}
    if RANDOM in search.strategies:
        proposers[RANDOM] = Random(ground.grid, groups, seeds[RANDOM])
    if SWITCHES in search.strategies:
        proposers[SWITCHES] = Switches(ground.grid, seeds[SWITCHES])
    if TPE in search.strategies:
        proposers[TPE] = Tpe(ground.grid, groups, study.seed)
    inquiries: list[Inquiry] = []
    for name, proposer in proposers.items():
        # Everybody starts from what the closed forms gave; the joint search also from the solver's climb.
        for known in tried:
            if name == JOINT or known.strategy != SOLVER:
                proposer.tell(known.allocation, load_of(known, ground.bounds))
        left = itertools.count()
        inquiries += [
            _lane(ground, name, proposer, left)
            for _ in range(min(search.lookahead, search.rounds * search.offspring))
        ]
    start = _best([c for c in tried if c.strategy not in (SOLVER, JOINT)])
    if EVOPRESS in search.strategies and start is not None:
        inquiries.append(_evopress(ground, start.allocation))
    if inquiries:
        more: list[list[Candidate]] = yield inquiries
        tried += [candidate for found in more if found for candidate in found]

    expect("tests")
    story.headline = "validating on held-out prompts: " + _headline(ground, tried)
    best = _best(tried)
    contenders = [] if best is None else [best]
    names = dict.fromkeys(c.strategy for c in tried) if search.compare else (UNIFORM,)
    for name in names:
        rival = _best([c for c in tried if c.strategy == name])
        if rival is not None and best is not None and best.strategy != name:
            contenders.append(rival)
    tests: list[list[Candidate]] = yield [
        _validate(ground, contender.strategy, _below(ground, contender, families), contender.zeros)
        for contender in contenders
    ]
    validated = [candidate for test in tests for candidate in test]
    # Whatever passed competes, whichever strategy looked best on the search's own prompts.
    uniform = _best([candidate for candidate in validated if candidate.strategy == UNIFORM])
    return Findings(baseline, curves, tried, validated, _best(validated), uniform)


# --- inquiries ----------------------------------------------------------------------------------------


def _asked(ground: _Ground, question: Question) -> Inquiry:
    """A question; where an evaluation has too many images for one evaluator, all sample them first, side by side.

    What a stop rule may make needless is not sampled before. Returns the evaluations, in the order of the tasks.
    """
    asked: set[Task] = set()
    runs: list[tuple[list[Task], list[Task]]] = []  # parts, and the tasks that they are for
    for task in question.tasks:
        parts = [part for part in parts_of(ground.study, task.allocation, task.rung) if part not in asked]
        asked.update(parts)
        if not runs or (parts and question.stop is not None):
            runs.append(([], []))
        runs[-1][0].extend(parts)
        runs[-1][1].append(task)
    found: list[Evaluation] = []
    for parts, tasks in runs:
        name = f"{question.name}/{len(found)}" if found else question.name
        if parts:
            yield [
                Question(f"{name}/part {number}: {part.part}", question.stage, (part,))
                for number, part in enumerate(parts, 1)
            ]
        evaluations = yield replace(question, name=name, tasks=tuple(tasks))
        found += evaluations
        if question.stop is not None and question.stop.says_stop(found[-1]):
            break
    return found


def _baseline(ground: _Ground, name: str, rungs: Sequence[str]) -> Inquiry:
    """The dense pipeline on some rungs; returns the evaluations."""
    tasks = tuple(Task(Allocation(), rung) for rung in rungs)
    return (yield from _asked(ground, Question(f"baseline/{name}", "baseline", tasks)))


def _noise(ground: _Ground) -> Inquiry:
    """Bounded measure -> spread of a harmless candidate: the least lightly pruned one that shows no harm in it.

    Where none is harmless, a difference from the dense pipeline keeps the lightest one's spread; what is compared with
    the dense images themselves has none, as its interval narrows with the harm.
    """
    bounds, prompts = paired(ground.bounds), ground.study.rungs.preview.prompts
    spreads: dict[str, float] = {}
    harmless: set[str] = set()
    for share in LIGHT:
        allocation = ground.families[UNIFORM](ground.zeros(share))
        if len(harmless) == len(bounds) or not allocation:
            break
        question = Question(f"search/{UNIFORM}/light-{share:g}", "search", (Task(allocation, "preview"),))
        try:
            (found,) = yield from _asked(ground, question)
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


def _curve(ground: _Ground, group: str, members: Sequence[str]) -> Inquiry:
    """One group's curve from few points: the cap, a lighter one, then wherever it is least certain.

    It ends where nothing happens (the cap does no harm), where the probe says that nothing is left of the group's
    work, where the curve is known well enough, or at `search.levels` points.
    """
    grid, most = ground.grid, ground.study.search.levels
    size = sum(grid.weights(address) for address in members)
    measured: dict[int, float] = {}
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

    cap = min(grid.cap, 0.95)
    lighter = sparsity_removing(float(removed_energy(np.array(cap))) / 6)
    wanted = [at(cap), at(lighter)]
    stop: StopRule | None = StopRule(below={"probe_error": HARMLESS_PROBE})
    while wanted := [
        allocation for allocation in dict.fromkeys(wanted) if allocation and allocation not in asked
    ]:
        tasks = tuple(Task(allocation, "probe") for allocation in wanted)
        name = f"sensitivity/{group}" + (f"/{len(asked)}" if asked else "")
        try:
            evaluations = yield Question(name, "sensitivity", tasks, stop)
        except OutOfBudget:
            return curve() if measured else None
        stop = None
        asked.update(wanted)
        for allocation, evaluation in zip(wanted, evaluations, strict=False):
            if evaluation.failed or not math.isfinite(evaluation.measures["probe_error"].value):
                continue
            measured[grid.zeros(allocation)] = evaluation.measures["probe_error"].value
        if len(asked) >= most or len(evaluations) < len(wanted):
            break
        sparsity, doubt = least_known(curve(), HARMLESS_PROBE, HOPELESS_PROBE)
        wanted = [at(sparsity)] if doubt > DOUBT else []
    return curve() if measured or not asked else None


def _climb(ground: _Ground, strategy: str, family: Family) -> Inquiry:
    """Bisect for the sparsest total of a family that stays inside the budget; returns all candidates."""
    tried: list[Candidate] = []
    low, high = 0.0, ground.grid.max_zeros / ground.grid.n
    try:
        for number in range(ground.study.search.bisections):
            middle = (low + high) / 2
            candidate = yield from _judge(
                ground, strategy, f"{strategy}/{number}", family(ground.zeros(middle))
            )
            tried.append(candidate)
            low, high = (middle, high) if candidate.feasible else (low, middle)
    except OutOfBudget:
        pass
    return tried


def _judge(ground: _Ground, strategy: str, name: str, allocation: Allocation) -> Inquiry:
    """One candidate climbing the rungs; returns it."""
    tasks = (Task(allocation, "preview"), Task(allocation, "score"))
    stop = hopeless(ground.bounds, ground.study.rungs)
    evaluations = yield from _asked(ground, Question(f"search/{name}", "search", tasks, stop))
    return _candidate(ground, strategy, allocation, evaluations[-1])


def _candidate(ground: _Ground, strategy: str, allocation: Allocation, last: Evaluation) -> Candidate:
    feasible = last.rung == "score" and is_feasible(last, ground.bounds)
    return Candidate(strategy, allocation, ground.grid.zeros(allocation), last, feasible)


def _lane(ground: _Ground, strategy: str, proposer: Proposer, left: Iterator[int]) -> Inquiry:
    """Proposes, has it judged, tells, again and again; as many lanes side by side as may be outstanding.

    There are no generations: a lane goes on as soon as its own candidate is judged. Returns its candidates.
    """
    found: list[Candidate] = []
    try:
        while (number := next(left)) < ground.study.search.rounds * ground.study.search.offspring:
            allocation = proposer.propose()
            candidate: Candidate = yield from _judge(ground, strategy, f"{strategy}/{number}", allocation)
            proposer.tell(allocation, load_of(candidate, ground.bounds))
            found.append(candidate)
    except OutOfBudget:
        pass
    return found


def _evopress(ground: _Ground, start: Allocation) -> Inquiry:
    """EvoPress's procedure on the study's rungs, for what the other iterative strategies may cost at most."""
    study, found, spent = ground.study, list[Candidate](), 0
    allowed = study.search.rounds * study.search.offspring * _step_cost(ground)
    procedure = evopress(ground.grid, start, [study.seed, len(ITERATIVE)])
    stage, pool = next(procedure)
    try:
        for number in itertools.count():
            if spent >= allowed:
                break
            rung = ("probe", "preview", "score")[stage]
            name = f"search/{EVOPRESS}/{number}"
            tasks = tuple(Task(a, rung) for a in pool)
            evaluations = yield from _asked(ground, Question(name, "search", tasks))
            spent += sum(evaluation.cost for evaluation in evaluations)
            if rung == "probe":
                losses = [math.inf if e.failed else e.measures["probe_error"].value for e in evaluations]
            else:
                judged = [_candidate(ground, EVOPRESS, a, e) for a, e in zip(pool, evaluations, strict=True)]
                found += judged if rung == "score" else []
                losses = [load_of(candidate, ground.bounds) for candidate in judged]
            stage, pool = procedure.send(losses)
    except OutOfBudget:
        pass
    return found


def _validate(ground: _Ground, strategy: str, family: Family, zeros: int) -> Inquiry:
    """Held-out prompts, least sparse first, stopping at the first failure: no test has to share with the next.

    Fixed-sequence testing keeps the error of passing *any* infeasible finalist of a strategy at that of one test
    (Maurer, Hothorn & Lehmacher 1995; Westfall & Krishen 2001, "Optimally weighted, fixed sequence and gatekeeper
    multiple testing procedures"). The strategies that compete share the error: see `held_out_stretch`.
    """
    tested: list[Candidate] = []
    try:
        for share in SAFER[-ground.study.search.finalists :]:
            allocation = family(int(zeros * share))
            question = Question(
                f"validation/{strategy}/{share}", "validation", (Task(allocation, "validation"),)
            )
            (evaluation,) = yield from _asked(ground, question)
            feasible = is_feasible(evaluation, ground.bounds, held_out_stretch(ground.study))
            tested.append(
                Candidate(strategy, allocation, ground.grid.zeros(allocation), evaluation, feasible)
            )
            if not feasible:
                break
    except OutOfBudget:
        pass
    return tested


# --- small helpers ------------------------------------------------------------------------------------


def _groups(ground: _Ground) -> dict[str, tuple[str, ...]]:
    """Groups of layers that have levels of their own; layers that move with another come with it."""
    own = set(ground.grid.addresses)
    groups = ground.inventory.groups(ground.study.search.granularity)
    kept = {name: tuple(a for a in members if a in own) for name, members in groups.items()}
    return {name: members for name, members in kept.items() if members}


def _solver(
    ground: _Ground,
    curves: Sequence[Curve],
    groups: Mapping[str, Sequence[str]],
    weights: Mapping[str, float],
) -> Family:
    objective = ground.study.search.objective
    return solved(curves, groups, ground.inventory, ground.grid, weights, objective)


def _learned(ground: _Ground, curves: Sequence[Curve], groups: Mapping[str, Sequence[str]]) -> Learned:
    """The joint search on the study's curves."""
    grid = ground.grid
    fine = [curve.refined() for curve in curves]

    def damages(allocation: Allocation) -> list[float]:
        zeros = [sum(grid.zeros_at(a, allocation[a]) for a in groups[c.group]) for c in fine]
        return [float(np.interp(z, c.zeros, c.damage)) for z, c in zip(zeros, fine, strict=True)]

    def solve(zeros: int, weights: Mapping[str, float]) -> Allocation:
        return _solver(ground, curves, groups, weights)(zeros)

    return Learned(grid, damages, [c.group for c in fine], solve, [ground.study.seed, 0])


def _below(ground: _Ground, contender: Candidate, families: Mapping[str, Family]) -> Family:
    """The contender itself, and what its strategy gives at smaller totals."""

    def family(zeros: int) -> Allocation:
        if zeros >= contender.zeros:
            return contender.allocation
        own = families.get(contender.strategy)
        return own(zeros) if own is not None else scaled(ground.grid, contender.allocation, zeros)

    return family


def _best(candidates: Sequence[Candidate]) -> Candidate | None:
    passing = [candidate for candidate in candidates if candidate.feasible]
    return max(passing, key=lambda candidate: candidate.zeros, default=None)


def load_of(candidate: Candidate, bounds: Sequence[Bound]) -> float:
    """Constraint utilisation as proposers take it: above 1 for all that is not feasible, infinite for what broke."""
    used = utilisation(candidate.evaluation, bounds)
    if used is None:
        return math.inf
    return used if candidate.feasible else max(used, 1 + 1e-6)


def _headline(ground: _Ground, tried: Sequence[Candidate]) -> str:
    best = _best(tried)
    if best is None:
        return "nothing inside the budget yet"
    share = ground.inventory.sparsities(best.evaluation.zeros)["sparsity_components"]
    parts = [
        f"{m.bound.measure} {m.value:.4g} ({'≤' if m.bound.is_upper else '≥'} {m.bound.limit:g}, margin {m.margin:.2g})"
        for m in margins(best.evaluation, ground.bounds)
    ]
    return f"{share:.1%} of the components by {best.strategy}: {', '.join(parts)}"


def _refuse_impossible(dense: Mapping[str, Evaluation], bounds: Sequence[Bound], stretch: float) -> None:
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
                    f"{margin.bound.measure} {margin.value:.4g} [{margin.low:.4g}, {margin.high:.4g}] on the "
                    f"{rung} rung{how if wider > 1 else ''}; loosen the bound"
                )


def _recount(ground: _Ground, purse: Purse) -> None:
    """From here on an image costs what it was counted to cost: foreseen is not yet known.

    Raises:
        RaysenseError: It costs more than was foreseen, and what is left of the budget is not enough for an answer.
    """
    counted = purse.image_cost
    if counted in (None, ground.an_image.image):
        return
    steps = max(ground.an_image.steps, ground.study.sampling.steps)
    assert counted is not None
    ground.cost = Cost(counted, steps, "counted on the dense pipeline's images")
    purse.reserve = _reserve(ground)
    limit, needs = ground.study.budget.max_cost, _answer_cost(ground)
    if limit is not None and purse.spent + needs > limit:
        raise RaysenseError(
            f"`budget.max_cost` is {limit:,} sample-forwards: an image of this pipeline takes {counted:,} of them, so "
            f"after the dense pipeline's {purse.spent:,} a validated answer takes some {needs:,} more; set it to "
            f"{purse.spent + needs:,} and start again with --resume, or shrink `rungs`"
        )


def _reserve(ground: _Ground) -> dict[str, int]:
    """Stage -> what its questions leave: curves are worth nothing without a climb, nor a climb without validation."""
    validation = 2 * len(SAFER[-ground.study.search.finalists :]) * _images_cost(ground, "validation")
    climb = ground.study.search.bisections * _step_cost(ground)
    return {"sensitivity": climb + validation, "search": validation}


def _answer_cost(ground: _Ground) -> int:
    """What one strategy's climb to a validated answer takes beside the baseline; curves only where all need them."""
    search = ground.study.search
    curves = 0
    if not any(name not in (SOLVER, *ITERATIVE) for name in search.strategies):
        probes = len(_groups(ground)) * min(3, search.levels)
        curves = probes * ground.an_image.probe(ground.study.rungs.probe)
    return curves + _reserve(ground)["sensitivity"]


def _refuse_small_budget(ground: _Ground) -> None:
    """A budget that cannot pay for a validated answer buys nothing: refused before anything is spent."""
    study = ground.study
    least = sum(_cost_of(ground, task) for task in _baseline_tasks(ground))
    answer = least + _answer_cost(ground)
    if study.budget.max_cost is not None and study.budget.max_cost < least:
        raise RaysenseError(
            f"`budget.max_cost` is {study.budget.max_cost:,} sample-forwards, but measuring the dense pipeline takes "
            f"{least:,} and one strategy's climb to a validated answer some {answer:,} in all; raise it or shrink "
            "`rungs`" + " or `prune.calibration`" * bool(ground.calibration_cost)
        )


def _step_cost(ground: _Ground) -> int:
    """Sample-forwards of a candidate that climbs to the score rung, at most."""
    return _images_cost(ground, "preview") + _images_cost(ground, "score")


def _images_cost(ground: _Ground, rung: str) -> int:
    return images_of(ground.study, rung) * ground.an_image.image


def _cost_of(ground: _Ground, task: Task) -> int:
    """Sample-forwards of a task, dense references not yet cached included; parts are paid for before."""
    study = ground.study
    if task.rung == CALIBRATION:
        return ground.calibration_cost
    if task.rung == "probe":
        return ground.an_image.probe(study.rungs.probe)
    if task.part is not None:
        parts = ranges_of(study, task.part.rung, task.part.reference)
        return len(parts[task.part.number]) * ground.an_image.image
    own = 0 if is_split(study, task.rung) else 1
    reference = 0 if task.allocation or is_split(study, reference_rung(task.rung), reference=True) else 2
    return _images_cost(ground, task.rung) * (own + reference)


def _with_parts(study: Study, allocation: Allocation, rungs: Sequence[str]) -> set[Task]:
    """The tasks of some evaluations, with those of their parts."""
    parts = {part for rung in rungs for part in parts_of(study, allocation, rung)}
    return {*(Task(allocation, rung) for rung in rungs), *parts}


def _baseline_tasks(ground: _Ground) -> set[Task]:
    rungs = ["preview", "score", "validation", *([CALIBRATION] if ground.calibration_cost else [])]
    return _with_parts(ground.study, Allocation(), rungs)
