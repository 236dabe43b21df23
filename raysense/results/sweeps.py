"""What a sweep measured, as data frames: its points with every measure, and what follows from them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.special import stdtr

from raysense.feasibility import IMAGE_RUNGS
from raysense.metrics.builtin.probe_error import PROBE_ERROR
from raysense.metrics.intervals import LEVEL, NORMAL, mean_interval, quantile
from raysense.results.run import Run
from raysense.store.schema import TABLES
from raysense.strategies.cliffs import FEWEST, Place, Seen, collapse_of, knee_of, seen_at, whole_of
from raysense.strategies.screen import interactions
from raysense.study.sweep import IMAGE_LOSS, loss_on, losses_on

CURVE = (
    "point_set", "granularity", "groups", "rule", "method", "steps_from", "steps_to", "rung",
)  # fmt: skip
"""Columns that points of one curve have in common."""


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


def seen_of(curve: pd.DataFrame, measure: str, whole: float) -> list[Seen]:
    """A curve as numbers; a broken output has lost all there is to lose."""
    found = []
    for row in curve.sort_values("sparsity").to_dict("records"):
        if row["failed"] or not row["sparsity"]:
            continue
        told = (row[measure], row[f"{measure}_ci_low"], row[f"{measure}_ci_high"])
        found.append(seen_at(row["sparsity"], None if row["collapsed"] else told, whole))
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
        whole = whole_of(measure, points.loc[points["rung"] == curve["rung"], measure])
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


def ranking_of(run: Run, points: pd.DataFrame | None = None) -> pd.DataFrame:
    """The table `ranking`: groups of a set that lost the same share, or as many weights, by what images say of it."""
    points = points_of(run) if points is None else points
    found = []
    for asked, group in _alike(run, points):
        measure = loss_on(run.study.sweep, str(group["rung"].iloc[0]))
        known = group.dropna(subset=[measure]) if measure in group else group.iloc[:0]
        known = known[(known["failed"] == "") & (known["collapsed"] == "")].drop_duplicates("groups")
        if len(known) >= FEWEST:
            found.append(_ranked(known, measure, asked))
    columns = TABLES["ranking"].names
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def _alike(run: Run, points: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Points of a set that prune different groups alone by the same rule, as much, in words, and they."""
    sweep = run.study.sweep
    sets = {one.name or str(number): one for number, one in enumerate(sweep.points)} if sweep else {}
    alone = points[points["listed"] & points["shares"].map(lambda text: len(json.loads(text)) == 1)]
    share = alone["shares"].map(lambda text: next(iter(json.loads(text).values())))
    by_zeros = alone["point_set"].map(lambda name: bool(sets[name].zeros) if name in sets else False)
    zeros = (share * alone["weights"]).round().astype("int64")
    asked = [
        f"{count:,} zeros" if is_zeros else f"{part:.4g} of each"
        for part, count, is_zeros in zip(share, zeros, by_zeros, strict=True)
    ]
    # What the screen prunes alone is a ranking too.
    names = [name for name in CURVE if name != "groups"]
    grouped = alone.assign(asked=asked).groupby([*names, "asked"], dropna=False, sort=False)
    return [(str(group["asked"].iloc[0]), group) for _, group in grouped]


def _ranked(group: pd.DataFrame, measure: str, asked: str) -> pd.DataFrame:
    """Groups in the order of their loss, with what is sure of that order."""
    count = len(group)
    freedom = (group[f"{measure}_n"] - 1).clip(lower=1).astype(int)
    error = (group[f"{measure}_ci_high"] - group[f"{measure}_ci_low"]) / 2
    error /= freedom.map(lambda n: quantile(n, LEVEL))
    reach = error * freedom.map(lambda n: quantile(n, 1 - (1 - LEVEL) / count))
    low, high = group[measure] - reach, group[measure] + reach
    chance = pd.Series(2 * stdtr(freedom, -(group[measure] / error.clip(lower=1e-300)).abs()), group.index)
    ordered = chance.sort_values()
    holm = (ordered * range(count, 0, -1)).cummax().clip(upper=1.0)
    found = group.assign(
        asked=asked,
        measure=measure,
        loss=group[measure],
        ci_low=group[f"{measure}_ci_low"],
        ci_high=group[f"{measure}_ci_high"],
        all_ci_low=low,
        all_ci_high=high,
        p=holm,
        rank=group[measure].rank(ascending=False, method="first").astype(int),
        rank_low=[1 + int((low > top).sum()) for top in high],
        rank_high=[count - int((high < bottom).sum()) for bottom in low],
    )
    return found.sort_values("rank")


def pairs_of(run: Run, points: pd.DataFrame | None = None) -> pd.DataFrame:
    """The table `pairs`: what a sweep's screening design found."""
    columns = TABLES["pairs"].names
    screen = run.study.sweep.screen if run.study.sweep else None
    points = points_of(run) if points is None else points
    own = points[points["point_set"] == "screen"]
    own = own[(own["failed"] == "") & (own["collapsed"] == "")]
    if screen is None or own.empty:
        return pd.DataFrame(columns=columns)
    rung = str(own["rung"].iloc[0])
    measure = screen.measure or losses_on(rung)
    alone = own[own["granularity"] != "subset"].set_index("groups")[measure]
    subsets = own[own["granularity"] == "subset"]
    groups = list(alone.index)
    if len(subsets) < len(groups):
        return pd.DataFrame(columns=columns)  # not enough of the design is measured yet
    members = [set(json.loads(text)) for text in subsets["shares"]]
    design = np.array([[group in chosen for group in groups] for chosen in members])
    found = interactions(
        design, subsets[measure].to_numpy(dtype=float), alone.to_numpy(dtype=float), run.study.seed
    )
    rows = [
        {
            "first": groups[pair.first],
            "second": groups[pair.second],
            "rung": rung,
            "measure": measure,
            "effect": pair.effect,
            "ci_low": pair.ci_low,
            "ci_high": pair.ci_high,
            "p": pair.p,
            "runs": len(subsets),
            "pairs": len(groups) * (len(groups) - 1) // 2,
        }
        for pair in found
    ]
    return pd.DataFrame(rows, columns=columns)


def agreement_of(run: Run, points: pd.DataFrame | None = None) -> pd.DataFrame:
    """The table `agreement`: how well the probe orders groups that images rank."""
    columns = TABLES["agreement"].names
    points = points_of(run) if points is None else points
    if PROBE_ERROR not in points:
        return pd.DataFrame(columns=columns)
    probed = (
        points[points["rung"] == "probe"].drop_duplicates("allocation").set_index("allocation")[PROBE_ERROR]
    )
    rows = []
    for asked, group in _alike(run, points):
        head = group.iloc[0]
        measure = loss_on(run.study.sweep, str(head["rung"]))
        if (
            head["rung"] not in IMAGE_RUNGS
            or measure not in group
            or head["steps_from"] == head["steps_from"]
        ):
            continue
        both = group.assign(probe=group["allocation"].map(probed)).dropna(subset=[measure, "probe"])
        if len(both) < 5:
            continue
        rho = float(both[measure].corr(both["probe"], method="spearman"))
        reach = NORMAL * math.sqrt((1 + rho**2 / 2) / (len(both) - 3))
        centre = math.atanh(min(max(rho, -0.9999), 0.9999))
        rows.append(
            {
                **{name: head[name] for name in ("point_set", "granularity", "rung")},
                "asked": asked,
                "measure": measure,
                "n": len(both),
                "spearman": rho,
                "ci_low": math.tanh(centre - reach),
                "ci_high": math.tanh(centre + reach),
            }
        )
    return pd.DataFrame(rows, columns=columns)


FOLLOWING: Mapping[str, Callable[[Run, pd.DataFrame], pd.DataFrame]] = {
    "cliffs": cliffs_of,
    "ranking": ranking_of,
    "pairs": pairs_of,
    "agreement": agreement_of,
}
"""Tables that follow from a sweep's points."""


def plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a frame as plain data, what is missing as None."""
    return [
        {str(name): None if value != value else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def as_table(name: str, frame: pd.DataFrame) -> pa.Table:
    """A frame of one of `FOLLOWING` as it is stored."""
    return pa.Table.from_pylist(plain(frame), schema=TABLES[name])


KINDS = {
    "position": r"\b(?:between|above|below|under|over|behind|beside|next to|left of|right of|in front of|on top of)\b",
    "colour": r"\b(?:red|orange|yellow|green|blue|purple|pink|brown|black|white|gr[ae]y)\b",
}
"""Kind of prompt -> what its texts hold; the first that fits counts, all others name objects only."""


def by_prompt_kind(run: Run, measure: str = IMAGE_LOSS) -> pd.DataFrame:
    """A loss of every point by kind of prompt, with its interval over prompts.

    Columns: those of `points`, ``kind`` (position, colour or object: the first whose words the prompt holds),
    ``prompts``, ``loss``, ``ci_low``, ``ci_high``.
    """
    points = run.table("points")
    samples = run.table("samples")
    samples = samples[(samples["metric"] == measure) & samples["key"].isin(points["key"])]
    if samples.empty:
        return pd.DataFrame()
    texts = samples["prompt"].str.lower()
    kind = pd.Series("object", index=samples.index)
    for name, words in reversed(KINDS.items()):
        kind = kind.mask(texts.str.contains(words, regex=True), name)
    means = samples.assign(kind=kind).groupby(["key", "kind", "prompt_id"])["value"].mean().reset_index()
    rows = []
    for (key, kind_of_prompt), values in means.groupby(["key", "kind"])["value"]:
        interval = mean_interval(values.to_numpy())
        rows.append(
            {"key": key, "kind": kind_of_prompt, "prompts": len(values), "loss": interval.value,
             "ci_low": interval.ci_low, "ci_high": interval.ci_high}
        )  # fmt: skip
    return points.merge(pd.DataFrame(rows), on="key")


def labels_of(points: pd.DataFrame) -> dict[tuple[Any, ...], str]:
    """Curve (a missing step as -1) -> its words: its group, and of method, rule and steps what differs among them."""
    filled = points.fillna({"steps_from": -1.0, "steps_to": -1.0})
    curves = filled[list(CURVE)].drop_duplicates()
    several = [name for name in ("method", "rule") if curves[name].nunique() > 1]
    found = {}
    for row in curves.to_dict("records"):
        parts = [str(row["groups"]), *(str(row[name]) for name in several)]
        if row["steps_from"] >= 0:
            parts.append(f"steps {row['steps_from']:.0%} to {row['steps_to']:.0%}")
        found[tuple(row[name] for name in CURVE)] = ", ".join(parts)
    return found
