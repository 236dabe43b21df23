"""The plan on a made-up pipeline whose damage is known: additive in the layers, very unequal sensitivities."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from raysense.allocation import Allocation, LevelGrid
from raysense.errors import RaysenseError
from raysense.evaluation.shards import shards_of
from raysense.execution.local import LocalExecutor
from raysense.names import OUTLIERS
from raysense.pipelines.cost import Cost
from raysense.pruning.layers import Inventory, take_inventory
from raysense.pruning.patterns import Pattern, pattern_grid
from raysense.records import CALIBRATION, SHARD, Evaluation, EvaluationRequest, Measure, TrialSpec
from raysense.store.store import Store
from raysense.strategies.context import Findings
from raysense.strategies.rules import built_in_rules
from raysense.strategies.runner import StrategyRunner
from raysense.strategies.schedule import make_strategy
from raysense.study import Budget, Study, parse

LAYERS = 12
SIGNATURE = "made-up"


class Landscape:
    """Damage of a layer: its sensitivity times (s / (1 - s))²; the drop of the score is the sum."""

    def __init__(self, inventory: Inventory, grid: LevelGrid, noise: float = 0.002) -> None:
        self.inventory, self.grid, self.noise = inventory, grid, noise
        self.requests: list[EvaluationRequest] = []

    def damage(self, allocation: Allocation) -> float:
        total = 0.0
        for number, layer in enumerate(self.inventory.layers):
            sparsity = self.grid.zeros_at(layer.address, allocation[layer.address]) / layer.n
            total += 10 ** (-3 * number / LAYERS) * (sparsity / (1 - sparsity)) ** 2
        return total

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        self.requests.append(request)
        damage = self.damage(request.allocation)
        images = {"probe": 0, "preview": 8, "score": 16, "validation": 32, SHARD: 5}[request.rung]
        near = Measure(damage, damage - self.noise, damage + self.noise, 16, "made-up")
        return Evaluation(
            key=request.key(SIGNATURE),
            trial="",
            stage="",
            allocation=request.allocation.key,
            rung=request.rung,
            replicate=request.replicate,
            measures={"probe_error": near} if request.rung == "probe" else {"clip_score_drop": near},
            zeros=self.grid.zeros(request.allocation),
            images=images,
            nfe=max(images, 1) * 10,
            seconds=0.0,
        )


def made_up(
    per_shard: int = 128, **search: object
) -> tuple[Study, Inventory, LevelGrid, StrategyRunner[Findings]]:
    study = parse(
        {
            "name": "made-up",
            "prune": {"components": ["unet"]},
            "constraints": {"clip_score": {"max_drop": 0.2}},
            "rungs": {
                "preview": {"prompts": 8},
                "score": {"prompts": 16},
                "validation": {"prompts": 32},
            },
            "search": {"strategies": ["uniform", "solver"], "bisections": 7, **search},
            "cluster": {"images_per_shard": per_shard},
        }
    )
    modules = {"unet": nn.Sequential(*(nn.Linear(32, 32 + 8 * (i % 3)) for i in range(LAYERS)))}
    inventory = take_inventory(modules, select=["unet"])
    grid = LevelGrid(inventory.sizes, study.prune.max_layer_sparsity)
    rules = built_in_rules(inventory, grid, modules)
    return study, inventory, grid, make_strategy(study, inventory, grid, rules)


def run(
    folder: Path,
    lookahead: int = 4,
    per_shard: int = 128,
    make: Callable[[Inventory, LevelGrid], Landscape] | None = None,
    **search: object,
) -> tuple[Findings, Landscape]:
    study, inventory, grid, runner = made_up(per_shard, **search)
    landscape = (make or Landscape)(inventory, grid)
    store = Store.open(str(folder), create=True)
    store.begin(study.model_dump(mode="json"), signature=SIGNATURE)
    LocalExecutor(landscape).run(runner, store, signature=SIGNATURE, lookahead=lookahead)
    assert runner.error is None
    assert runner.outcome is not None
    return runner.outcome, landscape


def test_the_winner_is_inside_the_budget_and_far_sparser_than_uniform(tmp_path: Path) -> None:
    findings, landscape = run(tmp_path)
    assert findings.winner is not None
    assert findings.uniform is not None
    assert findings.winner.strategy in ("solver", "joint")
    assert landscape.damage(findings.winner.allocation) <= 0.2
    assert findings.winner.zeros > 1.15 * findings.uniform.zeros
    assert findings.winner.evaluation.rung == "validation"


class HeldOut(Landscape):
    """Held-out prompts on which all allocations but the uniform ones lose more, from a number of zeros on."""

    def __init__(self, inventory: Inventory, grid: LevelGrid, above: int) -> None:
        super().__init__(inventory, grid)
        self.above = above

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        found = super().evaluate(request)
        shares = [self.grid.zeros_at(a, request.allocation[a]) / n for a, n in self.inventory.sizes]
        is_uniform = max(shares) - min(shares) < 0.03
        if (
            request.rung == "validation"
            and not is_uniform
            and self.grid.zeros(request.allocation) > self.above
        ):
            return replace(found, measures={"clip_score_drop": Measure(9.0, 8.0, 10.0, 32, "made-up")})
        return found


@pytest.mark.parametrize("left", [0.0, 0.85], ids=["none of the contender's", "only its least sparse"])
def test_whatever_passed_competes_and_the_sparsest_wins(tmp_path: Path, left: float) -> None:
    """The best on the search's prompts need not be the best that passes."""
    looked, _ = run(tmp_path / "free", strategies=["uniform", "erk"], rounds=0)
    best = max((c for c in looked.tried if c.feasible), key=lambda c: c.zeros)
    assert best.strategy == "erk"
    findings, _ = run(
        tmp_path / "study",
        make=lambda inventory, grid: HeldOut(inventory, grid, int(left * best.zeros)),
        strategies=["uniform", "erk"],
        rounds=0,
    )
    passed = [c for c in findings.validated if c.feasible]
    assert ({c.strategy for c in passed} == {"uniform"}) is (left == 0.0)
    winner = findings.winner
    assert winner is not None
    assert winner.strategy == "uniform"
    assert winner.zeros == max(c.zeros for c in passed)
    assert findings.uniform == winner


class Kinder(Landscape):
    """Held-out prompts that lose nothing up to a number of zeros, and much above it."""

    def __init__(self, inventory: Inventory, grid: LevelGrid, most: int) -> None:
        super().__init__(inventory, grid)
        self.most = most

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        found = super().evaluate(request)
        if request.rung != "validation":
            return found
        drop = 0.0 if self.grid.zeros(request.allocation) <= self.most else 9.0
        return replace(
            found, measures={"clip_score_drop": Measure(drop, drop - 0.01, drop + 0.01, 32, "made-up")}
        )


@pytest.mark.parametrize(
    ("most", "beyond", "shares"),
    [
        (1.06, 4, [0.8, 0.9, 0.95, 1.0, 1.025, 1.05, 1.075]),
        (1.5, 2, [0.8, 0.9, 0.95, 1.0, 1.025, 1.05]),
        (1.5, 0, [0.8, 0.9, 0.95, 1.0]),
        (0.97, 4, [0.8, 0.9, 0.95, 1.0]),
    ],
    ids=["until the first failure", "at most so many", "none", "never after a failure"],
)
def test_held_out_prompts_go_on_beyond_the_best(
    tmp_path: Path, most: float, beyond: int, shares: list[float]
) -> None:
    given: dict[str, Any] = {"strategies": ["uniform"], "rounds": 0, "bisections": 4, "beyond": beyond}
    looked, _ = run(tmp_path / "free", **given)
    best = max((c for c in looked.tried if c.feasible), key=lambda c: c.zeros)
    findings, _ = run(
        tmp_path / "study",
        make=lambda inventory, grid: Kinder(inventory, grid, int(most * best.zeros)),
        **given,
    )
    tested = [candidate.zeros / best.zeros for candidate in findings.validated]
    assert tested == pytest.approx(shares, abs=0.01)
    passed = [candidate for candidate in findings.validated if candidate.feasible]
    assert findings.winner == passed[-1]


def test_a_curve_stops_where_nothing_is_left(tmp_path: Path) -> None:
    findings, landscape = run(tmp_path)
    # The most sensitive layer reaches damage 1 at half its weights; its curve must not go on to the cap.
    worst, *_, best = findings.curves
    assert max(worst.sparsity) < 0.8
    assert max(best.sparsity) > 0.9
    probes = [t for t in landscape.requests if t.rung == "probe"]
    assert len(probes) <= LAYERS * 4  # half of what a fixed grid of 8 levels takes


def test_resumed_in_the_middle_gives_the_same_answer(tmp_path: Path) -> None:
    whole, everything = run(tmp_path / "whole")
    study, inventory, grid, _ = made_up()
    half = Store.open(str(tmp_path / "half"), create=True)
    half.begin(study.model_dump(mode="json"), signature=SIGNATURE)
    for request in everything.requests[:60]:
        half.put(Landscape(inventory, grid).evaluate(request), request.allocation)
    again, rest = run(tmp_path / "half")
    assert again.winner is not None
    assert whole.winner is not None
    assert again.winner.allocation == whole.winner.allocation
    keys = {t.key(SIGNATURE) for t in everything.requests}
    assert len(rest.requests) == len(keys) - len({t.key(SIGNATURE) for t in everything.requests[:60]})


@pytest.mark.parametrize("per_shard", [128, 10])
def test_each_evaluation_is_made_once(tmp_path: Path, per_shard: int) -> None:
    _, landscape = run(tmp_path, per_shard=per_shard)
    keys = [request.key(SIGNATURE) for request in landscape.requests]
    assert len(keys) == len(set(keys))


def test_large_evaluations_are_sampled_in_shards_first_and_decide_the_same(tmp_path: Path) -> None:
    names = ["uniform", "solver", "evopress"]
    whole, _ = run(tmp_path / "whole", strategies=names, rounds=1, offspring=4)
    parted, landscape = run(tmp_path / "parted", strategies=names, rounds=1, offspring=4, per_shard=10)
    assert parted.winner is not None
    assert whole.winner is not None
    assert parted.winner.allocation == whole.winner.allocation
    assert [c.allocation for c in parted.tried] == [c.allocation for c in whole.tried]
    study = made_up(per_shard=10)[0]
    seen: set[EvaluationRequest] = set()
    for request in landscape.requests:
        assert seen.issuperset(shards_of(study, request.allocation, request.rung)), request
        seen.add(request)
    # What the preview makes hopeless is not sampled further.
    hopeless = {
        c.allocation for c in parted.tried if c.evaluation.rung == "preview" and c.strategy != "evopress"
    }
    assert hopeless
    of_them = [
        t for t in landscape.requests if t.allocation in hopeless and t.shard and t.shard.rung == "score"
    ]
    assert not of_them


def test_parts_go_side_by_side() -> None:
    _, _, _, runner = made_up(per_shard=10)
    asked: list[TrialSpec] = []
    while (spec := runner.ask()) is not None:
        asked.append(spec)
    # Score: what the preview has not, and four of the reference; validation: four and seven.
    assert [q.requests[0].rung for q in asked] == [SHARD] * (1 + 4 + 4 + 7)
    assert asked[0].name == "baseline/search/shard 1: score reference 1 of 4"
    assert len({q.name for q in asked}) == len(asked)


def test_the_largest_damage_may_be_kept_least_instead_of_the_sum(tmp_path: Path) -> None:
    findings, landscape = run(tmp_path, objective="minimax", rounds=0)
    (best, *_) = sorted(
        (c for c in findings.tried if c.strategy == "solver" and c.feasible), key=lambda c: -c.zeros
    )
    share = [landscape.grid.zeros_at(a, best.allocation[a]) / n for a, n in landscape.inventory.sizes]
    pairs = itertools.pairwise(share)  # layers have levels, a few thousandths apart
    assert all(later >= earlier - 0.005 for earlier, later in pairs), "the less sensitive, the sparser"
    assert findings.winner is not None


@pytest.mark.parametrize("granularity", ["component", "block"])
def test_coarser_groups(tmp_path: Path, granularity: str) -> None:
    findings, _ = run(tmp_path, granularity=granularity)
    assert findings.winner is not None


class Learner(Landscape):
    """Answers a calibration too: every second layer has outliers."""

    rule = "owl"

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        if request.rung != CALIBRATION:
            return super().evaluate(request)
        self.requests.append(request)
        ratios = {layer.address: 0.01 * (i % 2) for i, layer in enumerate(self.inventory.layers)}
        measures = {OUTLIERS[self.rule] + a: Measure(r, r, r, 4, "made-up") for a, r in ratios.items()}
        key = request.key(SIGNATURE)
        return Evaluation(
            key=key, rung=request.rung, measures=measures, zeros=0, images=4, nfe=50, seconds=0.0
        )


@pytest.mark.parametrize("rule", OUTLIERS)
def test_owl_allocates_by_what_the_calibration_found(tmp_path: Path, rule: str) -> None:
    study, inventory, grid, _ = made_up(strategies=[rule], bisections=2, rounds=0)
    runner = make_strategy(study, inventory, grid, built_in_rules(inventory, grid, {}), calibration_cost=60)
    landscape = Learner(inventory, grid)
    landscape.rule = rule
    store = Store.open(str(tmp_path), create=True)
    store.begin(study.model_dump(mode="json"), signature=SIGNATURE)
    LocalExecutor(landscape).run(runner, store, signature=SIGNATURE, lookahead=4)
    assert runner.error is None
    assert landscape.requests[0] == EvaluationRequest(Allocation(), CALIBRATION)
    assert runner.outcome is not None
    (first, *_) = runner.outcome.tried
    assert first.strategy == rule
    share = [grid.zeros_at(a, first.allocation[a]) / n for a, n in inventory.sizes]
    assert min(share[::2]) > max(share[1::2]), "layers with outliers are pruned less"


def test_a_pattern_study_chooses_the_layers_that_follow_it(tmp_path: Path) -> None:
    study, inventory, _, _ = made_up(bisections=3, rounds=1, offspring=2)
    grid = pattern_grid(inventory, Pattern(2, 4))
    runner = make_strategy(study, inventory, grid, built_in_rules(inventory, grid, {}))
    store = Store.open(str(tmp_path), create=True)
    store.begin(study.model_dump(mode="json"), signature=SIGNATURE)
    LocalExecutor(Landscape(inventory, grid)).run(runner, store, signature=SIGNATURE, lookahead=4)
    assert runner.error is None
    assert runner.outcome is not None
    winner = runner.outcome.winner
    assert winner is not None
    assert 0 < len(winner.allocation) < LAYERS
    assert set(winner.allocation.values()) == {1}
    assert "unet:0" not in winner.allocation, "the most sensitive layer stays whole"


def test_impossible_bound_is_refused_with_the_dense_value(tmp_path: Path) -> None:
    study, inventory, grid, runner = made_up()
    landscape = Landscape(inventory, grid, noise=0.5)
    store = Store.open(str(tmp_path), create=True)
    store.begin(study.model_dump(mode="json"), signature=SIGNATURE)
    LocalExecutor(landscape).run(runner, store, signature=SIGNATURE, lookahead=4)
    assert runner.error is not None
    assert "`constraints.clip_score.max_drop` is 0.2, but the dense pipeline itself has" in str(runner.error)
    assert all(not request.allocation for request in landscape.requests)


def spend(
    folder: Path, seconds: float = 0.0, per_shard: int = 128, **budget: float
) -> tuple[StrategyRunner[Findings], Landscape]:
    """A study with a budget, on a pipeline whose NFE cost what the plan reckons, timed."""
    study, inventory, grid, plain = made_up(per_shard)
    limited = study.model_copy(update={"budget": Budget.model_validate(budget)})
    runner = make_strategy(limited, inventory, grid, built_in_rules(inventory, grid, {}))
    landscape = Timed(inventory, grid, plain, seconds)
    store = Store.open(str(folder), create=True)
    store.begin(limited.model_dump(mode="json"), signature=SIGNATURE, extensions=("budget",))
    LocalExecutor(landscape).run(runner, store, signature=SIGNATURE, lookahead=4)
    assert runner.done
    assert runner.error is None
    return runner, landscape


class Timed(Landscape):
    def __init__(
        self, inventory: Inventory, grid: LevelGrid, runner: StrategyRunner[Findings], seconds: float
    ) -> None:
        super().__init__(inventory, grid)
        self.runner, self.seconds, self.runner_image = runner, seconds, 24

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        cost = self.runner.cost_of(TrialSpec("", "", (request,)))
        slower = 1 + 0.2 * (int(request.allocation.key, 16) % 3 - 1)
        images = 0 if request.rung == "probe" else cost // self.runner_image
        return replace(
            super().evaluate(request), images=images, nfe=cost, seconds=cost * self.seconds * slower
        )


@pytest.mark.parametrize("per_shard", [128, 10])
@pytest.mark.parametrize("budget", [5_000, 8_000, 12_000, 16_000, 20_000])
def test_budget_is_never_exceeded(tmp_path: Path, budget: int, per_shard: int) -> None:
    runner, _ = spend(tmp_path, max_nfe=budget, per_shard=per_shard)
    assert runner.tracker.spent <= budget
    assert runner.tracker.refusal is not None
    assert f"`budget.max_nfe` is {budget:,} NFE" in str(runner.tracker.refusal)
    assert runner.outcome is not None
    if budget >= 16_000:
        assert runner.outcome.winner is not None, "the best so far, validated"


@pytest.mark.parametrize(("per_shard", "least"), [(128, "4,032"), (10, "3,456")])
def test_a_budget_below_the_dense_pipeline_is_refused_before_anything_is_spent(
    per_shard: int, least: str
) -> None:
    # Of 24 NFE an image, at most three times 8, 16 and 32; in shards it is known: three times 16 and 32.
    study, inventory, grid, _ = made_up(per_shard)
    limited = study.model_copy(update={"budget": Budget(max_nfe=1000)})
    with pytest.raises(RaysenseError, match=rf"is 1,000 NFE, but measuring the dense pipeline takes {least}"):
        make_strategy(limited, inventory, grid, built_in_rules(inventory, grid, {}))


@pytest.mark.parametrize("per_shard", [128, 10])
@pytest.mark.parametrize("counted", [24, 42])
def test_a_budget_that_is_called_enough_ends_with_an_answer(
    tmp_path: Path, per_shard: int, counted: int
) -> None:
    """Also where an image costs 1.75 times what was foreseen: that is counted on the dense pipeline's images."""
    study, inventory, grid, _ = made_up(per_shard)
    rules = built_in_rules(inventory, grid, {})
    truth = Cost(counted, 12, "counted")

    def story_of(limit: int, cost: Cost | None) -> StrategyRunner[Findings]:
        limited = study.model_copy(update={"budget": Budget(max_nfe=limit)})
        return make_strategy(limited, inventory, grid, rules, cost=cost)

    with pytest.raises(RaysenseError, match=r"validated answer some [\d,]+") as refused:
        story_of(1, None)
    enough = int(re.findall(r"some ([\d,]+)", str(refused.value))[0].replace(",", ""))
    store = Store.open(str(tmp_path), create=True)
    store.begin(study.model_dump(mode="json"), signature=SIGNATURE, extensions=("budget",))
    landscape = Timed(inventory, grid, story_of(10**9, truth), 0.0)
    landscape.runner_image = counted
    for _ in range(2):
        runner = story_of(enough, None)
        LocalExecutor(landscape).run(runner, store, signature=SIGNATURE, lookahead=4)
        assert runner.tracker.spent <= enough
        if runner.error is None:
            break
        # It says what is missing as soon as the dense pipeline is counted; that much is enough then.
        assert f"an image of this pipeline takes {counted} of them" in str(runner.error)
        assert {request.allocation for request in landscape.requests} == {Allocation()}
        enough = int(re.findall(r"set it to ([\d,]+)", str(runner.error))[0].replace(",", ""))
    assert runner.error is None
    assert runner.outcome is not None
    assert runner.outcome.winner is not None


@pytest.mark.parametrize("per_shard", [128, 10])
def test_what_the_plan_expects_is_about_what_it_spends(tmp_path: Path, per_shard: int) -> None:
    runner, landscape = spend(tmp_path, per_shard=per_shard)
    plan = made_up(per_shard)[3]
    assert (
        runner.tracker.spent < plan.wanted_nfe < 2.5 * runner.tracker.spent
    )  # a preview that ends a climb saves the rest
    assert runner.tracker.spent <= runner.wanted_nfe < 1.5 * runner.tracker.spent  # as of the last stage
    assert len(landscape.requests) <= runner.wanted * 1.1


def test_hours_and_money_are_hard_and_depend_on_stored_seconds_alone(tmp_path: Path) -> None:
    free, _ = spend(tmp_path / "free", seconds=0.1)
    hours = free.tracker.seconds / 3600
    half, first = spend(tmp_path / "half", seconds=0.1, max_hours=0.7 * hours)
    assert half.tracker.seconds / 3600 <= 0.7 * hours
    assert half.outcome is not None
    assert half.outcome.winner is not None
    priced, _ = spend(tmp_path / "priced", seconds=0.1, max_price=1.4 * hours, price_per_hour=2.0)
    assert priced.outcome is not None
    assert priced.outcome.winner is not None
    assert priced.outcome.winner.allocation == half.outcome.winner.allocation
    assert "`budget.max_price`" in str(priced.tracker.refusal)
    again, second = spend(
        tmp_path / "half", seconds=9.9, max_hours=0.7 * hours
    )  # a slower machine, all stored
    assert again.outcome == half.outcome
    assert first.requests
    assert not second.requests
    more, third = spend(tmp_path / "half", seconds=0.1, max_hours=hours * 2)  # raised, it goes on
    assert more.tracker.refusal is None
    assert third.requests


def test_every_strategy_by_name_under_one_interface(tmp_path: Path) -> None:
    names = ["uniform", "erk", "solver", "random", "switches", "tpe", "evopress"]
    findings, landscape = run(tmp_path, strategies=names, rounds=1, offspring=6, compare=True, bisections=5)
    tried = {candidate.strategy for candidate in findings.tried}
    assert tried == {*names, "joint"}
    validated = {candidate.strategy for candidate in findings.validated}
    assert {"uniform", "solver", "erk"} <= validated  # each strategy's best, where it found one
    assert findings.winner is not None
    assert landscape.damage(findings.winner.allocation) <= 0.2
    assert findings.uniform is not None
    assert findings.winner.zeros > findings.uniform.zeros
    judged = [c for c in findings.tried if c.strategy == "joint"]
    assert len(judged) == 6


def test_decisions_are_the_same_whoever_finishes_first(tmp_path: Path) -> None:
    """The same study on 1 worker and on 8 that finish in random order asks the same trials."""
    import random

    from raysense.strategies.base import Lookahead

    def asked(workers: int, seed: int) -> list[str]:
        _, inventory, grid, runner = made_up(strategies=["uniform", "solver", "switches"], bisections=4)
        landscape, lookahead = Landscape(inventory, grid), Lookahead(runner, 8)
        rng, names, running = random.Random(seed), list[str](), list[TrialSpec]()
        while not lookahead.done:
            while len(running) < workers and (spec := lookahead.ask()) is not None:
                running.append(spec)
                names += [spec.name, *(request.allocation.key for request in spec.requests)]
            if running:
                spec = running.pop(rng.randrange(len(running)))
                answers = []
                for request in spec.requests:
                    answers.append(landscape.evaluate(request))
                    if spec.stop is not None and spec.stop.says_stop(answers[-1]):
                        break
                lookahead.tell(spec, answers)
        return names

    assert asked(8, 1) == asked(1, 0)
