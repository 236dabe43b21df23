"""A sweep's measure against the share removed: a line a curve, with its interval as a band."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from raysense.results.charts.common import COMPONENTS, UNIT, Spec, finish, rounded
from raysense.results.sweeps import CURVE, labels_of

MOST = 8
"""Curves that one chart can tell apart."""


def sweep_curves(points: pd.DataFrame, measure: str, label: str, sets: Sequence[str]) -> Spec | None:
    """How a measure answers to sparsity, curve by curve.

    Args:
        points: `points_of`.
        measure: A column of it.
        label: Its words.
        sets: The sets of points that are drawn.
    """
    chosen = points[points["point_set"].isin(sets)]
    if measure not in chosen or chosen[measure].notna().sum() < 2:
        return None
    chosen = chosen.dropna(subset=[measure])
    names = labels_of(chosen)
    rows = [
        {
            "curve": names[tuple(row[name] for name in CURVE)],
            "sparsity": rounded(row["sparsity"]),
            "value": rounded(row[measure]),
            "ci_low": rounded(row[f"{measure}_ci_low"]),
            "ci_high": rounded(row[f"{measure}_ci_high"]),
            "n": int(row[f"{measure}_n"]),
        }
        for row in chosen.fillna({"steps_from": -1.0, "steps_to": -1.0}).to_dict("records")
    ]
    order = list(dict.fromkeys(str(row["curve"]) for row in rows))[:MOST]
    rows = [row for row in rows if row["curve"] in order]
    colour = alt.Color(
        "curve:N",
        title=None,
        scale=alt.Scale(domain=order, range=list(COMPONENTS)[: len(order)]),
        legend=alt.Legend(orient="top", columns=2, labelLimit=260),
    )
    x = alt.X("sparsity:Q", title="share of its weights removed", axis=alt.Axis(format="%"), scale=UNIT)
    scale = alt.Scale(zero=False)
    tooltip = [
        alt.Tooltip("curve:N"),
        alt.Tooltip("sparsity:Q", title="removed", format=".1%"),
        alt.Tooltip("value:Q", title=label, format=".4~g"),
        alt.Tooltip("ci_low:Q", title="95 % interval from", format=".4~g"),
        alt.Tooltip("ci_high:Q", title="to", format=".4~g"),
        alt.Tooltip("n:Q", title="images"),
    ]
    base = alt.Chart(alt.InlineData(rows))
    band = base.mark_area(opacity=0.18).encode(
        x=x, y=alt.Y("ci_low:Q", scale=scale, title=label), y2="ci_high:Q", color=colour
    )
    line = base.mark_line(point=True, strokeWidth=2).encode(
        x=x, y=alt.Y("value:Q", scale=scale, title=label), color=colour, tooltip=tooltip
    )
    return finish(alt.layer(band, line), 300, f"{label} against the share removed")
