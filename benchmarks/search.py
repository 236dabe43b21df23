"""Every strategy on both bundled pipelines, at the same validated quality: sparsity, and what it cost.

    python -m benchmarks.search                    # preset cpu: 5 seeds x 2 pipelines x 3 bounds; days on 2 cores
    python -m benchmarks.search --preset short     # fewer images; ten to sixteen minutes a study and core
    python -m benchmarks.search --preset full      # layers, all strategies; a GPU
    python -m benchmarks.search --published        # EvoPress at its published length, at the total that ours reached
    python -m benchmarks.search --foretold         # what `raysense resolve` says of the studies, tested
    python -m benchmarks.search --table            # measure nothing: the table from the committed rows
    python -m benchmarks.search --quick            # preset tiny: minutes; shows that it works, and no more

One study a seed, pipeline and bound runs all strategies on the same rungs (`search.compare`), so that what several of
them ask is measured once; each is charged for it all the same. Started again, it goes on where it was stopped, in the
middle of a study too; `--studies N` ends it after so many. Rows, the table and a picture go to
``reports/benchmarks/search-<preset>/``. The last line of the output is one JSON object.

A seed changes everything that is drawn: the starting noise of every image, the prompts (each seed searches and
validates on prompts that no other seed sees) and the strategies' own random numbers. The studies of one bound are
therefore independent, and the 95 % bounds of a ratio are a t interval on its logarithm over them, paired study by
study; with a single study there is none. A ratio is a geometric mean.

What a strategy is charged: the evaluations that it stands on, each once, and nothing else. Its own; the climb of the
rule that EvoPress starts from; the climbs of all rules for TPE, random search and raysense's joint search, which learn
from all of them; what a rule learns from the dense pipeline (OWL's inputs, Taylor's gradients), for itself and for
those that learn from its climb; the curves for the solver and the joint search. The dense baseline, which all need, and
validation are left out. EvoPress and the stage-wise search may spend what the joint search does with its curves and
the solver's climb.

The curve of a strategy: the most that the search's images had found inside the budget when so much was spent. The cost
to reach: what was spent when that was at least the sparsity, validated, that the best iterative rival ended at.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from scipy import stats

from benchmarks import beds, foretold
from benchmarks.rivals import Learned, learned, taylor_programme
from benchmarks.search_chart import draw
from raysense.errors import RaysenseError
from raysense.feasibility import is_feasible
from raysense.names import BUNDLED, EVOPRESS, ITERATIVE, JOINT, OUTLIERS, OWL_BLOCK, RANDOM, SOLVER, TPE
from raysense.pipelines.cost import assumed
from raysense.prompts.sets import load_prompts
from raysense.pruning.allocation_rules import OUTLIER_SPREAD, OUTLIER_TIMES
from raysense.records import CALIBRATION, Bound, Evaluation, TrialSpec
from raysense.store.rows import levels_of
from raysense.store.store import Store
from raysense.strategies import evopress, joint, proposers
from raysense.strategies.context import Candidate, Findings, best_of
from raysense.strategies.runner import StrategyRunner
from raysense.study import Study

OUT = Path("reports/benchmarks")
OURS = (SOLVER, JOINT)
STAGES, TAYLOR = "benchmarks.rivals.stages", "taylor"
LEARNING = (TAYLOR,)
"""Rules that learn from the dense pipeline at work, see `benchmarks.rivals`."""

STARTING = (EVOPRESS, TPE, RANDOM)
"""Iterative rivals that start from what rules found."""

RIVALS = (*STARTING, STAGES)
AFTER_RULES = (*OURS, *ITERATIVE, STAGES)
UNIFORM, BEST_CLOSED, BEST_ITERATIVE = "uniform", "best allocation rule", "best iterative"
NOT_CLOSED = (*AFTER_RULES, "linear_uniform", UNIFORM)
BARS = {"linear_uniform": 3.0, UNIFORM: 1.6, BEST_CLOSED: 1.25}
"""Ours over theirs, at least; 1 for whoever is not named."""

COST_BAR = 0.25
"""Ours over the best iterative baseline's, at most."""

LEVEL = 0.95


@dataclass(frozen=True)
class Preset:
    """What is run.

    Attributes:
        seeds: One study each.
        bounds: Limits on the CLIP score's drop; three times as much on the rise of KID.
        beds: Pipelines.
        strategies: By name, see `search.strategies`.
        overrides: On the pipeline's own study.
        least_kid: The limit on the rise of KID is this at least.
    """

    seeds: int
    bounds: tuple[float, ...]
    beds: tuple[str, ...]
    strategies: tuple[str, ...]
    overrides: tuple[str, ...]
    least_kid: float = 0.0


ALL = ("uniform", "linear_uniform", "lamp", "owl", OWL_BLOCK, TAYLOR, SOLVER, STAGES, EVOPRESS, TPE)
BOUNDS = (0.01, 0.02, 0.005)
"""The default, a loose and a tight one."""

LEAST_OF_SHORT = (0.0075, 0.07)
"""The tightest bounds on the CLIP score's drop and on KID's rise that the noise of the preset `short`'s 64 prompts
leaves room for in every study."""

PRESETS = {
    "tiny": Preset(
        1, (0.3,), ("bundled",), ("uniform", "linear_uniform", OWL_BLOCK, TAYLOR, SOLVER, STAGES, EVOPRESS, TPE),
        ("search.granularity=component", "search.bisections=3", "search.rounds=1", "search.offspring=3",
         "search.levels=3", "rungs.probe={prompts: 4, timesteps: 2}", "rungs.preview.prompts=8",
         "rungs.score.prompts=12", "rungs.validation.prompts=12", "sampling.steps=4",
         "prune.calibration.prompts=4"),
    ),
    "short": Preset(
        5, (*BOUNDS[:2], LEAST_OF_SHORT[0]), tuple(beds.STUDIES), ALL,
        ("search.granularity=layer", "search.bisections=5", "search.rounds=4", "search.offspring=2",
         "search.levels=5", "search.finalists=4", "rungs.probe={prompts: 8, timesteps: 2}", "rungs.preview.prompts=16",
         "rungs.score.prompts=64", "rungs.validation.prompts=160", "sampling.steps=6",
         "prune.calibration.prompts=16"),
        LEAST_OF_SHORT[1],
    ),
    # Up to 3,000 images a strategy: 7 of the climb and 16 of the joint search see 80 images each at most.
    "cpu": Preset(
        5, BOUNDS, tuple(beds.STUDIES), ALL,
        ("search.granularity=layer", "search.bisections=7", "search.rounds=8", "search.offspring=2"),
    ),
    "full": Preset(
        5, BOUNDS, tuple(beds.STUDIES), (*ALL, "erk", "global", "random"),
        ("search.granularity=layer", "search.bisections=8", "search.rounds=4", "search.offspring=16",
         "rungs.score.prompts=192"),
    ),
}  # fmt: skip


def study_of(preset: Preset, seed: int, bound: float, bed: str, prompts: str = BUNDLED) -> Study:
    """The study that one seed, bound and pipeline run."""
    return beds.study_of(
        bed,
        [
            f"seed={seed}",
            f"prompts={prompts}",
            f"constraints={{clip_score: {{max_drop: {bound}}}, kid: {{max_rise: {max(3 * bound, preset.least_kid)}}}}}",
            f"search.strategies={json.dumps(list(preset.strategies))}",
            "search.compare=true",
            *preset.overrides,
        ],
    )


def prompts_of(seed: int, seeds: int, folder: Path) -> Path:
    """A file of the bundled prompts, rotated so that every seed begins with prompts of its own."""
    sets = load_prompts(BUNDLED)
    lines = []
    for split, prompts in (("search", sets.search), ("validation", sets.validation)):
        start = seed * (len(prompts) // seeds)
        for prompt in (*prompts[start:], *prompts[:start]):
            lines.append(json.dumps({"id": prompt.id, "prompt": prompt.text, "split": split}))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"prompts-{seed}-of-{seeds}.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


class Told:
    """A strategy that remembers what it was told, and in which order.

    Attributes:
        answers: Trials with their evaluations. The order does not depend on what a store answered.
    """

    def __init__(self, runner: StrategyRunner[Findings]) -> None:
        self.runner = runner
        self.answers: list[tuple[TrialSpec, Sequence[Evaluation]]] = []

    @property
    def done(self) -> bool:
        """See `StrategyRunner`."""
        return self.runner.done

    @property
    def headline(self) -> str:
        """See `StrategyRunner`."""
        return self.runner.headline

    def ask(self) -> TrialSpec | None:
        """See `StrategyRunner`."""
        return self.runner.ask()

    def tell(self, spec: TrialSpec, evaluations: Sequence[Evaluation]) -> None:
        """See `StrategyRunner`."""
        self.answers.append((spec, evaluations))
        self.runner.tell(spec, evaluations)


@dataclass(frozen=True)
class Reached:
    """What one study came to.

    Attributes:
        rows: One a strategy.
        curves: One whenever a strategy's search found more inside the budget.
    """

    rows: list[dict[str, Any]]
    curves: list[dict[str, Any]]


def run(study: Study, folder: Path) -> Reached:
    """One study to its end, in this process."""
    from raysense.evaluation.calibration import calibration_cost
    from raysense.evaluation.evaluator import Evaluator
    from raysense.execution.local import LocalExecutor
    from raysense.pipelines.load import load_for, modules_of
    from raysense.search.job import begin_store
    from raysense.strategies.rules import built_in_rules
    from raysense.strategies.schedule import make_strategy

    evaluator = Evaluator(study, str(folder))
    inventory, grid = evaluator.inventory, evaluator.grid
    # The evaluator's own weights are pruned most of the time; rules read dense ones, as a driver does.
    dense = load_for(study)
    modules = modules_of(dense)
    learning = calibration_cost(study, inventory, grid, modules)
    rules = built_in_rules(inventory, grid, modules, study.search.proportions)
    known = learned_once(study, dense, evaluator, folder)
    rules[TAYLOR] = taylor_programme(inventory, grid, modules, known)
    runner = make_strategy(study, inventory, grid, rules, learning)
    told = Told(runner)
    store = begin_store(study, str(folder), inventory, grid, evaluator.inputs)
    LocalExecutor(evaluator).run(told, store, signature=evaluator.signature, lookahead=study.search.lookahead)
    if runner.error is not None:
        raise runner.error
    if runner.outcome is None:
        raise KeyboardInterrupt
    return reached_by(study, runner.outcome, told.answers, inventory.n_components, known.images)


def learned_once(study: Study, dense: Any, evaluator: Any, folder: Path) -> Learned:
    """What rivals learn from the dense pipeline, from the folder if it is there."""
    import torch

    from raysense.pipelines.sample import call_pipeline, first_seed

    file = folder / "learned.pt"
    if file.exists():
        stored: Learned = torch.load(file, weights_only=False)
        return stored
    prompts, batch = evaluator.prompts.search[: study.prune.calibration.prompts], study.sampling.batch

    def sample() -> None:
        for start in range(0, len(prompts), batch):
            some = prompts[start : start + batch]
            call_pipeline(dense, some, [first_seed(study.seed)] * len(some), study.sampling)

    with torch.no_grad():
        found = learned(modules_of_pipeline(dense), evaluator.inventory, sample, len(prompts), study.seed)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(found, file)
    return found


def modules_of_pipeline(pipeline: Any) -> Any:
    """Component -> module."""
    from raysense.pipelines.load import modules_of

    return modules_of(pipeline)


def reached_by(
    study: Study,
    findings: Findings,
    answers: Sequence[tuple[TrialSpec, Sequence[Evaluation]]],
    n_components: int,
    learning_images: Mapping[str, int],
) -> Reached:
    """What each strategy reached, validated, what that cost, what the target cost it, and its curve."""
    bounds = study.constraints.bounds()
    names = [*study.search.strategies, *([JOINT] if SOLVER in study.search.strategies else [])]
    validated = {
        name: max((c.evaluation.zeros for c in findings.validated if c.strategy == name and c.feasible), default=0)
        for name in names
    }  # fmt: skip
    target = max((validated[name] for name in names if name in RIVALS), default=0)
    start = best_of([c for c in findings.tried if c.strategy not in AFTER_RULES])
    image = assumed(study.sampling).image
    what = {
        "bed": study.pipeline,
        "max_drop": study.constraints.clip_score.max_drop if study.constraints.clip_score else None,
        "seed": study.seed,
    }
    rows, curves = [], []
    for name in names:
        path = path_of(name, answers, start.strategy if start else None)
        before = image * sum(learning_images.get(rule, 0) for rule in learning_of(name, names, start))
        steps = curve_of(path, bounds, before)
        reach = next((spent for spent, zeros in steps if zeros >= target), None) if target else None
        rows.append(
            {
                **what,
                "strategy": name,
                "zeros": validated[name],
                "sparsity_components": validated[name] / n_components,
                "nfe": before + sum(e.nfe for e in path),
                "images": sum(e.images for e in path),
                "candidates": sum(c.strategy == name for c in findings.tried),
                "target": target / n_components,
                "cost_to_reach": reach,
            }
        )
        curves += [
            {**what, "strategy": name, "nfe": n, "sparsity_components": z / n_components} for n, z in steps
        ]
    return Reached(rows, curves)


def learning_of(strategy: str, names: Sequence[str], start: Candidate | None) -> list[str]:
    """The rules whose learning a strategy stands on."""
    if strategy in LEARNING:
        return [strategy]
    if strategy == EVOPRESS:
        return [start.strategy] if start and start.strategy in LEARNING else []
    return [rule for rule in LEARNING if rule in names] if strategy in (*STARTING, JOINT) else []


def path_of(
    strategy: str, answers: Sequence[tuple[TrialSpec, Sequence[Evaluation]]], start: str | None
) -> list[Evaluation]:
    """The evaluations that a strategy stands on, each once, in the order in which it needs them.

    Args:
        strategy: Its name.
        answers: All trials.
        start: The rule that EvoPress starts from.
    """

    def asked_by(*names: str) -> Iterator[Evaluation]:
        for spec, evaluations in answers:
            if spec.stage == "search" and spec.name.split("/")[1] in names:
                yield from evaluations

    def of(stage: str, rung: str) -> Iterator[Evaluation]:
        yield from (e for q, es in answers if q.stage == stage for e in es if e.rung == rung)

    asked = dict.fromkeys(q.name.split("/")[1] for q, _ in answers if q.stage == "search")
    rules = [name for name in asked if name not in AFTER_RULES]
    path: list[Evaluation] = []
    if strategy in OURS:
        path += [*of("sensitivity", "probe"), *asked_by(SOLVER)]
    stands_on = rules if strategy in (*STARTING, JOINT) else []
    if strategy == EVOPRESS:
        stands_on = [start] if start else []
    if set(OUTLIERS) & {strategy, *stands_on}:
        path += of("baseline", CALIBRATION)
    path += [*asked_by(*stands_on), *asked_by(strategy)]
    return list({evaluation.key: evaluation for evaluation in path}.values())


def curve_of(path: Sequence[Evaluation], bounds: Sequence[Bound], before: int = 0) -> list[tuple[int, int]]:
    """Cost so far, and the zeros of the sparsest total judged inside the budget by then, whenever that grows."""
    spent, best, steps = before, 0, list[tuple[int, int]]()
    for evaluation in path:
        spent += evaluation.nfe
        if evaluation.rung == "score" and evaluation.zeros > best and is_feasible(evaluation, bounds):
            best = evaluation.zeros
            steps.append((spent, best))
    return steps


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Geometric mean of ours over theirs with its 95 % bounds, paired; studies without theirs are counted apart."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if b > 0]
    found: dict[str, Any] = {
        "ratio": None,
        "ci_low": None,
        "ci_high": None,
        "studies": [round(a / b, 3) for a, b in pairs],
        "rival_never_inside": len(ours) - len(pairs),
    }
    if not pairs:
        return found
    if any(a <= 0 for a, _ in pairs):
        return {**found, "ratio": 0.0}
    logs = np.log([a / b for a, b in pairs])
    found["ratio"] = round(float(np.exp(logs.mean())), 3)
    if len(logs) > 1:
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
        found["ci_low"], found["ci_high"] = (
            round(math.exp(float(logs.mean()) + d), 3) for d in (-half, half)
        )
    return found


def own(rows: pd.DataFrame) -> pd.DataFrame:
    """Validated sparsity of the strategies' own candidates, by seed and strategy."""
    return rows.pivot_table(index="seed", columns="strategy", values="sparsity_components")


def credited(rows: pd.DataFrame) -> pd.DataFrame:
    """The same, but a strategy that starts from others ends at least with the best of them."""
    wide = own(rows)
    starts = [name for name in wide if name not in AFTER_RULES]
    for name in [name for name in wide if name in (*STARTING, JOINT)]:
        wide[name] = wide[[name, *starts, *(OURS if name == JOINT else ())]].max(axis=1)
    return wide


def figures(rows: pd.DataFrame) -> dict[str, Any]:
    """Ours against the others at one bound, and the cost at which ours reached what the best iterative ended at."""
    wide = credited(rows)
    ours = wide[[name for name in OURS if name in wide]].max(axis=1)
    rivals = {str(name): wide[name] for name in wide if name not in OURS}
    closed = [name for name in rivals if name not in NOT_CLOSED]
    iterative = [name for name in rivals if name in RIVALS]
    if closed:
        rivals[BEST_CLOSED] = wide[closed].max(axis=1)
    found: dict[str, Any] = {
        "sparsity": {name: ratio(list(ours), list(theirs)) for name, theirs in rivals.items()}
    }
    if iterative:
        costs = {
            (int(row["seed"]), str(row["strategy"])): float(row["cost_to_reach"])
            for row in rows.to_dict("records")
        }
        best = dict(zip(wide.index.tolist(), own(rows)[iterative].idxmax(axis=1).tolist(), strict=True))
        raysense = {
            seed: min((costs[seed, n] for n in OURS if costs.get((seed, n), 0) > 0), default=0.0)
            for seed in best
        }
        # Where ours never reached it, no ratio says so; the count does.
        both = [(raysense[seed], costs[seed, name]) for seed, name in best.items() if raysense[seed] > 0]
        found["cost_to_reach"] = {
            **ratio([a for a, _ in both], [b for _, b in both]),
            "baselines": list(best.values()),
            "never_reached": len(best) - len(both),
        }
    return found


def holds(found: dict[str, Any]) -> bool:
    """Whether every point estimate keeps its bar."""
    level = all(
        each["ratio"] is None or each["ratio"] >= BARS.get(name, 1.0)
        for name, each in found["sparsity"].items()
    )
    cost = found.get("cost_to_reach")
    cheap = cost is None or (cost["never_reached"] == 0 and (cost["ratio"] or 0.0) <= COST_BAR)
    return level and cheap


SETTINGS = {
    JOINT: f"starts from the climbs of solver and rules; relative sd of a group's factor "
    f"{joint.FACTOR_SD:g}, of a utilisation {joint.UTILISATION_SD:g}; totals {proposers.LEAST_GROWTH:.1%} to "
    f"{proposers.MOST_GROWTH:.0%} above the best",
    STAGES: "four stages by depth, of about equal size; each bisected alone, then one factor, then one stage at a time",
    OWL_BLOCK: f"as published: one sparsity a block; M = {OUTLIER_TIMES:g}, λ = {OUTLIER_SPREAD:g}. `owl` is raysense's"
    ", layer by layer",
    TAYLOR: "w²·E[g²] of the weights that leave, an integer programme for each total; after NVIDIA's Model Optimizer",
    TPE: "Optuna's TPESampler, defaults, one sparsity a group, utilisation ≤ 1 as a constraint; starts from the rules' "
    "climbs as finished trials",
    EVOPRESS: f"{evopress.EVOPRESS_OFFSPRING} different offspring by 1 to 3 level switches, survivors "
    f"{', '.join(map(str, evopress.EVOPRESS_SURVIVORS))} on probe, preview, score; starts from the sparsest rule "
    f"inside the budget; total raised by {proposers.GROWTH:.0%} at first after a generation inside the budget",
    RANDOM: "independent uniform sparsities of the groups, scaled to a total above the best",
}  # fmt: skip


EXPLAINED = (
    "Means; in brackets the least and the most of the studies. Sparsities are validated on held-out prompts. Cost: NFE "
    "that a strategy stands on, dense baseline and validation left out. Cost to reach: until the search first judged "
    "the final sparsity of the best iterative rival inside the budget. `(own in k of n)`: in the other studies no "
    "candidate of the strategy's own was inside, and it counts with the best of what it starts from."
)


def label(name: str) -> str:
    """A strategy in the table."""
    return name.rpartition(".")[2]


def summary(preset: Preset, table: pd.DataFrame, curves: pd.DataFrame, more: Sequence[str] = ()) -> str:
    """The whole table in Markdown, the curves, the settings and the figures; from rows alone."""
    found = all_figures(table)
    done = table.groupby(["bed", "max_drop"], sort=False)["seed"].nunique()
    wanted = len(preset.beds) * len(preset.bounds) * preset.seeds
    missing = wanted - int(done.sum())  # refused ones among them
    lines = [
        f"`python -m benchmarks.search`: {int(done.sum())} of {wanted} studies, each with noise and prompts of its own"
        f"{'; the others are not measured' if missing else ''}. {EXPLAINED}",
        "",
        "| pipeline | max_drop | studies | strategy | sparsity_components | cost | candidates | cost to reach |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for bed, bound, part in parts_of(table):
        for name, rows in part.groupby("strategy", sort=False):
            lines.append(_row(bed, bound, str(name), rows, credited(part)[name]))
    lines += [
        "",
        "![the curves](curves.svg)",
        "",
        "The curve: mean share of the components' parameters that the search's own images had found inside the budget "
        "when so much of the joint search's cost was spent (0: nothing yet).",
        "",
        "| pipeline | max_drop | strategy | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |",
        "|---|---|---|" + "---|" * len(SHARES),
    ]
    for bed, bound, part in parts_of(table):
        for name in dict.fromkeys(part["strategy"]):
            lines.append(_curve_row(bed, bound, name, part, curves))
    lines += [
        "",
        "| pipeline | max_drop | raysense over | ratio | 95 % bounds | bar |",
        "|---|---|---|---|---|---|",
    ]
    for where, each in found.items():
        pipeline, limit = where.rsplit(" ", 1)
        bars: list[tuple[str, dict[str, Any], str]] = [
            (label(name), figure, f"≥ {BARS.get(name, 1.0):g}") for name, figure in each["sparsity"].items()
        ]
        if "cost_to_reach" in each:
            bars.append(("cost to reach, best iterative", each["cost_to_reach"], f"≤ {COST_BAR:g}"))
        lines += [_ratio_row(pipeline, limit, *bar) for bar in bars]
    lines += ["", "Settings: study overrides " + ", ".join(f"`{o}`" for o in preset.overrides) + ".", ""]
    lines += [
        f"- {label(name)}: {text}." for name, text in SETTINGS.items() if name in set(table["strategy"])
    ]
    return "\n".join([*lines, *more, ""])


SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Of the joint search's cost, at which curves are read."""


def _row(bed: str, bound: float, name: str, rows: pd.DataFrame, share: pd.Series[float]) -> str:
    inside, reach = int((rows["sparsity_components"] > 0).sum()), rows["cost_to_reach"].dropna()
    reached = f"{reach.mean():,.0f}" if len(reach) else "never"
    reached += f" ({len(reach)} of {len(rows)})" if 0 < len(reach) < len(rows) else ""
    sparsity = f"{share.mean():.1%} [{share.min():.1%}, {share.max():.1%}]"
    sparsity += f" (own in {inside} of {len(rows)})" if inside < len(rows) else ""
    return (
        f"| {bed} | {bound:g} | {len(rows)} | {label(name)} | {sparsity} | {rows['nfe'].mean():,.0f} | "
        f"{rows['candidates'].mean():.0f} | {reached} |"
    )


def _curve_row(bed: str, bound: float, name: str, rows: pd.DataFrame, curves: pd.DataFrame) -> str:
    means = []
    for share in SHARES:
        found = []
        for seed in dict.fromkeys(rows["seed"]):
            whole = rows[(rows["seed"] == seed) & (rows["strategy"] == JOINT)]["nfe"].max()
            here = curves[
                (curves["bed"] == bed) & (curves["max_drop"] == bound) & (curves["seed"] == seed)
                & (curves["strategy"] == name) & (curves["nfe"] <= share * whole)
            ]  # fmt: skip
            found.append(0.0 if here.empty else float(here["sparsity_components"].max()))
        means.append(f"{np.mean(found):.1%}")
    return f"| {bed} | {bound:g} | {label(name)} | " + " | ".join(means) + " |"


def _ratio_row(bed: str, bound: str, name: str, figure: dict[str, Any], bar: str) -> str:
    value = "—" if figure["ratio"] is None else f"{figure['ratio']:.2f}"
    interval = (
        "not measured" if figure["ci_low"] is None else f"{figure['ci_low']:.2f} to {figure['ci_high']:.2f}"
    )
    never = figure["rival_never_inside"]
    note = f" (left out: {never}, where nothing of it was inside)" if never else ""
    return f"| {bed} | {bound} | {name} | {value}{note} | {interval} | {bar} |"


def all_figures(table: pd.DataFrame) -> dict[str, Any]:
    """`figures` for each pipeline and bound."""
    return {f"{bed} {bound:g}": figures(part) for bed, bound, part in parts_of(table)}


def parts_of(table: pd.DataFrame) -> list[tuple[str, float, pd.DataFrame]]:
    """Rows by pipeline and bound, in their order."""
    pairs = dict.fromkeys(zip(table["bed"].tolist(), table["max_drop"].tolist(), strict=True))
    return [(b, d, table[(table["bed"] == b) & (table["max_drop"] == d)]) for b, d in pairs]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs or goes on, writes rows and table, prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu")
    parser.add_argument("--out", type=Path, help=f"default: {OUT}/search-<preset>")
    parser.add_argument("--quick", action="store_true", help="the preset tiny, in a temporary folder")
    parser.add_argument("--table", action="store_true", help="measure nothing: the table from the rows")
    parser.add_argument(
        "--published", action="store_true", help="EvoPress at its published length, on the probe"
    )
    parser.add_argument(
        "--foretold",
        action="store_true",
        help="`raysense resolve` on the finished studies of the default bound, tested",
    )
    parser.add_argument("--generations", type=int, help="of --published; default: the published number")
    parser.add_argument("--studies", type=int, help="end after so many studies of this start")
    parser.add_argument("--bed", choices=list(beds.STUDIES), help="this pipeline alone; two may run at once")
    parsed = parser.parse_args(arguments)
    name = "tiny" if parsed.quick else parsed.preset
    with tempfile.TemporaryDirectory() as temporary:
        out = parsed.out or (Path(temporary) if parsed.quick else OUT / f"search-{name}")
        out.mkdir(parents=True, exist_ok=True)
        if not parsed.table:
            compare(PRESETS[name], out, parsed.studies, parsed.bed)
        if parsed.published or parsed.quick:
            published_length(PRESETS[name], out, 2 if parsed.quick else parsed.generations)
        if parsed.foretold or parsed.quick:
            foretell(PRESETS[name], out)
        table = write_summary(PRESETS[name], out)
    found = all_figures(table)
    held = all(holds(each) for each in found.values())
    bar = {"sparsity": {**BARS, "any other": 1.0}, "cost_to_reach": COST_BAR}
    print(json.dumps({"benchmark": "search", "preset": name, "figures": found, "bar": bar, "holds": held}))
    return 0 if held or name == "tiny" else 1


def compare(preset: Preset, out: Path, at_most: int | None = None, only: str | None = None) -> None:
    """All studies of a preset that are not done, and their rows; all seeds of the default bound first."""
    done = 0
    pipelines = [bed for bed in preset.beds if only in (None, bed)]
    default, *others = preset.bounds
    order = [(seed, default) for seed in range(preset.seeds)]
    order += itertools.product(range(preset.seeds), others)
    for (seed, bound), bed in itertools.product(order, pipelines):
        known, _ = rows_in(out)
        if not known.empty and bool(of(known, bed, bound, seed).any()):
            continue
        if at_most is not None and done >= at_most:
            return
        if [bed, bound, seed] in [each[:3] for each in refused_in(out)]:
            continue
        prompts = prompts_of(seed, preset.seeds, out / "runs")
        study = study_of(preset, seed, bound, bed, str(prompts))
        try:
            reached = run(study, folder_of(out, bed, bound, seed))
        except RaysenseError as error:  # its prompts are noisier than a bound: what raysense says to anyone
            print(error, flush=True)
            with FileLock(out / "runs" / "rows.lock"):
                refused = [*refused_in(out), [bed, bound, seed, str(error)]]
                (out / REFUSED).write_text(json.dumps(refused, indent=1), encoding="utf-8")
            continue
        with FileLock(out / "runs" / "rows.lock"):  # another process may be at the other pipeline's studies
            for name, old, new in zip(
                (ROWS, CURVES), rows_in(out), (reached.rows, reached.curves), strict=True
            ):
                pd.concat([old, pd.DataFrame(new)]).to_csv(out / name, index=False)
            write_summary(preset, out)
        print(pd.DataFrame(reached.rows).to_string(index=False), flush=True)
        done += 1


ROWS, CURVES, PUBLISHED, FORETOLD = "strategies.csv", "curves.csv", "published.json", "foretold.csv"
REFUSED = "refused.json"


def refused_in(out: Path) -> list[list[Any]]:
    """Pipeline, bound and seed of the studies that raysense refused, and why."""
    found: list[list[Any]] = json.loads((out / REFUSED).read_text()) if (out / REFUSED).exists() else []
    return found


def rows_in(out: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows and curves that are there."""
    rows, curves = (
        pd.read_csv(out / name) if (out / name).exists() else pd.DataFrame() for name in (ROWS, CURVES)
    )
    return rows, curves


def of(rows: pd.DataFrame, bed: str, bound: float, seed: int) -> pd.Series[bool]:
    """Which rows are of a study."""
    return (rows["bed"] == bed) & (rows["max_drop"] == bound) & (rows["seed"] == seed)


def write_summary(preset: Preset, out: Path) -> pd.DataFrame:
    """The table from the rows that are there; gives them.

    Raises:
        SystemExit: There are none.
    """
    rows, curves = rows_in(out)
    if rows.empty:
        raise SystemExit(f"`{out}` holds no rows; run the benchmark first")
    file = out / PUBLISHED
    told = [published_in_words(json.loads(file.read_text()))] if file.exists() else []
    if (out / FORETOLD).exists():
        told += ["", foretold.in_words(pd.read_csv(out / FORETOLD))]
    for bed, bound, seed, why in refused_in(out):
        told += ["", f"Refused by raysense before its search: {bed}, max_drop {bound:g}, seed {seed}: {why}."]
    (out / "summary.md").write_text(summary(preset, rows, curves, told), encoding="utf-8")
    draw(parts_of(rows), curves, credited, out / "curves.svg")
    return rows


def foretell(preset: Preset, out: Path) -> None:
    """What `raysense resolve` says of each study of the default bound whose folder is here, and a test of it."""
    known, _ = rows_in(out)
    found: list[dict[str, Any]] = []
    for bed, seed in itertools.product(preset.beds, range(preset.seeds)):
        run, prompts = (
            folder_of(out, bed, preset.bounds[0], seed),
            prompts_of(seed, preset.seeds, out / "runs"),
        )
        if run.exists() and not known.empty and bool(of(known, bed, preset.bounds[0], seed).any()):
            found += foretold.rows_of(study_of(preset, seed, preset.bounds[0], bed, str(prompts)), run)
            pd.DataFrame(found).to_csv(out / FORETOLD, index=False)


def folder_of(out: Path, bed: str, bound: float, seed: int) -> Path:
    """Where a study runs."""
    return out / "runs" / f"{bed}-drop-{bound:g}-seed-{seed}"


def published_length(preset: Preset, out: Path, generations: int | None) -> None:
    """EvoPress at its published length at the total that ours reached, on the probe, and both on held-out prompts.

    Its data are drawn anew at every selection: 1 in 16, 4 in 16 and all of the recorded prompts, as its tokens are.
    """
    rows, _ = rows_in(out)
    bed, bound, seed = preset.beds[0], preset.bounds[0], 0
    ours = rows[of(rows, bed, bound, seed) & rows["strategy"].isin(OURS)]
    if ours.empty or not ours["zeros"].max():
        return
    from benchmarks.long_evopress import run_long

    store = Store.open(str(folder_of(out, bed, bound, seed)))
    zeros = int(ours["zeros"].max())
    best = next(e for e in store.evaluations() if (e.rung, e.zeros) == ("validation", zeros))
    levels = levels_of(store.table("allocations"))[best.allocation]
    study = study_of(preset, seed, bound, bed, str(prompts_of(seed, preset.seeds, out / "runs")))
    state = run_long(study, best, levels, out / "runs" / "published", generations)
    spent = int(ours.sort_values("zeros")["nfe"].iloc[-1])
    (out / PUBLISHED).write_text(
        json.dumps({"bed": bed, "max_drop": bound, "ours_nfe": spent, **state}, indent=1)
    )


def published_in_words(state: Mapping[str, Any]) -> str:
    """What `published_length` found, a paragraph."""
    verdict = "inside" if state["feasible"] else "outside"
    return (
        f"\nEvoPress on the probe at its published procedure, {state['bed']}, max_drop {state['max_drop']:g}, at the "
        f"total that raysense reached ({state['sparsity_components']:.1%}, given to it): {state['generation']} of "
        f"{state['of']} generations of 64, {state['nfe']:,} NFE; probe error {state['first']:.4g} at the start (one "
        f"ratio), {state['last']:.4g} at the end; of raysense's allocation {state['ours']:.4g}, after "
        f"{state['ours_nfe']:,} NFE. On held-out prompts the survivor is {verdict} of the budget: CLIP "
        f"score drop {state['drop']['value']:.4g} [{state['drop']['ci_low']:.4g}, {state['drop']['ci_high']:.4g}]."
    )


if __name__ == "__main__":
    sys.exit(main())
