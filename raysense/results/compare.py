"""Two studies side by side: what is the same, what each reached, where their winners differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raysense.results.run import DENOMINATORS, Run
from raysense.store.differences import difference
from raysense.terminal import say


@dataclass(frozen=True)
class Comparison:
    """What `compare` finds.

    Attributes:
        figures: One row a figure: ``figure``, ``a``, ``b``; what a study lacks is missing.
        settings: One row a differing field of the definitions: ``field``, ``a``, ``b``.
        layers: One row a layer that both studies know: ``layer``, ``weights``, ``a``, ``b`` (share removed), only
            if both have a winner.
        doubts: Why the figures may not be comparable.
    """

    figures: pd.DataFrame
    settings: pd.DataFrame
    layers: pd.DataFrame
    doubts: tuple[str, ...]


def compare(a: Run, b: Run) -> Comparison:
    """Set two studies side by side."""
    one, two = _figures(a), _figures(b)
    names = list(dict.fromkeys([*one, *two]))
    figures = pd.DataFrame(
        [{"figure": name, "a": one.get(name), "b": two.get(name)} for name in names],
        columns=["figure", "a", "b"],
    )
    differing = difference(a.study.model_dump(mode="json"), b.study.model_dump(mode="json"))
    settings = pd.DataFrame(differing, columns=["field", "a", "b"])
    return Comparison(figures, settings, _layers(a, b), tuple(_doubts(a, b)))


def _figures(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = {"evaluations": float(len(run.table("evaluations")))}
    found["nfe"] = float(run.costs()["nfe"].sum())
    summary = run.summary
    if summary is None or not summary["feasible"]:
        return found
    head: dict[str, Any] = {f"sparsity_{name}": summary[f"sparsity_{name}"] for name in DENOMINATORS}
    head["gain over uniform"] = summary["gain_over_uniform"]
    for metric, values in summary["metrics"].items():
        head[metric] = values["value"]
        head[f"{metric}: ci_low"], head[f"{metric}: ci_high"] = values["ci_low"], values["ci_high"]
        head[f"{metric}: images"] = float(values["n"])
    return {**head, **found}


def _layers(a: Run, b: Run) -> pd.DataFrame:
    empty = pd.DataFrame(columns=["layer", "weights", "a", "b"])
    winners = [(run.summary or {}).get("allocation") for run in (a, b)]
    if None in winners:
        return empty
    shares = [
        run.layer_sparsity(run.allocation(str(key)))[["layer", "weights", "sparsity"]]
        for run, key in zip((a, b), winners, strict=True)
    ]
    both = shares[0].merge(shares[1], on=["layer", "weights"], suffixes=("_a", "_b"))
    return both.rename(columns={"sparsity_a": "a", "sparsity_b": "b"})


def _doubts(a: Run, b: Run) -> list[str]:
    doubts = []
    for run in (a, b):
        if run.summary is None:
            doubts.append(f"{run.uri} has not finished: it has no winner yet")
        elif not run.summary["feasible"]:
            doubts.append(f"{run.uri} has no winner: nothing passed its test")
    for field, what in (
        ("pipeline", "pipelines"),
        ("revision", "revisions of the pipeline"),
        ("dtype", "dtypes"),
        ("prompts", "prompts"),
        ("sampling", "sampling"),
        ("metrics", "judging networks"),
        ("constraints", "quality budgets"),
    ):
        if getattr(a.study, field) != getattr(b.study, field):
            doubts.append(f"different {what}: differences in quality or sparsity may come from them")
    if a.study.rungs.validation != b.study.rungs.validation:
        doubts.append("different validation rungs: distribution distances depend on the number of images")
    if a.record["denominators"] != b.record["denominators"]:
        doubts.append("different layers or denominators: sparsities are shares of different totals")
    return doubts


def render(found: Comparison, a: Run, b: Run, console: Console) -> None:
    """Print a comparison: figures, settings that differ, the layers that differ most, doubts."""
    first, second = escape(a.study.name), escape(b.study.name)
    if first == second:
        first, second = escape(a.uri), escape(b.uri)
    table = Table("figure", first, second)
    for row in found.figures.to_dict("records"):
        table.add_row(
            escape(str(row["figure"])), _show(row["figure"], row["a"]), _show(row["figure"], row["b"])
        )
    console.print(table)
    if len(found.settings):
        settings = Table("setting that differs", first, second)
        for row in found.settings.to_dict("records"):
            settings.add_row(*(escape(str(row[name])) for name in ("field", "a", "b")))
        console.print(settings)
    apart = found.layers.assign(apart=(found.layers["a"] - found.layers["b"]).abs())
    apart = apart[apart["apart"] > 0].sort_values("apart", ascending=False)
    if len(apart):
        layers = Table("layer", "weights", f"removed by {first}", f"by {second}")
        for row in apart.head(10).to_dict("records"):
            layers.add_row(escape(row["layer"]), f"{row['weights']:,}", f"{row['a']:.1%}", f"{row['b']:.1%}")
        console.print(layers)
        say(console, f"{len(apart)} of {len(found.layers)} layers differ; the furthest apart are shown.")
    for doubt in found.doubts:
        say(console, f"Note: {doubt}.")


def _show(figure: str, value: Any) -> str:
    if value is None or value != value:
        return "not measured"
    if figure.startswith("sparsity_"):
        return f"{value:.2%}"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 2 else f"{value:.4g}"
