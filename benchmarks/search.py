"""Every strategy on the bundled pipeline, at the same validated quality: sparsity, and what it cost.

    python -m benchmarks.search                    # preset cpu: blocks, one bound, 3 seeds; about two hours on 2 cores
    python -m benchmarks.search --preset full      # layers, all strategies, two bounds; a GPU or a long night
    python -m benchmarks.search --quick            # preset tiny: minutes; shows that it works, and no more

One study a seed and bound runs all strategies on the same rungs (`search.compare`), so that what several of them ask is
measured once; each is charged for it all the same. Started again, it goes on where it was stopped. Rows and the table
go to ``reports/benchmarks/search-<preset>/``. The last line of the output is one JSON object.

A seed changes everything that is drawn: the starting noise of every image, the prompts (each seed searches and
validates on prompts that no other seed sees) and the strategies' own random numbers. The studies of one bound are
therefore independent, and the 95 % bounds of a ratio are a t interval on its logarithm over them, paired study by
study; with a single study there is none. A ratio is a geometric mean.

The cost to reach: the sparsity that the best iterative baseline ended at, validated, is the target. Along the
evaluations that a strategy stands on, in order, what was spent when its search first judged a total of at least the
target inside the budget? Shared evaluations are charged to each: the allocation rules' climbs to all that start from
them, OWL's calibration to OWL, the curves to the solver and the joint search. The dense baseline, which all need, and
validation are left out. A baseline is credited with what it starts from.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from raysense.feasibility import is_feasible
from raysense.names import BUNDLED, EVOPRESS, ITERATIVE, JOINT, OWL, RANDOM, SOLVER, TPE
from raysense.pipelines.cost import assumed
from raysense.prompts.sets import load_prompts
from raysense.records import CALIBRATION, Bound, Evaluation, TrialSpec
from raysense.strategies import evopress, joint, proposers
from raysense.strategies.context import Findings
from raysense.strategies.runner import StrategyRunner
from raysense.study import Study, load

OUT = Path("reports/benchmarks")
OURS = (SOLVER, JOINT)
UNIFORM, BEST_CLOSED, BEST_ITERATIVE = "uniform", "best allocation rule", "best iterative"
NOT_CLOSED = (*OURS, *ITERATIVE, "linear_uniform", UNIFORM)
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
        bounds: Limits on the CLIP score's drop.
        strategies: By name, see `search.strategies`.
        overrides: On the quickstart study.
    """

    seeds: int
    bounds: tuple[float, ...]
    strategies: tuple[str, ...]
    overrides: tuple[str, ...]


PRESETS = {
    "tiny": Preset(
        1, (0.3,), ("uniform", "linear_uniform", SOLVER, EVOPRESS, TPE),
        ("search.granularity=component", "search.bisections=3", "search.rounds=1", "search.offspring=3",
         "search.levels=3", "rungs.probe={prompts: 4, timesteps: 2}", "rungs.preview.prompts=8",
         "rungs.score.prompts=12", "rungs.validation.prompts=12", "sampling.steps=4"),
    ),
    # Up to 3,000 images a strategy: 7 of the climb and 16 of the joint search see 80 images each at most.
    "cpu": Preset(
        3, (0.01,), ("uniform", "linear_uniform", "lamp", "owl", SOLVER, EVOPRESS, TPE),
        ("search.granularity=block", "search.bisections=7", "search.rounds=1", "search.offspring=16"),
    ),
    "full": Preset(
        3, (0.005, 0.02),
        ("uniform", "linear_uniform", "lamp", "erk", "global", "owl", SOLVER, EVOPRESS, TPE, "random"),
        ("search.granularity=layer", "search.bisections=8", "search.rounds=4", "search.offspring=16",
         "rungs.score.prompts=192"),
    ),
}  # fmt: skip


def study_of(preset: Preset, seed: int, bound: float, prompts: str = BUNDLED) -> Study:
    """The study that one seed and bound run."""
    return load(
        None,
        [
            f"seed={seed}",
            f"prompts={prompts}",
            f"constraints={{clip_score: {{max_drop: {bound}}}, kid: {{max_rise: {3 * bound}}}}}",
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


def run(study: Study, folder: Path) -> list[dict[str, Any]]:
    """One study to its end, in this process; one row a strategy."""
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
    runner = make_strategy(study, inventory, grid, rules, learning)
    told = Told(runner)
    store = begin_store(study, str(folder), inventory, grid, evaluator.inputs)
    LocalExecutor(evaluator).run(told, store, signature=evaluator.signature, lookahead=study.search.lookahead)
    if runner.error is not None:
        raise runner.error
    if runner.outcome is None:
        raise KeyboardInterrupt
    return rows_of(study, runner.outcome, told.answers, inventory.n_components)


def rows_of(
    study: Study,
    findings: Findings,
    answers: Sequence[tuple[TrialSpec, Sequence[Evaluation]]],
    n_components: int,
) -> list[dict[str, Any]]:
    """One row a strategy: what it reached, validated, what that cost, and what the target cost it."""
    bounds = study.constraints.bounds()
    names = [*study.search.strategies, *([JOINT] if SOLVER in study.search.strategies else [])]
    validated = {
        name: max((c.evaluation.zeros for c in findings.validated if c.strategy == name and c.feasible), default=0)
        for name in names
    }  # fmt: skip
    target = max((validated[name] for name in names if name in ITERATIVE and name != JOINT), default=0)
    rows = []
    for name in names:
        path = path_of(name, answers)
        rows.append(
            {
                "strategy": name,
                "seed": study.seed,
                "max_drop": study.constraints.clip_score.max_drop if study.constraints.clip_score else None,
                "zeros": validated[name],
                "sparsity_components": validated[name] / n_components,
                "nfe": sum(e.nfe for e in path),
                "images": sum(e.images for e in path),
                "candidates": sum(c.strategy == name for c in findings.tried),
                "target": target / n_components,
                "cost_to_reach": cost_to_reach(target, path, bounds) if target else None,
            }
        )
    return rows


def path_of(strategy: str, answers: Sequence[tuple[TrialSpec, Sequence[Evaluation]]]) -> list[Evaluation]:
    """The evaluations that a strategy stands on, each once, in the order in which it needs them."""

    def asked_by(*names: str) -> Iterator[Evaluation]:
        for spec, evaluations in answers:
            if spec.stage == "search" and spec.name.split("/")[1] in names:
                yield from evaluations

    def of(stage: str, rung: str) -> Iterator[Evaluation]:
        yield from (e for q, es in answers if q.stage == stage for e in es if e.rung == rung)

    asked = dict.fromkeys(q.name.split("/")[1] for q, _ in answers if q.stage == "search")
    closed = [name for name in asked if name not in (*OURS, *ITERATIVE)]
    path: list[Evaluation] = []
    if strategy in OURS:
        path += [*of("sensitivity", "probe"), *asked_by(SOLVER)]
    if strategy in ITERATIVE:
        path += [*(of("baseline", CALIBRATION) if OWL in closed else ()), *asked_by(*closed)]
    if strategy == OWL:
        path += of("baseline", CALIBRATION)
    path += asked_by(strategy)
    return list({evaluation.key: evaluation for evaluation in path}.values())


def cost_to_reach(zeros: int, path: Sequence[Evaluation], bounds: Sequence[Bound]) -> int | None:
    """What a path had cost when a total of at least so many zeros was first judged inside the budget."""
    spent = 0
    for evaluation in path:
        spent += evaluation.nfe
        if evaluation.rung == "score" and evaluation.zeros >= zeros and is_feasible(evaluation, bounds):
            return spent
    return None


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
    starts = [name for name in wide if name not in (*OURS, *ITERATIVE)]
    for name in [name for name in wide if name in ITERATIVE]:
        wide[name] = wide[[name, *starts, *(OURS if name == JOINT else ())]].max(axis=1)
    return wide


def figures(rows: pd.DataFrame) -> dict[str, Any]:
    """Ours against the others at one bound, and the cost at which ours reached what the best iterative ended at."""
    wide = credited(rows)
    ours = wide[[name for name in OURS if name in wide]].max(axis=1)
    rivals = {str(name): wide[name] for name in wide if name not in OURS}
    closed = [name for name in rivals if name not in NOT_CLOSED]
    iterative = [name for name in rivals if name in ITERATIVE]
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
    JOINT: f"starts from the climbs of solver and allocation rules; relative sd of a group's factor "
    f"{joint.FACTOR_SD:g}, of a utilisation {joint.UTILISATION_SD:g}; totals {proposers.LEAST_GROWTH:.1%} to "
    f"{proposers.MOST_GROWTH:.0%} above the best",
    TPE: "Optuna's TPESampler, defaults, one sparsity a group, utilisation ≤ 1 as a constraint; starts from the closed "
    "forms' climbs as finished trials",
    EVOPRESS: f"{evopress.EVOPRESS_OFFSPRING} offspring by 1 to 3 level switches, survivors "
    f"{', '.join(map(str, evopress.EVOPRESS_SURVIVORS))} on probe, preview, score; starts from the sparsest closed "
    f"form inside the budget; total raised by {proposers.GROWTH:.0%} at first after a generation inside the budget",
    RANDOM: "independent uniform sparsities of the groups, scaled to a total above the best",
}  # fmt: skip


def summary(preset: Preset, table: pd.DataFrame, found: dict[str, Any]) -> str:
    """The whole table in Markdown, the settings and the figures."""
    lines = [
        f"`python -m benchmarks.search`, {preset.seeds} studies a bound, each with noise and prompts of its own. "
        "Means; in brackets the least and the most of the studies. Sparsities are validated on held-out prompts. Cost: "
        "NFE, shared evaluations charged to each, dense baseline and validation left out. Cost to "
        "reach: until the search first judged the final sparsity of the best iterative baseline inside the budget. "
        "`(own in k of n)`: in the other studies no candidate of the strategy's own was inside, and it counts with "
        "the best of what it starts from.",
        "",
        "| max_drop | strategy | sparsity_components | cost | image-equivalents | candidates | cost to reach |",
        "|---|---|---|---|---|---|---|",
    ]
    an_image = assumed(study_of(preset, 0, preset.bounds[0]).sampling).image
    for (bound, name), rows in table.groupby(["max_drop", "strategy"], sort=False):
        share = credited(table[table["max_drop"] == bound])[name]
        inside, reach = int((rows["sparsity_components"] > 0).sum()), rows["cost_to_reach"].dropna()
        cost = rows["nfe"].mean()
        reached = f"{reach.mean():,.0f}" if len(reach) else "never"
        reached += f" ({len(reach)} of {len(rows)})" if 0 < len(reach) < len(rows) else ""
        sparsity = f"{share.mean():.1%} [{share.min():.1%}, {share.max():.1%}]"
        sparsity += f" (own in {inside} of {len(rows)})" if inside < len(rows) else ""
        lines.append(
            f"| {bound:g} | {name} | {sparsity} | {cost:,.0f} | "
            f"{cost / an_image:,.0f} | {rows['candidates'].mean():.0f} | {reached} |"
        )
    lines += ["", "| max_drop | raysense over | ratio | 95 % bounds | bar |", "|---|---|---|---|---|"]
    for bound, each in found.items():
        bars: list[tuple[str, dict[str, Any], str]] = [
            (name, figure, f"≥ {BARS.get(name, 1.0):g}") for name, figure in each["sparsity"].items()
        ]
        if "cost_to_reach" in each:
            bars.append(("cost to reach, best iterative", each["cost_to_reach"], f"≤ {COST_BAR:g}"))
        for name, figure, bar in bars:
            value = "—" if figure["ratio"] is None else f"{figure['ratio']:.2f}"
            interval = (
                "not measured"
                if figure["ci_low"] is None
                else f"{figure['ci_low']:.2f} to {figure['ci_high']:.2f}"
            )
            never = figure["rival_never_inside"]
            note = f" (left out: {never}, where nothing of it was inside)" if never else ""
            lines.append(f"| {bound} | {name} | {value}{note} | {interval} | {bar} |")
    lines += ["", "Settings: study overrides " + ", ".join(f"`{o}`" for o in preset.overrides) + ".", ""]
    lines += [f"- {name}: {text}." for name, text in SETTINGS.items() if name in set(table["strategy"])]
    return "\n".join([*lines, "", f"```json\n{json.dumps(found, indent=1)}\n```", ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs or goes on, writes rows and table, prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu")
    parser.add_argument("--out", type=Path, help=f"default: {OUT}/search-<preset>")
    parser.add_argument("--quick", action="store_true", help="the preset tiny, in a temporary folder")
    parsed = parser.parse_args(arguments)
    name = "tiny" if parsed.quick else parsed.preset
    with tempfile.TemporaryDirectory() as temporary:
        out = parsed.out or (Path(temporary) if parsed.quick else OUT / f"search-{name}")
        return compare(name, PRESETS[name], out)


def compare(name: str, preset: Preset, out: Path) -> int:
    """All studies of a preset; the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for bound in preset.bounds:
        for seed in range(preset.seeds):
            prompts = prompts_of(seed, preset.seeds, out / "runs")
            study = study_of(preset, seed, bound, str(prompts))
            rows += run(study, out / "runs" / f"drop-{bound:g}-seed-{seed}")
            # After each study, so that a stopped benchmark leaves what it has.
            table = pd.DataFrame(rows)
            table.to_parquet(out / "strategies.parquet", index=False, write_page_checksum=True)
            found = {f"{b:g}": figures(part) for b, part in table.groupby("max_drop", sort=False)}
            (out / "summary.md").write_text(summary(preset, table, found), encoding="utf-8")
            print(table.tail(len(preset.strategies) + 1).to_string(index=False), flush=True)
    held = all(holds(each) for each in found.values())
    bar = {"sparsity": {**BARS, "any other": 1.0}, "cost_to_reach": COST_BAR}
    print(json.dumps({"benchmark": "search", "preset": name, "figures": found, "bar": bar, "holds": held}))
    return 0 if held or name == "tiny" else 1


if __name__ == "__main__":
    sys.exit(main())
