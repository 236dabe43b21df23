"""Which method chooses weights best, at which sparsity, where?

Methods × sparsity on both bundled pipelines, one ratio for all layers of a scope: the text encoders, the denoiser's
Linear layers, all of the denoiser where it has convolutions (`benchmarks.beds`). Before the Hessian method is compared,
a sweep over calibration size and damping chooses its setting for each scope on search prompts; the comparison is on
held-out ones. Each setting is a study with a store of its own under ``--out``; what is stored is not measured again.

    python -m benchmarks.methods [--quick] [--bed BED] [--out DIR]
    python -m benchmarks.methods --table                # measure nothing: the tables of the committed rows

The tables show the closeness of pruned to dense images (mean feature cosine of pairs from the same noise) with its
95 % interval, in Markdown; their rows stand in ``BED.parquet`` below ``--out``. The last line printed is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd

from benchmarks.beds import STUDIES, Scope, scopes_of, study_of
from raysense.evaluation.evaluator import Evaluator
from raysense.execution.executor import new_life, signed
from raysense.records import EvaluationRequest, TrialSpec
from raysense.search.job import denominators, layer_rows
from raysense.search.try_once import allocate
from raysense.store.store import Store
from raysense.strategies.verdict import quality_budget
from raysense.study import EXTENSIONS, Study

COMMITTED = Path(__file__).parents[1] / "reports/benchmarks/methods"
RANKING = ("magnitude", "random", "wanda", "wanda_tensor", "taylor")
HESSIAN = ("sparsegpt", "obs_diff")
SWEPT = "obs_diff"
MEASURE = "closeness"
CAP = 0.66
SWEEP_LEVELS = 8
"""Few, for each must be solved; all settings of a sweep share them, and so their allocation."""

Cells = Mapping[str, Sequence[Mapping[str, Any]]]
"""Method -> its rows, one a sparsity."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        sparsities: Zeros over the weights of the scope.
        prompts: Held-out prompts of the comparison, one image each.
        steps: Denoising steps.
        sweep: Calibration prompts and dampings that are crossed for `Linear` layers.
        sweep_all: The same for layers of all kinds: Hessians of convolutions take most of the time.
        sweep_prompts: Search prompts that judge a setting of the sweep.
        levels: Levels of the Hessian methods: a layer's sparsity is within half a level, 1/32 of `CAP` or
            less with 32 of them, of the ratio that the other methods have.
        linear: Whether `Linear` layers alone are measured.
        methods: That are compared, of `RANKING` and `HESSIAN`.
    """

    sparsities: tuple[float, ...]
    prompts: int
    steps: int
    sweep: tuple[tuple[int, ...], tuple[float, ...]]
    sweep_all: tuple[tuple[int, ...], tuple[float, ...]]
    sweep_prompts: int
    levels: int
    linear: bool = False
    methods: tuple[str, ...] = (*RANKING, *HESSIAN)


FULL = Size(
    sparsities=(0.3, 0.45, 0.6),
    prompts=32,
    steps=6,
    sweep=((8, 32), (0.01, 0.1)),
    sweep_all=((16,), (0.01, 0.1)),
    sweep_prompts=16,
    levels=16,
)
QUICK = Size(
    sparsities=(0.4,),
    prompts=8,
    steps=2,
    sweep=((4,), (0.01,)),
    sweep_all=((4,), (0.01,)),
    sweep_prompts=8,
    levels=4,
    linear=True,
    methods=("magnitude", "random", "obs_diff"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is not stored, print the tables, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--quick", action="store_true", help="Linear layers, three methods, 8 images, 2 steps"
    )
    parser.add_argument("--bed", choices=STUDIES, action="append", help="default: both")
    parser.add_argument("--out", default="reports/runs/methods", help="default: %(default)s")
    parser.add_argument("--table", action="store_true", help="measure nothing: tables of the committed rows")
    options = parser.parse_args(arguments)
    if options.table:
        print(tables(COMMITTED))
        return
    size = QUICK if options.quick else FULL
    out = Path(options.out) / ("quick" if options.quick else "full")
    figures = {bed: bed_figures(bed, size, out) for bed in options.bed or STUDIES}
    print("\n" + tables(out))
    bar = {"totals_not_as_asked": 0, "worst_at_the_highest_sparsity": "random"}
    holds = all(
        found["totals_not_as_asked"] == 0
        and set(found["worst_at_the_highest_sparsity"].values()) == {"random"}
        for found in figures.values()
    )
    print(json.dumps({"benchmark": "methods", "figures": figures, "bar": bar, "holds": holds}))


def bed_figures(bed: str, size: Size, out: Path) -> dict[str, Any]:
    """One pipeline: measures, writes its rows, and says what the last line shows."""
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    settings: dict[str, tuple[int, float]] = {}
    worst: dict[str, str] = {}
    for scope in scopes_of(bed):
        if size.linear and not scope.linear:
            continue
        swept, settings[scope.name] = sweep(size, bed, scope, out)
        found = compare(size, bed, scope, settings[scope.name], out)
        worst[scope.name] = min(found, key=lambda method: found[method][-1]["value"])
        rows += swept + [row for cells in found.values() for row in cells]
        print(f"{bed}, {scope.name}: {time.perf_counter() - began:.0f} s", flush=True)
    pd.DataFrame(rows).to_parquet(out / f"{bed}.parquet", index=False, write_page_checksum=True)
    inexact = sum(not 0 <= round(r["sparsity"] * r["n_selected"]) - r["zeros"] < r["base"] for r in rows)
    return {
        "hessian_settings": settings,
        "totals_not_as_asked": inexact,
        "worst_at_the_highest_sparsity": worst,
        "seconds": round(time.perf_counter() - began),
    }


@dataclass(frozen=True)
class Setting:
    """One study of the benchmark: a method in a scope of a bed."""

    bed: str
    scope: Scope
    method: str
    rung: str
    calibration: int
    damping: float
    levels: int

    @property
    def folder(self) -> str:
        """Its name below ``--out``, from which its rows are read."""
        name = f"{self.bed}/{self.rung}/{self.scope.name.replace(',', '').replace(' ', '-')}/{self.method}"
        return name + f"-{self.calibration}-{self.damping:g}" * (self.rung == "preview")

    def study(self, size: Size) -> Study:
        """Its study."""
        return study_of(
            self.bed,
            [
                f"name={self.folder.replace('/', '.')}",
                *self.scope.overrides,
                f"prune.saliency={self.method}",
                f"prune.max_layer_sparsity={CAP}",
                f"prune.calibration={{prompts: {self.calibration}, damping: {self.damping}, levels: {self.levels}}}",
                f"sampling.steps={size.steps}",
                "rungs.probe.prompts=2",
                f"rungs.preview.prompts={size.sweep_prompts}",
                f"rungs.score.prompts={size.sweep_prompts}",
                f"rungs.validation.prompts={size.prompts}",
                "search.strategies=[uniform]",
            ],
        )


def sweep(size: Size, bed: str, scope: Scope, out: Path) -> tuple[list[dict[str, Any]], tuple[int, float]]:
    """All rows at the middle sparsity, and the calibration size and damping that keep the images closest."""
    sizes, dampings = size.sweep if scope.linear else size.sweep_all
    middle = size.sparsities[len(size.sparsities) // 2]
    rows = [
        row
        for prompts in sizes
        for damping in dampings
        for row in measured(
            size, Setting(bed, scope, SWEPT, "preview", prompts, damping, SWEEP_LEVELS), (middle,), out
        )
    ]
    best = max(rows, key=lambda row: float(row["value"]))
    return rows, (best["calibration"], best["damping"])


def compare(
    size: Size, bed: str, scope: Scope, setting: tuple[int, float], out: Path
) -> dict[str, list[dict[str, Any]]]:
    """Method -> its rows, one a sparsity, in the order of `Size.sparsities`."""
    return {
        method: measured(
            size, Setting(bed, scope, method, "validation", *setting, size.levels), size.sparsities, out
        )
        for method in size.methods
        # Only the denoiser's steps can be weighted: for a text encoder both Hessian methods are one.
        if not (scope.text and method == "sparsegpt")
    }


def measured(size: Size, setting: Setting, sparsities: Sequence[float], out: Path) -> list[dict[str, Any]]:
    """The rows of a setting, one a sparsity; what its store lacks is measured."""
    measure(size, setting, sparsities, out)
    return [
        {
            "bed": setting.bed,
            "scope": setting.scope.name,
            "method": setting.method,
            "rung": setting.rung,
            "calibration": setting.calibration,
            "damping": setting.damping,
            "sparsity": sparsity,
            "measure": MEASURE,
            "steps": size.steps,
            **row_of(out / setting.folder, trial_of(setting.method, sparsity)),
        }
        for sparsity in sparsities
    ]


def measure(size: Size, setting: Setting, sparsities: Sequence[float], out: Path) -> None:
    """Measure what the setting's store lacks."""
    study = setting.study(size)
    store = Store.open(str(out / setting.folder), create=True)
    stored = {evaluation.trial for evaluation in store.evaluations()}
    if stored.issuperset(trial_of(setting.method, sparsity) for sparsity in sparsities):
        return
    evaluator = Evaluator(study, str(out / setting.bed))
    identity = evaluator.signature
    store.begin(
        study.model_dump(mode="json"),
        signature=identity,
        inputs=evaluator.inputs,
        denominators=denominators(evaluator.inventory),
        extensions=EXTENSIONS,
        budget=quality_budget(study),
    )
    store.write_table("layers", layer_rows(evaluator.inventory, evaluator.grid, "layer"))
    for sparsity in sparsities:
        request = EvaluationRequest(allocate(evaluator, sparsity)[1], setting.rung)
        spec = TrialSpec(trial_of(setting.method, sparsity), "search", (request,))
        if store.get(request.key(identity)) is None:
            answer = signed(
                evaluator.evaluate(request),
                spec,
                request,
                signature=identity,
                trial="in-process",
                life=new_life(),
            )
            store.put(answer, request.allocation)
    store.compact()


def trial_of(method: str, sparsity: float) -> str:
    """The name of the one trial of a method and a sparsity."""
    return f"{method}/{sparsity:g}"


def row_of(folder: Path, trial: str) -> dict[str, Any]:
    """The answer to a trial, from a store's Parquet tables."""
    store = Store.open(str(folder))
    connection = duckdb.connect()
    for name in ("layers", "evaluations", "measures"):
        connection.register(name, store.table(name))
    found = connection.execute(
        f"""
        SELECT zeros, n_selected, value, ci_low, ci_high, n AS images, notes,
               (SELECT min(step) FROM layers WHERE step > 0) AS base
        FROM evaluations JOIN measures USING (key) WHERE metric = '{MEASURE}' AND trial = ?
        """,
        [trial],
    )
    names = [column[0] for column in found.description or ()]
    (row,) = found.fetchall()
    return dict(zip(names, row, strict=True))


def tables(folder: Path) -> str:
    """The rows of all beds that lie there, in Markdown: the comparison, a table a scope, and the sweep."""
    files = [folder / f"{bed}.parquet" for bed in STUDIES]
    rows: list[dict[str, Any]] = [
        {str(name): value for name, value in row.items()}
        for file in files
        if file.exists()
        for row in pd.read_parquet(file).to_dict("records")
    ]
    compared = [row for row in rows if row["rung"] == "validation"]
    scopes = [
        comparison(scope, [row for row in compared if row["scope"] == scope])
        for scope in dict.fromkeys(row["scope"] for row in compared)
    ]
    return "\n\n".join([*scopes, sweeps([row for row in rows if row["rung"] == "preview"])])


def comparison(scope: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """One scope: a line a method, a column a bed and sparsity; the largest of a column stands out."""
    columns = list(dict.fromkeys((row["bed"], row["sparsity"]) for row in rows))
    cells = {((row["bed"], row["sparsity"]), row["method"]): row for row in rows}
    lines = [
        f"| {scope} | " + " | ".join(f"{bed}, {100 * sparsity:.0f} %" for bed, sparsity in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    best = {
        column: max(row["value"] for (where, _), row in cells.items() if where == column)
        for column in columns
    }
    for method in dict.fromkeys(row["method"] for row in rows):
        shown = []
        for column in columns:
            row = cells[column, method]
            value = f"{row['value']:.3f}"
            value = f"**{value}**" if row["value"] == best[column] else value
            shown.append(f"{value} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]".replace("-", "−"))
        lines.append(f"| {method} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def sweeps(rows: Sequence[Mapping[str, Any]]) -> str:
    """The Hessian method's settings: a line each, a column a bed and scope."""
    columns = list(dict.fromkeys((row["bed"], row["scope"]) for row in rows))
    values = {
        ((row["calibration"], row["damping"]), (row["bed"], row["scope"])): row["value"] for row in rows
    }
    lines = [
        "| calibration prompts, damping | " + " | ".join(", ".join(column) for column in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for setting in sorted({setting for setting, _ in values}):
        cells = (
            f"{values[setting, column]:.3f}" if (setting, column) in values else "–" for column in columns
        )
        lines.append(f"| {setting[0]}, {setting[1]:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
