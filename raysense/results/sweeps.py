"""What a sweep measured, as data frames: its points with every measure, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from raysense.metrics.builtin import SPECS
from raysense.metrics.spec import base_of
from raysense.results.run import Run
from raysense.strategies.cliffs import Place, Seen, collapse_of, knee_of
from raysense.study import Sweep
from raysense.study.sweep import losses_on

CURVE = (
    "point_set", "granularity", "groups", "rule", "method", "steps_from", "steps_to", "rung",
)  # fmt: skip
"""Columns that points of one curve have in common."""

FEWEST = 3
"""Points of a curve that is asked where its cliff is."""


def sweep_of(run: Run) -> Sweep | None:
    """The study's section `sweep`."""
    return run.study.sweep


def points_of(run: Run) -> pd.DataFrame:
    """One row per point: the columns of `points`, of its evaluation, and every measure with its interval.

    Columns of a measure: ``<metric>``, ``<metric>_ci_low``, ``<metric>_ci_high``, ``<metric>_n``.
    """
    points = run.table("points")
    columns = ["key", "allocation", "zeros", "images", "nfe", "seconds", "collapsed", "failed", "notes"]
    evaluations = run.table("evaluations")[columns]
    measures = run.table("measures")
    measures = measures[measures["key"].isin(points["key"])]
    wide = measures.pivot(index="key", columns="metric", values=["value", "ci_low", "ci_high", "n"])
    names: list[Any] = wide.columns.to_flat_index().tolist()
    wide.columns = pd.Index([m if part == "value" else f"{m}_{part}" for part, m in names])
    found = points.merge(evaluations, on="key", how="inner").merge(wide.reset_index(), on="key", how="left")
    return found.astype(dict.fromkeys(wide.columns, float))


def loss_on(sweep: Sweep | None, rung: str) -> str:
    """The measure that tells where a curve's cliff is."""
    cliffs = sweep.cliffs if sweep else None
    return (cliffs.measure if cliffs else None) or losses_on(rung)


def whole_of(points: pd.DataFrame, rung: str, measure: str) -> float:
    """What there is to lose on a rung; see `raysense.strategies.sweep.whole_of`."""
    lost = points.loc[points["rung"] == rung, measure]
    most = float(lost[lost.map(math.isfinite)].max()) if lost.notna().any() else 0.0
    spec = SPECS.get(base_of(measure))
    return min(most, 1.0) if spec is not None and spec.kind == "probe" else most


def seen_of(curve: pd.DataFrame, measure: str, whole: float) -> list[Seen]:
    """A curve as numbers; a broken output has lost all there is to lose."""
    found = []
    for row in curve.sort_values("sparsity").to_dict("records"):
        value = row[measure]
        if row["failed"] or not row["sparsity"]:
            continue
        if row["collapsed"] or not math.isfinite(value):
            found.append(Seen(row["sparsity"], whole, whole, whole))
        else:
            found.append(Seen(row["sparsity"], value, row[f"{measure}_ci_low"], row[f"{measure}_ci_high"]))
    return found


def curves_of(points: pd.DataFrame) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Points of one group at three sparsities or more: what they have in common, and they, ascending."""
    alone = points[~points["granularity"].isin(["together", "subset"])]
    found = []
    for _, curve in alone.groupby(list(CURVE), dropna=False, sort=False):
        curve = curve.drop_duplicates("key").sort_values("sparsity")
        if len(curve) >= FEWEST:
            head: Mapping[Any, Any] = curve.iloc[0].to_dict()
            found.append(({name: head[name] for name in CURVE}, curve))
    return found


def cliffs_of(run: Run, points: pd.DataFrame | None = None) -> pd.DataFrame:
    """The table `cliffs`: two rows a curve, its knee and its collapse."""
    points = points_of(run) if points is None else points
    rows: list[dict[str, Any]] = []
    for curve, frame in curves_of(points):
        measure = loss_on(run.study.sweep, curve["rung"])
        if measure not in frame:
            continue
        whole = whole_of(points, curve["rung"], measure)
        seen = seen_of(frame, measure, whole)
        places = {"knee": knee_of(seen, whole, run.study.seed), "collapse": collapse_of(seen, whole)}
        rows += [
            {**curve, "measure": measure, "place": name, **_place(place), "whole": whole, "points": len(seen)}
            for name, place in places.items()
        ]
    return pd.DataFrame(rows)


def _place(place: Place | None) -> dict[str, float | None]:
    if place is None:
        return {"sparsity": None, "ci_low": None, "ci_high": None}
    return {"sparsity": place.value, "ci_low": place.ci_low, "ci_high": place.ci_high}


def label_of(curve: Mapping[str, Any], several: Sequence[str] = ("method", "rule")) -> str:
    """A curve in words: its group, and of method, rule and steps what differs."""
    parts = [str(curve["groups"]), *(str(curve[name]) for name in several)]
    if curve["steps_from"] == curve["steps_from"] and curve["steps_from"] is not None:
        parts.append(f"steps {curve['steps_from']:.0%} to {curve['steps_to']:.0%}")
    return ", ".join(parts)
