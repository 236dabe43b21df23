"""Is a validated "feasible" true? Thousands of whole studies on made-up pipelines, with the noise of the bundled one.

    python -m benchmarks.verdicts [--quick] [--studies N] [--seed N] [--only NAME ...] [--out DIR]

Every study runs the real plan: curves by probe, climbs, joint search, early drops on the preview, the strategies'
finalists on held-out prompts, the winner among all that passed, intervals from simulated per-image scores. What is made
up is the pipeline: eight layers whose true mean drop of the CLIP score is known, so that a verdict can be checked.
Counted is how often a study names a winner whose true drop is past the bound; the bar is 5 % of the studies, in each
scenario with the noise of the rows.

- typical: drops add up over layers of very unequal sensitivity, which the probe sees with an error of its own.
- cliff: harmless up to a total that differs from study to study, 5 % past the bound beyond it.
- bound: every allocation, however small, lies a millionth past the bound; a winner is always wrong.
- misled: the same, but on the search's own prompts nothing is to be seen of it, so that every study sends its
  sparsest candidates to validation. No scenario can be worse for one test after another from the least sparse up.
- compared: misled, and six strategies send finalists instead of two, all of which compete.
- again: misled, and run anew until something passes, six times at most: each time another search on other prompts of
  its own, finalists on the same held-out ones, the earlier looks counted as the product counts them.
- uncounted: the same, each run judged as if it were the first: what counting is for. Not under the bar.
- real: misled, and on held-out prompts real pairs of a bundled pipeline (`benchmarks.pool`) in the place of made-up
  drops: its prompts and its reference drawn anew in each study, measures by the product's scorer, each moved so that
  its truth lies a millionth past the bound. For either pipeline and either default bound, on the CLIP score's drop and
  on KID's rise.
- resolved: typical, in a store, and then `raysense resolve` for half and for twice the bound: how often what it calls
  measured on held-out prompts is past that bound, how often what it predicts is, and how often what a test on held-out
  prompts then says that it uses lies in the predicted interval (at least 93 % are to).
- skewed: misled, with drops far more skewed than any in the rows: where the t interval gives way. Not under the bar.

Noise per image, from rows of the default study on the bundled pipeline (`samples` of the metric `clip_score`: 25
candidates on 80 prompts, 6 on 160): within one allocation the drop's standard deviation is .012 to .014 at a mean drop
of .0025 and .020 to .024 at .008; over prompts, two candidates correlate by .1 to .99, median .55; skewness
near the bound is -1.2 to +.9. Taken here: variance .010² + .022² (drop / .01), correlation .55, skewness +.7, the
unlucky side (most prompts suffer little, some much); in `skewed` +2.1, three times that. Prompts a rung and
the bound of .01 are the default study's.

The last line is one JSON object: benchmark, figures, bar, holds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats
from torch import nn

from benchmarks.pool import BEDS, Pool, Size
from benchmarks.pool import QUICK as QUICK_POOL
from raysense.allocation import Allocation, LevelGrid
from raysense.execution.executor import signed
from raysense.execution.ledger import Ledger
from raysense.execution.local import LocalExecutor
from raysense.feasibility import utilisation
from raysense.metrics.intervals import Floats, paired_drop
from raysense.pruning.layers import Inventory, take_inventory
from raysense.records import SHARD, Evaluation, EvaluationRequest, Measure
from raysense.search.job import denominators, layer_rows
from raysense.search.resolve import asked_of, resolve
from raysense.store.store import Store
from raysense.strategies.base import Lookahead
from raysense.strategies.context import Candidate
from raysense.strategies.rules import built_in_rules
from raysense.strategies.schedule import make_strategy
from raysense.strategies.verdict import held_out_stretch
from raysense.study import ImageRung, Study, load

BAR = 0.05
COVERED = 0.93
"""Share of `resolve`'s predictions whose 95 % interval contains what a test then says, at least."""

LIMIT = 0.01
LAYERS = 8
QUIET, LOUD = 0.010, 0.022
"""Standard deviation of an image's drop where nothing is pruned away, and what a mean drop of `LIMIT` adds."""

CORRELATION = 0.55
SKEWNESS = {"skewed": 2.1}
USUAL_SKEWNESS = 0.7
SCENARIOS = ("typical", "cliff", "bound", "misled", "compared", "skewed", "again", "uncounted")
MISLED = SCENARIOS[3:]
EVERY = (
    *SCENARIOS,
    "resolved",
    *(f"real {bed} {m}" for bed in BEDS for m in ("clip_score_drop", "kid_rise")),
)
RUNS = {"again": 6, "uncounted": 6}
"""How often a study is run on the same held-out prompts, each time with another seed."""

NO_BAR = ("skewed", "uncounted")
REAL = EVERY[len(SCENARIOS) + 1 :]
BOUND_OF = {"clip_score_drop": ("clip_score", "max_drop", LIMIT), "kid_rise": ("kid", "max_rise", 3 * LIMIT)}
OTHER_BOUNDS = (0.5 * LIMIT, 2 * LIMIT)
"""What a stored study is asked by `resolve`."""
COMPARED = "[uniform, erk, global, lamp, solver]"  # and the joint search
DEFAULT, QUICK = 1000, 10
TRUTH_DRAWS = 300
PROBE_ERROR = 0.5
"""Relative error (of the logarithm) of a layer's probe curve."""


@dataclass(frozen=True)
class Ground:
    """What all studies share."""

    study: Study
    inventory: Inventory
    grid: LevelGrid
    modules: dict[str, nn.Module]


def make_ground(name: str) -> Ground:
    """The default study's rungs and bound on eight small layers; the product's own plan decides what competes."""
    compared = name == "compared"
    metric, field, limit = BOUND_OF[name.split()[-1] if name in REAL else "clip_score_drop"]
    study = load(
        None,
        [
            "prune={components: [unet]}",
            f"constraints={{{metric}: {{{field}: {limit}}}}}",
            f"search.strategies={COMPARED if compared else '[uniform, solver]'}",
            f"search.compare={str(compared).lower()}",
            "search.levels=4",
            "search.rounds=1",
            "search.offspring=4",
        ],
    )
    modules: dict[str, nn.Module] = {
        "unet": nn.Sequential(*(nn.Linear(32, 32 + 8 * (i % 3)) for i in range(LAYERS)))
    }
    inventory = take_inventory(modules, select=["unet"])
    return Ground(study, inventory, LevelGrid(inventory.sizes, study.prune.max_layer_sparsity), modules)


class MadeUp:
    """A pipeline whose true drop is known, and its noise.

    Args:
        ground: Layers and rungs.
        scenario: One of `SCENARIOS`.
        seed: Fixes everything drawn.
    """

    def __init__(self, ground: Ground, scenario: str, seed: int) -> None:
        self.ground, self.scenario = ground, scenario
        self.rng = np.random.default_rng([seed, EVERY.index(scenario)])
        self.sensitivity = 10 ** self.rng.uniform(-3.5, -0.5, LAYERS)
        self.probed = self.sensitivity * np.exp(PROBE_ERROR * self.rng.standard_normal(LAYERS))
        self.edge = self.rng.uniform(0.3, 0.8)
        skewness = SKEWNESS.get(scenario, USUAL_SKEWNESS)
        # A sum of two parts is less skewed than each of them.
        self.skewness = skewness / (CORRELATION**1.5 + (1 - CORRELATION) ** 1.5)
        rungs = ground.study.rungs
        self.common = {
            "search": self.draw(rungs.score.prompts), "validation": self.draw(rungs.validation.prompts)
        }  # fmt: skip
        self.known: dict[tuple[Allocation, str], Floats] = {}

    def rerun(self, seed: int) -> None:
        """The search's prompts, and what the probe gets wrong, are others from now on; the held-out ones stay."""
        self.rng = np.random.default_rng([seed, EVERY.index(self.scenario), 1])
        self.probed = self.sensitivity * np.exp(PROBE_ERROR * self.rng.standard_normal(LAYERS))
        self.common["search"] = self.draw(self.ground.study.rungs.score.prompts)
        self.known = {key: drops for key, drops in self.known.items() if key[1] == "validation"}

    def draw(self, n: int) -> Floats:
        """Independent numbers of mean 0, variance 1 and the scenario's skewness."""
        shape = 4 / self.skewness**2
        return np.asarray((self.rng.gamma(shape, 1.0, n) - shape) / shape**0.5)

    def added(self, allocation: Allocation, sensitivity: Floats) -> float:
        """Damage that adds up over layers; 1 lies on the bound."""
        grid, total = self.ground.grid, 0.0
        for weight, layer in zip(sensitivity, self.ground.inventory.layers, strict=True):
            share = grid.zeros_at(layer.address, allocation[layer.address]) / layer.n
            total += float(weight) * (share / (1 - share)) ** 2
        return total

    def truth(self, allocation: Allocation) -> float:
        """The true mean drop, over all prompts and noises there are."""
        if not allocation:
            return 0.0
        if self.scenario in ("typical", "resolved"):
            return LIMIT * self.added(allocation, self.sensitivity)
        if self.scenario == "cliff":
            share = self.ground.grid.zeros(allocation) / self.ground.grid.n
            return LIMIT * (0.2 if share <= self.edge else 1.05)
        return LIMIT * (1 + 1e-6)

    def drops(self, allocation: Allocation, prompts: str) -> Floats:
        """An image's drop for every prompt of a set; asked again, the same."""
        key = allocation, prompts
        if key not in self.known:
            mean = self.truth(allocation)
            if prompts == "search" and self.scenario in MISLED:
                mean = 0.0
            sd = (QUIET**2 + LOUD**2 * mean / LIMIT) ** 0.5
            common = self.common[prompts]
            own = self.draw(len(common))
            self.known[key] = mean + sd * (CORRELATION**0.5 * common + (1 - CORRELATION) ** 0.5 * own)
        return self.known[key]

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        """What an evaluator would say."""
        rung = getattr(self.ground.study.rungs, request.rung, None)
        measures = {}
        if isinstance(rung, ImageRung):
            drops = self.drops(request.allocation, "validation" if request.rung == "validation" else "search")
            drops = drops[: rung.prompts] if request.allocation else np.zeros(rung.prompts)
            found = paired_drop(drops, np.zeros(len(drops)), range(len(drops)))
            measures["clip_score_drop"] = Measure(
                found.value, found.ci_low, found.ci_high, len(drops), "made-up"
            )
        elif request.rung != SHARD:
            error = self.added(request.allocation, self.probed)
            measures["probe_error"] = Measure(error, error, error, 1, "made-up")
        return Evaluation(
            key="", trial="", stage="", allocation=request.allocation.key, rung=request.rung, replicate=0,
            measures=measures, zeros=self.ground.grid.zeros(request.allocation), images=0, nfe=0, seconds=0.0,
        )  # fmt: skip


class RealPairs(MadeUp):
    """Real pairs on held-out prompts, see `real` above.

    Args:
        ground: Layers and rungs.
        scenario: One of `REAL`.
        seed: Fixes everything drawn.
        population: Of the scenario's pipeline.
    """

    def __init__(self, ground: Ground, scenario: str, seed: int, population: Population) -> None:
        super().__init__(ground, scenario, seed)
        self.measure = scenario.split()[-1]
        self.population = population
        self.drawn = population.pool.drawn(self.rng, ground.study.rungs.validation.prompts)

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        """What an evaluator would say: on the search's prompts nothing is to be seen."""
        found = super().evaluate(request)
        if not isinstance(getattr(self.ground.study.rungs, request.rung, None), ImageRung):
            return found
        value = Measure(0.0, 0.0, 0.0, 1, "made-up")
        if request.allocation and request.rung == "validation":
            level = int(request.allocation.key, 16) % len(self.population.pool.levels)
            m = self.drawn.measures(level)[self.measure]
            past = BOUND_OF[self.measure][2] * (1 + 1e-6) - self.population.truths[self.measure][level]
            value = Measure(m.value + past, m.ci_low + past, m.ci_high + past, m.n, m.extractor)
        return replace(found, measures={self.measure: value})


@dataclass(frozen=True)
class Population:
    """A pool, and the truth of each of its pruned pipelines: the mean over many draws of a study's size.

    Attributes:
        pool: The pool.
        truths: Measure -> its truths, a pruned pipeline each.
    """

    pool: Pool
    truths: Mapping[str, Sequence[float]]

    @classmethod
    def of(cls, bed: str, size: Size, folder: Path, prompts: int, draws: int) -> Population:
        """Painted or read, and its truths estimated."""
        pool, rng = Pool(bed, size, folder), np.random.default_rng(0)
        found: dict[str, list[list[float]]] = {name: [] for name in BOUND_OF}
        for _ in range(draws):
            drawn = pool.drawn(rng, prompts)
            rows = [drawn.measures(level) for level in range(len(pool.levels))]
            for name, values in found.items():
                values.append([row[name].value for row in rows])
        return cls(pool, {name: np.mean(values, axis=0).tolist() for name, values in found.items()})


def winner_of(ground: Ground, pipeline: MadeUp, seed: int, earlier_looks: int = 0) -> Candidate | None:
    """One study from the baseline to the verdict."""
    search = ground.study.search.model_copy(update={"earlier_looks": earlier_looks})
    study = ground.study.model_copy(update={"seed": seed, "search": search})
    rules = built_in_rules(ground.inventory, ground.grid, ground.modules)
    runner = make_strategy(study, ground.inventory, ground.grid, rules)
    ledger = Ledger(Lookahead(runner, study.search.lookahead), {}, str(seed))
    while (work := ledger.next()) is not None:
        while work.left:
            evaluation = pipeline.evaluate(work.left[0])
            row = signed(evaluation, work.spec, work.left[0], signature=str(seed), trial="", life="")
            ledger.answer(work, row)
    if runner.error is not None:
        raise runner.error
    assert runner.outcome is not None
    return runner.outcome.winner


def winners_of(ground: Ground, pipeline: MadeUp, seed: int) -> Iterator[Candidate | None]:
    """The winners of a study that is run again and again on the same held-out prompts, or just once."""
    for look in range(RUNS.get(pipeline.scenario, 1)):
        if look:
            pipeline.rerun(seed * 1000 + look)
        yield winner_of(
            ground,
            pipeline,
            seed * 1000 + look if look else seed,
            0 if pipeline.scenario == "uncounted" else look,
        )


def share(wrong: int, studies: int) -> dict[str, float]:
    """A share with its exact 95 % Monte-Carlo interval (Clopper and Pearson)."""
    interval = stats.binomtest(wrong, studies).proportion_ci(0.95, method="exact")
    return {
        "wrong": round(wrong / studies, 4),
        "low": round(float(interval.low), 4),
        "high": round(float(interval.high), 4),
    }


def resolved(studies: int, seed: int) -> dict[str, float]:
    """How often `raysense resolve` errs about a typical study's rows under other bounds."""
    ground, wrong, over, covered, named, foretold = make_ground("resolved"), 0, 0, 0, 0, 0
    for number in range(studies):
        pipeline = MadeUp(ground, "resolved", seed + number)
        with tempfile.TemporaryDirectory() as folder:
            stored_study(ground, pipeline, seed + number, folder)
            for bound in OTHER_BOUNDS:
                changed = f"constraints.clip_score.max_drop={bound}"
                answer = resolve(folder, [changed])
                known, predicted = answer["measured"], answer["predicted"]
                if known is not None and known["rung"] == "validation":
                    named += 1
                    levels = Store.open(folder).table("allocations").to_pylist()
                    own = {r["layer"]: r["level"] for r in levels if r["allocation"] == known["allocation"]}
                    wrong += pipeline.truth(Allocation(own)) > bound
                if predicted["zeros"]:
                    foretold += 1
                    allocation = Allocation(predicted["levels"])
                    over += pipeline.truth(allocation) > bound
                    tested = pipeline.evaluate(EvaluationRequest(allocation, "validation"))
                    asked = asked_of(ground.study, [changed])
                    used = utilisation(tested, asked.constraints.bounds(), held_out_stretch(asked))
                    assert used is not None
                    covered += predicted["utilisation_ci_low"] <= used <= predicted["utilisation_ci_high"]
    return {
        **share(wrong, 2 * studies),
        "studies": studies,
        "winners": named,
        "wrong_of_winners": round(wrong / named, 4) if named else 0.0,
        "mean_removed": 0.0,
        "predictions": foretold,
        "predictions_past_the_bound": round(over / foretold, 4) if foretold else 0.0,
        "predictions_covered": round(covered / foretold, 4) if foretold else 0.0,
    }


def stored_study(ground: Ground, pipeline: MadeUp, seed: int, folder: str) -> None:
    """One study to its end, in a store."""
    study = ground.study.model_copy(update={"seed": seed})
    rules = built_in_rules(ground.inventory, ground.grid, ground.modules)
    runner = make_strategy(study, ground.inventory, ground.grid, rules)
    store = Store.open(folder, create=True)
    parts = denominators(ground.inventory)
    store.begin(study.model_dump(mode="json"), signature=str(seed), denominators=parts)
    store.write_table("layers", layer_rows(ground.inventory, ground.grid, study.search.granularity))
    LocalExecutor(pipeline).run(runner, store, signature=str(seed), lookahead=study.search.lookahead)
    if runner.error is not None:
        raise runner.error


def scenario(
    name: str, studies: int, seed: int, populations: Mapping[str, Population] | None = None
) -> dict[str, float]:
    """How often a study names a winner, how often a wrong one, and the winner's mean share of weights removed.

    Args:
        name: The scenario.
        studies: How many.
        seed: Of the first; the others' follow.
        populations: By pipeline, for `REAL`.
    """
    if name == "resolved":
        return resolved(studies, seed)
    ground = make_ground(name)
    wrong, zeros = 0, list[int]()
    for number in range(studies):
        if name in REAL:
            assert populations is not None
            pipeline: MadeUp = RealPairs(ground, name, seed + number, populations[name.split()[1]])
        else:
            pipeline = MadeUp(ground, name, seed + number)
        found = [winner for winner in winners_of(ground, pipeline, seed + number) if winner is not None]
        zeros += [winner.zeros for winner in found[-1:]]
        wrong += any(pipeline.truth(winner.allocation) > LIMIT for winner in found)
    return {
        **share(wrong, studies),
        "studies": studies,
        "winners": len(zeros),
        "wrong_of_winners": round(wrong / len(zeros), 4) if zeros else 0.0,
        "mean_removed": round(float(np.mean(zeros)) / ground.grid.n, 3) if zeros else 0.0,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs every scenario and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK} studies a scenario: shows that it works"
    )
    parser.add_argument("--studies", type=int, default=DEFAULT, help="a scenario; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=EVERY, default=EVERY, metavar="NAME", help="scenarios")
    parser.add_argument("--out", type=Path, help="where real images are kept; default: a temporary folder")
    parsed = parser.parse_args(arguments)
    studies, found = QUICK if parsed.quick else parsed.studies, dict[str, dict[str, float]]()
    print(f"{'scenario':<38}{'wrong':>8}  95 % Monte Carlo  {'winners':>8}  {'removed':>8}  seconds")
    with tempfile.TemporaryDirectory() as temporary:
        folder = parsed.out or Path(temporary)
        populations: dict[str, Population] = {}
        for name in parsed.only:
            began = time.perf_counter()
            if name in REAL and (bed := name.split()[1]) not in populations:
                prompts = make_ground(name).study.rungs.validation.prompts
                size, draws = (QUICK_POOL, 5) if parsed.quick else (Size(), TRUTH_DRAWS)
                populations[bed] = Population.of(bed, size, folder, prompts, draws)
            row = found[name] = scenario(name, studies, parsed.seed, populations)
            print(
                f"{name:<38}{row['wrong']:>8.2%}  {row['low']:.2%} to {row['high']:<8.2%}  {row['winners']:>8}"
                f"  {row['mean_removed']:>8.1%}  {time.perf_counter() - began:.0f}",
                flush=True,
            )
    # A quick run's interval is wide; only what it leaves no doubt about counts there.
    usual = [row for name, row in found.items() if name not in NO_BAR]
    holds = all((row["low"] if parsed.quick else row["wrong"]) <= BAR for row in usual)
    holds &= parsed.quick or all(row.get("predictions_covered", 1.0) >= COVERED for row in usual)
    bar = {"wrong": BAR, "predictions_covered": COVERED}
    print(json.dumps({"benchmark": "verdicts", "figures": found, "bar": bar, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
