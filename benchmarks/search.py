"""Every strategy on the bundled pipeline, at the same validated quality: sparsity, and what it cost.

    python -m benchmarks.search                    # preset cpu: blocks, one bound, 3 seeds; about two hours on 2 cores
    python -m benchmarks.search --preset full      # layers, all strategies, two bounds; a GPU or a long night
    python -m benchmarks.search --preset tiny      # minutes; shows that it works, and no more

One study a seed and bound runs all strategies on the same rungs (`search.compare`), so that what several of them ask is
measured once; each is charged for it all the same. Started again, it goes on where it was stopped. Rows and the table
go to ``reports/benchmarks/search-<preset>/``. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from raysense.evaluation.records import Evaluation
from raysense.search.families import EVOPRESS, JOINT, SOLVER, TPE
from raysense.study import Study, load

OUT = Path("reports/benchmarks")
REFERENCES = {"recipe": 3.0, "uniform": 1.6}
CLOSED_FORMS, CLOSED_FORM_BAR = ("lamp", "erk", "global", "owl"), 1.25
ITERATIVE = (TPE, EVOPRESS, "random")


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
        1, (0.3,), ("uniform", "recipe", SOLVER, EVOPRESS, TPE),
        ("search.granularity=component", "search.bisections=3", "search.rounds=1", "search.offspring=3",
         "search.levels=3", "rungs.probe={prompts: 4, timesteps: 2}", "rungs.preview.prompts=8",
         "rungs.score.prompts=12", "rungs.validation.prompts=12", "sampling.steps=4"),
    ),
    # Up to 3,000 images a strategy: climb and joint search judge 24 candidates on 24 + 96 images at most.
    "cpu": Preset(
        3, (0.01,), ("uniform", "recipe", "owl", SOLVER, EVOPRESS, TPE),
        ("search.granularity=block", "search.bisections=7", "search.rounds=1", "search.offspring=16"),
    ),
    "full": Preset(
        3, (0.005, 0.02), ("uniform", "recipe", "lamp", "erk", "global", "owl", SOLVER, EVOPRESS, TPE, "random"),
        ("search.granularity=layer", "search.bisections=8", "search.rounds=4", "search.offspring=16",
         "rungs.score.prompts=192"),
    ),
}  # fmt: skip


def study_of(preset: Preset, seed: int, bound: float) -> Study:
    """The study that one seed and bound run."""
    return load(
        None,
        [
            f"seed={seed}",
            f"constraints={{clip_score: {{max_drop: {bound}}}, frechet: {{max_rise: {5000 * bound}}}}}",
            f"search.strategies={json.dumps(list(preset.strategies))}",
            "search.compare=true",
            *preset.overrides,
        ],
    )


def run(study: Study, folder: Path) -> list[dict[str, Any]]:
    """One study to its end, in this process; one row a strategy."""
    from raysense.cluster import run_in_process
    from raysense.evaluation.calibration import calibration_cost
    from raysense.evaluation.engine import Evaluator, signature
    from raysense.pipelines.load import modules_of
    from raysense.search.families import closed_forms
    from raysense.search.main import begin_store
    from raysense.search.plan import make_story

    evaluator = Evaluator(study, str(folder))
    inventory, grid, modules = evaluator.inventory, evaluator.grid, modules_of(evaluator.pipeline)
    learning = calibration_cost(study, inventory, modules)
    families = closed_forms(inventory, grid, modules, study.search.proportions)
    story = make_story(study, inventory, grid, families, learning)
    identity = signature(study, grid)
    store = begin_store(study, str(folder), inventory, grid)
    run_in_process(story, evaluator, store, signature=identity, lookahead=study.search.lookahead)
    if story.error is not None:
        raise story.error
    if story.outcome is None:
        raise KeyboardInterrupt
    evaluations = store.evaluations()
    rows = []
    for name in dict.fromkeys(c.strategy for c in story.outcome.tried):
        passed = [c for c in story.outcome.validated if c.strategy == name and c.feasible]
        best = max(passed, key=lambda c: c.zeros, default=None)
        tried = [c for c in story.outcome.tried if c.strategy == name]
        zeros = best.evaluation.zeros if best else 0
        rows.append(
            {
                "strategy": name,
                "seed": study.seed,
                "max_drop": study.constraints.clip_score.max_drop if study.constraints.clip_score else None,
                "zeros": zeros,
                "sparsity_components": zeros / inventory.n_components,
                "cost": charged(name, evaluations, tried_keys={c.evaluation.key for c in tried}),
                "candidates": len(tried),
            }
        )
    return rows


def charged(strategy: str, evaluations: Sequence[Evaluation], tried_keys: set[str]) -> int:
    """Sample-forwards that a strategy stands for, what it shares with others included; validation left out.

    Its own questions and whatever of others' it was answered from the store; the solver's curves for the two that
    need them, the solver's climb for the joint search, and the uniform climb for those that start from it.
    """
    needs = {strategy}
    needs |= {SOLVER} if strategy == JOINT else set()
    needs |= {"uniform"} if strategy in ITERATIVE else set()
    stages = {"sensitivity"} if strategy in (SOLVER, JOINT) else set()

    def belongs(e: Evaluation) -> bool:
        own = e.stage == "search" and e.question.split("/")[1] in needs
        return own or e.stage in stages or e.key in tried_keys

    return sum(e.cost for e in evaluations if belongs(e))


def figures(rows: pd.DataFrame) -> dict[str, Any]:
    """Ours against the others: ratios of validated sparsity with their mean and range over studies."""
    wide = rows.pivot_table(index=["max_drop", "seed"], columns="strategy", values="sparsity_components")
    ours = wide[[name for name in (JOINT, SOLVER) if name in wide]].max(axis=1)
    found: dict[str, Any] = {}
    closed = [name for name in CLOSED_FORMS if name in wide]
    rivals = {name: wide[name] for name in wide if name not in (JOINT, SOLVER)}
    if closed:
        rivals["best closed form"] = wide[closed].max(axis=1)
    for name, theirs in rivals.items():
        ratios = [float(a / b) for a, b in zip(ours, theirs, strict=True) if b > 0]
        found[str(name)] = {
            "ratios": [round(r, 3) for r in ratios],
            "mean": round(statistics.mean(ratios), 3) if ratios else None,
            "not_inside_the_budget": int((theirs <= 0).sum()),
        }
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs or goes on, writes rows and table, prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu")
    parser.add_argument("--out", type=Path, help=f"default: {OUT}/search-<preset>")
    parsed = parser.parse_args(arguments)
    preset, out = PRESETS[parsed.preset], parsed.out or OUT / f"search-{parsed.preset}"
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for bound in preset.bounds:
        for seed in range(preset.seeds):
            rows += run(study_of(preset, seed, bound), out / "runs" / f"drop-{bound:g}-seed-{seed}")
            # After each study, so that a stopped benchmark leaves what it has.
            table = pd.DataFrame(rows)
            table.to_parquet(out / "strategies.parquet", index=False)
            print(table.tail(len(preset.strategies) + 1).to_string(index=False), flush=True)
    found = figures(table)
    means = table.groupby(["max_drop", "strategy"], as_index=False)[["sparsity_components", "cost"]].mean()
    lines = ["| max_drop | strategy | sparsity_components | cost, sample-forwards |", "|---|---|---|---|"]
    for row in means.to_dict("records"):
        share, cost = float(row["sparsity_components"]), float(row["cost"])
        lines.append(f"| {row['max_drop']:g} | {row['strategy']} | {share:.1%} | {cost:,.0f} |")
    (out / "summary.md").write_text(
        "\n".join([*lines, "", f"```json\n{json.dumps(found, indent=1)}\n```", ""])
    )
    bars = {**REFERENCES, "best closed form": CLOSED_FORM_BAR}
    holds = all(
        found[name]["mean"] is None or found[name]["mean"] >= bar
        for name, bar in bars.items()
        if name in found
    )
    print(
        json.dumps(
            {"benchmark": "search", "preset": parsed.preset, "figures": found, "bars": bars, "holds": holds}
        )
    )
    return 0 if holds or parsed.preset == "tiny" else 1


if __name__ == "__main__":
    sys.exit(main())
