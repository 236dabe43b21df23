"""Which method chooses weights best, at which sparsity, where?

Methods × sparsity on the bundled pipeline, one ratio for all layers of a scope: the text encoder (it has Linear layers
alone), the U-Net's Linear layers, all of the U-Net. Before the Hessian method is compared, a sweep over calibration
size and damping chooses its setting for each scope on search prompts; the comparison is on held-out ones. Each
setting is a study with a store of its own under ``--out``; what is stored is not measured again.

    python -m benchmarks.methods [--quick] [--out DIR]

The table shows the closeness of pruned to dense images (mean feature cosine of pairs from the same noise) with its
95 % interval, read from the studies' Parquet tables; all of it stands in ``methods.parquet`` below ``--out`` too. The
last line printed is one JSON object.
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

from raysense.evaluation.evaluator import Evaluator
from raysense.execution.executor import new_life, signed
from raysense.records import EvaluationRequest, TrialSpec
from raysense.search.job import denominators, layer_rows
from raysense.search.try_once import allocate
from raysense.store.store import Store
from raysense.strategies.verdict import quality_budget
from raysense.study import EXTENSIONS, Study, load

SCOPES: dict[str, list[str]] = {
    "text encoder": ["prune.components=[text_encoder]"],
    "U-Net, Linear": ["prune.components=[unet]", "prune.kinds=[linear]"],
    "U-Net, Linear + Conv": ["prune.components=[unet]"],
}
RANKING = ("magnitude", "random", "wanda", "wanda_tensor", "taylor")
HESSIAN = ("sparsegpt", "obs_diff")
SWEPT = "obs_diff"
MEASURE = "closeness"
CAP = 0.66
SWEEP_LEVELS = 8
"""Few, for each must be solved; all settings of a sweep share them, and so their allocation."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        sparsities: Zeros over the weights of the scope.
        prompts: Held-out prompts of the comparison, one image each.
        steps: Denoising steps.
        calibration: Calibration prompts, unless the sweep finds better.
        sweep: Scope -> (calibration prompts, dampings) that are crossed.
        sweep_prompts: Search prompts that judge a setting of the sweep.
        levels: Levels of the Hessian methods: a layer's sparsity is within half a level, 1/32 of `CAP` or
            less with 32 of them, of the ratio that the other methods have.
        scopes: Keys of `SCOPES`.
        ranking: Methods that rank, of `RANKING`.
        extra: More settings for one scope.
    """

    sparsities: tuple[float, ...]
    prompts: int
    steps: int
    calibration: int
    sweep: Mapping[str, tuple[tuple[int, ...], tuple[float, ...]]]
    sweep_prompts: int
    levels: int
    scopes: tuple[str, ...] = tuple(SCOPES)
    ranking: tuple[str, ...] = RANKING


FULL = Size(
    sparsities=(0.3, 0.45, 0.6),
    prompts=64,
    steps=12,
    calibration=32,
    # Hessians of convolutions take most of the time: fewer settings there.
    sweep={
        "text encoder": ((8, 32, 128), (0.001, 0.01, 0.1)),
        "U-Net, Linear": ((8, 32, 64), (0.001, 0.01, 0.1)),
        "U-Net, Linear + Conv": ((8, 32), (0.01, 0.1)),
    },
    sweep_prompts=32,
    levels=32,
)
QUICK = Size(
    sparsities=(0.3, 0.5),
    prompts=8,
    steps=2,
    calibration=4,
    sweep={"text encoder": ((2, 4), (0.01, 0.1)), "U-Net, Linear": ((4,), (0.01,))},
    sweep_prompts=8,
    levels=8,
    scopes=("text encoder", "U-Net, Linear"),
    ranking=("magnitude", "random", "wanda", "taylor"),
)


def main() -> None:
    """Measure what is not stored, print the tables, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="two scopes, 8 images, 2 steps")
    parser.add_argument("--out", default="reports/runs/methods", help="default: %(default)s")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    out = Path(options.out) / ("quick" if options.quick else "full")
    began = time.perf_counter()

    settings, found = {}, {}
    for scope in size.scopes:
        prompts, damping = settings[scope] = sweep(size, scope, out)
        found[scope] = compare(size, scope, prompts, damping, out)
        print(table(scope, found[scope], size), flush=True)
    pd.DataFrame(
        {
            "scope": scope,
            "method": method,
            "measure": MEASURE,
            "images": size.prompts,
            "steps": size.steps,
            **cell,
        }
        for scope, rows in found.items()
        for method, cells in rows.items()
        for cell in cells
    ).to_parquet(out / "methods.parquet", index=False, write_page_checksum=True)

    inexact = sum(
        not 0 <= round(sparsity * row["n_selected"]) - row["zeros"] < row["base"]
        for rows in found.values()
        for cells in rows.values()
        for sparsity, row in zip(size.sparsities, cells, strict=True)
    )
    last = [min(rows, key=lambda method: rows[method][-1]["value"]) for rows in found.values()]
    figures = {
        MEASURE: {
            scope: {
                method: {f"{c['share']:.3f}": [c["value"], c["ci_low"], c["ci_high"]] for c in cells}
                for method, cells in rows.items()
            }
            for scope, rows in found.items()
        },
        "hessian_settings": settings,
        "totals_not_as_asked": inexact,
        "worst_at_the_highest_sparsity": dict(zip(found, last, strict=True)),
        "seconds": round(time.perf_counter() - began),
    }
    bar = {"totals_not_as_asked": "0", "worst_at_the_highest_sparsity": "random"}
    holds = inexact == 0 and set(last) == {"random"}
    print(json.dumps({"benchmark": "methods", "figures": figures, "bar": bar, "holds": holds}))


@dataclass(frozen=True)
class Setting:
    """One study of the benchmark: a method in a scope."""

    scope: str
    method: str
    rung: str
    calibration: int
    damping: float
    levels: int

    @property
    def folder(self) -> str:
        """Its name below ``--out``, from which the tables are read."""
        name = f"{self.rung}/{self.scope.replace(' ', '-').replace(',', '')}/{self.method}"
        return name + f"-{self.calibration}-{self.damping:g}" * (self.rung == "preview")

    def study(self, size: Size) -> Study:
        """Its study."""
        return load(
            overrides=[
                f"name={self.folder.replace('/', '.').replace('+', 'and')}",
                *SCOPES[self.scope],
                f"prune.saliency={self.method}",
                f"prune.max_layer_sparsity={CAP}",
                f"prune.calibration={{prompts: {self.calibration}, damping: {self.damping}, levels: {self.levels}}}",
                f"sampling.steps={size.steps}",
                "rungs.probe.prompts=2",
                f"rungs.preview.prompts={size.sweep_prompts}",
                f"rungs.score.prompts={size.sweep_prompts}",
                f"rungs.validation.prompts={size.prompts}",
                "search.strategies=[uniform]",
            ]
        )


def sweep(size: Size, scope: str, out: Path) -> tuple[int, float]:
    """The calibration size and damping that keep the images closest to the dense ones at the middle sparsity."""
    sizes, dampings = size.sweep[scope]
    middle = size.sparsities[len(size.sparsities) // 2]
    best, found = -2.0, (size.calibration, 0.01)
    print(f"{scope}: {SWEPT} at {middle:.0%}, {MEASURE} by calibration prompts and damping", flush=True)
    for prompts in sizes:
        for damping in dampings:
            setting = Setting(scope, SWEPT, "preview", prompts, damping, SWEEP_LEVELS)
            measure(size, setting, (middle,), out)
            (row,) = rows_of(out / setting.folder, [trial_of(SWEPT, middle)])
            print(
                f"  {prompts:>4} prompts, damping {damping:<6g} {row['value']:.4f} "
                f"[{row['ci_low']:.4f}, {row['ci_high']:.4f}] {row['notes']}",
                flush=True,
            )
            if row["value"] > best:
                best, found = row["value"], (prompts, damping)
    return found


def measure(size: Size, setting: Setting, sparsities: Sequence[float], out: Path) -> None:
    """Measure what the setting's store lacks."""
    study = setting.study(size)
    store = Store.open(str(out / setting.folder), create=True)
    stored = {evaluation.trial for evaluation in store.evaluations()}
    if stored.issuperset(trial_of(setting.method, sparsity) for sparsity in sparsities):
        return
    evaluator = Evaluator(study, str(out))
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


def rows_of(folder: Path, trials: Sequence[str]) -> list[dict[str, Any]]:
    """The answers to some trials, from a store's Parquet tables, sparsest last."""
    store = Store.open(str(folder))
    connection = duckdb.connect()
    for name in ("layers", "evaluations", "measures"):
        connection.register(name, store.table(name))
    found = connection.execute(
        f"""
        SELECT zeros, zeros / n_selected AS share, value, ci_low, ci_high, notes,
               (SELECT min(step) FROM layers WHERE step > 0) AS base, n_selected
        FROM evaluations JOIN measures USING (key)
        WHERE metric = '{MEASURE}' AND list_contains(?, trial) ORDER BY zeros
        """,
        [list(trials)],
    )
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def compare(
    size: Size, scope: str, prompts: int, damping: float, out: Path
) -> dict[str, list[dict[str, Any]]]:
    """Method -> its rows, one a sparsity, in the order of `Size.sparsities`."""
    rows = {}
    # Only the denoiser's steps can be weighted: for a text encoder both Hessian methods are one.
    hessian = (SWEPT,) if scope == "text encoder" else HESSIAN
    for method in (*size.ranking, *hessian):
        setting = Setting(scope, method, "validation", prompts, damping, size.levels)
        measure(size, setting, size.sparsities, out)
        wanted = [trial_of(method, sparsity) for sparsity in size.sparsities]
        rows[method] = rows_of(out / setting.folder, wanted)
    return rows


def table(scope: str, rows: Mapping[str, Sequence[Mapping[str, Any]]], size: Size) -> str:
    """One scope: a line a method, a column a sparsity."""
    lines = [f"\n{scope}: {MEASURE} on {size.prompts} held-out images, {size.steps} steps"]
    lines.append(f"{'':<14}" + "".join(f"{f'{sparsity:.0%}':<24}" for sparsity in size.sparsities))
    for method, cells in rows.items():
        shown = (f"{c['value']:.4f} [{c['ci_low']:.4f}, {c['ci_high']:.4f}]" for c in cells)
        lines.append(f"{method:<14}" + "".join(f"{cell:<24}" for cell in shown))
    notes = sorted({c["notes"] for cells in rows.values() for c in cells if c["notes"]})
    return "\n".join(lines + notes)


if __name__ == "__main__":
    main()
