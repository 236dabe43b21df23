"""What a study will cost, before anything is spent: the study's own plan, answered by assumption instead of measured.

The dry run drives the very strategy that the main job drives (`raysense.strategies.schedule.make_strategy`) on a
simulated cluster: `evaluators` servers, trials handed out as `raysense.strategies.base.Lookahead` allows, a request's
seconds from a measured `Speed`. So evaluations, budget, look-ahead and idle evaluators at the end of a stage are
counted by the code that will cause them. What it cannot know is how damage grows with sparsity: it assumes the prior
of `raysense.strategies.curves`, that no candidate is hopeless on the preview rung, and that every finalist is tested.
Pure: no Ray, no disk, no clock.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raysense.allocation import Allocation, LevelGrid
from raysense.evaluation.shards import images_of, is_split, reference_rung
from raysense.names import ITERATIVE, SOLVER
from raysense.pipelines.cost import Cost, assumed
from raysense.pruning import allocation_rules
from raysense.pruning.allocation_rules import AllocationRule
from raysense.pruning.layers import Inventory
from raysense.records import CALIBRATION, Bound, Evaluation, EvaluationRequest, Measure, TrialSpec
from raysense.strategies.base import ASKED_PER_EVALUATOR, RUNNING_PER_EVALUATOR, Lookahead
from raysense.strategies.curves import SLOPE, removed_energy
from raysense.strategies.runner import StrategyRunner
from raysense.strategies.schedule import make_strategy
from raysense.strategies.user_defined import user_strategies
from raysense.study import Study

FEASIBLE_SHARE = 0.5
"""Share of the selected weights up to which the dry run takes a candidate to be inside the budget."""

TRIAL_SECONDS = 0.05
"""From a trial's end to the next one's start on a running trial; benchmarks/driver.py measures it."""


@dataclass(frozen=True)
class Speed:
    """How fast one evaluator is at this study.

    Attributes:
        image: Seconds an image: its share of sampling, decoding and features.
        images: Seconds of an image evaluation beside its images: statistics, intervals, masks.
        probe: Seconds of a probe evaluation.
        load: Seconds until an evaluator is ready for its first evaluation.
        first_probe: Seconds that an evaluator's first probe takes longer: its dense inputs are recorded.
        start: Seconds until the cluster has started the first evaluator; for every study the same.
        told: Where these come from, for people.
    """

    image: float
    images: float = 0.0
    probe: float = 0.0
    load: float = 0.0
    first_probe: float = 0.0
    start: float = 0.0
    told: str = ""


@dataclass
class Stage:
    """What one stage of a study costs.

    Attributes:
        evaluations: Rows.
        images: Images sampled, dense references included.
        cost: NFE.
        busy: Seconds of evaluators at work.
    """

    evaluations: int = 0
    images: int = 0
    cost: int = 0
    busy: float = 0.0


@dataclass
class Estimate:
    """What a study costs on so many evaluators.

    Attributes:
        evaluators: How many.
        stages: By name, in the order they begin.
        wall: Seconds from the start to the summary.
        busy: Seconds of evaluators at work, loading included.
        stopped: What the study's budget did not cover, or an empty text.
    """

    evaluators: int
    stages: dict[str, Stage] = field(default_factory=dict)
    wall: float = 0.0
    busy: float = 0.0
    stopped: str = ""

    @property
    def evaluations(self) -> int:
        """Of all stages."""
        return sum(stage.evaluations for stage in self.stages.values())

    @property
    def images(self) -> int:
        """Of all stages."""
        return sum(stage.images for stage in self.stages.values())

    @property
    def cost(self) -> int:
        """Of all stages, in NFE."""
        return sum(stage.cost for stage in self.stages.values())

    @property
    def utilisation(self) -> float:
        """Share of the evaluators' time that they work."""
        return self.busy / (self.wall * self.evaluators) if self.wall else 0.0

    def price(self, per_hour: float) -> float:
        """For `wall` on all evaluators, at a price an evaluator-hour; idle ones are paid, too."""
        return self.wall / 3600 * self.evaluators * per_hour


def estimate(
    study: Study,
    inventory: Inventory,
    grid: LevelGrid,
    speed: Speed,
    evaluators: int,
    calibration_cost: int = 0,
    cost: Cost | None = None,
) -> Estimate:
    """Runs the study's plan on a simulated cluster.

    Args:
        study: The study.
        inventory: Its layers; weights are not needed.
        grid: Their levels.
        speed: Of one evaluator.
        evaluators: How many.
        calibration_cost: NFE that the study's method learns from, see
            `raysense.evaluation.calibration.calibration_cost`.
        cost: Of an image.
    """
    rules = _Uniform(inventory, grid)
    runner = make_strategy(_without_weights(study), inventory, grid, rules, calibration_cost, cost)
    return simulate(runner, study, inventory, grid, speed, evaluators, cost)


def simulate(
    runner: StrategyRunner[Any],
    study: Study,
    inventory: Inventory,
    grid: LevelGrid,
    speed: Speed,
    evaluators: int,
    cost: Cost | None = None,
) -> Estimate:
    """Runs a strategy on a simulated cluster; see `estimate`.

    Raises:
        RaysenseError: What the strategy raised.
    """
    an_image = cost or assumed(study.sampling)
    return _Cluster(runner, study, inventory, grid, speed, evaluators, an_image).run()


@dataclass(eq=False)
class _Open:
    """A trial at work."""

    spec: TrialSpec
    answers: list[Evaluation] = field(default_factory=list)


class _Cluster:
    """Evaluators, and trials that take turns on them."""

    def __init__(
        self,
        runner: StrategyRunner[Any],
        study: Study,
        inventory: Inventory,
        grid: LevelGrid,
        speed: Speed,
        evaluators: int,
        an_image: Cost,
    ) -> None:
        self._an_image = an_image
        self._strategy, self._cost_of = Lookahead(runner, study.search.lookahead), runner.cost_of
        self._runner = runner
        self._study, self._inventory, self._grid = study, inventory, grid
        self._speed, self._bounds = speed, study.constraints.bounds()
        self._estimate = Estimate(evaluators)
        self._references: set[str] = set()
        self._clock = speed.start + speed.load
        self._idle = evaluators
        self._fresh_probes = evaluators  # evaluators that have recorded no probe yet
        self._waiting: deque[_Open] = deque()
        self._asked: deque[_Open] = deque()
        self._running = 0
        self._events: list[tuple[float, int, _Open, Evaluation]] = []
        self._order = itertools.count()

    def run(self) -> Estimate:
        """Until the strategy is done."""
        while True:
            self._ask()
            self._start()
            if not self._events:
                break
            self._clock, _, work, evaluation = heapq.heappop(self._events)
            self._idle += 1
            work.answers.append(evaluation)
            stop = work.spec.stop
            if len(work.answers) == len(work.spec.requests) or (
                stop is not None and stop.says_stop(evaluation)
            ):
                self._running -= 1
                self._strategy.tell(work.spec, work.answers)
            else:
                self._waiting.append(work)
        if self._runner.error is not None:
            raise self._runner.error
        result = self._estimate
        result.wall = self._clock
        result.stopped = str(self._runner.tracker.refusal or "")
        result.busy = sum(s.busy for s in result.stages.values()) + result.evaluators * self._speed.load
        return result

    def _ask(self) -> None:
        width = self._estimate.evaluators
        while len(self._asked) + self._running < ASKED_PER_EVALUATOR * width:
            spec = self._strategy.ask()
            if spec is None:
                break
            self._asked.append(_Open(spec))
        while self._asked and self._running < math.ceil(RUNNING_PER_EVALUATOR * width):
            self._running += 1
            self._waiting.append(self._asked.popleft())

    def _start(self) -> None:
        while self._idle and self._waiting:
            work = self._waiting.popleft()
            request = work.spec.requests[len(work.answers)]
            stage = self._estimate.stages.setdefault(work.spec.stage, Stage())
            images, cost, seconds = self._work(request, work.spec.requests[: len(work.answers)])
            evaluation = self._answer(work.spec, request, images, cost, seconds)
            stage.evaluations += 1
            stage.images += images
            stage.cost += evaluation.nfe
            stage.busy += seconds
            self._idle -= 1
            heapq.heappush(
                self._events, (self._clock + seconds + TRIAL_SECONDS, next(self._order), work, evaluation)
            )

    def _work(
        self, request: EvaluationRequest, before: Sequence[EvaluationRequest]
    ) -> tuple[int, int, float]:
        """Images, dense references included, NFE, and seconds, after the trial's requests before it."""
        cost = self._cost_of(TrialSpec("", "", (request,)))
        an_image = self._an_image.image
        if request.rung == CALIBRATION:
            return 0, cost, cost / an_image * self._speed.image
        if request.shard is not None:
            images = cost // an_image
            return images, cost, images * self._speed.image
        if request.rung == "probe":
            first = self._fresh_probes > 0
            self._fresh_probes -= 1
            recorded = self._an_image.probe(self._study.rungs.probe, records=True) - cost
            return 0, cost + first * recorded, self._speed.probe + first * self._speed.first_probe
        if request.rung == "layer":
            return 0, cost, cost / an_image * self._speed.image
        images = 0 if is_split(self._study, request.rung) else images_of(self._study, request.rung)
        if images and any((e.allocation, e.rung) == (request.allocation, "preview") for e in before):
            images -= images_of(self._study, "preview")
        # The first on a rung samples the references: two dense images a prompt of the largest rung of its set.
        largest = reference_rung(request.rung)
        if largest not in self._references:
            self._references.add(largest)
            if not is_split(self._study, largest, reference=True):
                images += images_of(self._study, largest, reference=True)
        return images, an_image * images, self._speed.images + images * self._speed.image

    def _answer(
        self, spec: TrialSpec, request: EvaluationRequest, images: int, cost: int, seconds: float
    ) -> Evaluation:
        zeros = self._grid.zeros(request.allocation)
        share = zeros / self._grid.n
        return Evaluation(
            key="", trial=spec.name, stage=spec.stage, allocation=request.allocation.key, rung=request.rung,
            replicate=request.replicate, measures=_Assumed(self._bounds, share, self._local_share(request.allocation)),
            zeros=self._inventory.zeros_before + zeros, images=images, nfe=cost, seconds=seconds,
        )  # fmt: skip

    def _local_share(self, allocation: Allocation) -> float:
        """Share of the touched layers' weights that leaves."""
        touched = sum(self._grid.weights(address) for address in allocation)
        return self._grid.zeros(allocation) / touched if touched else 0.0


class _Assumed(Mapping[str, Measure]):
    """A measure for every name that a plan may look up.

    Bounded measures lie well inside the budget up to `FEASIBLE_SHARE` and straddle their bound above it, so that
    nothing is hopeless; errors follow the prior of `raysense.strategies.curves` on the layers an allocation touches.
    """

    def __init__(self, bounds: Sequence[Bound], share: float, local: float) -> None:
        self._bounds = {bound.measure: bound for bound in bounds}
        self._share, self._local = share, local

    def __getitem__(self, name: str) -> Measure:
        bound = self._bounds.get(name)
        if bound is None:
            error = float(removed_energy(np.array(self._local))) ** SLOPE if self._local else 0.0
            return Measure(error, error, error, 1, "assumed")
        width = max(abs(bound.limit), 1e-6)
        inside = -1 if bound.is_upper else 1
        if self._share <= FEASIBLE_SHARE:
            value = bound.limit + inside * width * (1 - self._share)
            return Measure(value, value, value, 1, "assumed")
        value = bound.limit - inside * 0.1 * width
        return Measure(value, value - 0.2 * width, value + 0.2 * width, 1, "assumed")

    def __iter__(self) -> Iterator[str]:
        return iter(self._bounds)

    def __len__(self) -> int:
        return len(self._bounds)


def _without_weights(study: Study) -> Study:
    """The study under names of rules that need no measurement of the weights; see `_Uniform`."""
    kept = (SOLVER, "uniform", *ITERATIVE, *user_strategies(study.search.strategies))
    names = tuple(name if name in kept else f"as {name}" for name in study.search.strategies)
    return study.model_copy(update={"search": study.search.model_copy(update={"strategies": names})})


class _Uniform(dict[str, AllocationRule]):
    """Every rule by any name, as the uniform one: the others need weights, and cost the same."""

    def __init__(self, inventory: Inventory, grid: LevelGrid) -> None:
        super().__init__()
        self._rule = lambda zeros: allocation_rules.uniform(inventory, grid, zeros)

    def __missing__(self, name: str) -> AllocationRule:
        return self._rule
