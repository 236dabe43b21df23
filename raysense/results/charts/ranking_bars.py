"""Groups of a sweep by what images say of losing as much: a bar a group, with its interval for all at once."""

from __future__ import annotations

import altair as alt
import pandas as pd

from raysense.results.charts.common import FRONT, OUTSIDE, Spec, finish, rounded

MOST = 40
"""Groups of a chart."""


def ranking_bars(ranking: pd.DataFrame, label: str) -> Spec | None:
    """The groups of one set, most damaging first.

    Args:
        ranking: Rows of the table `ranking` of one set.
        label: The loss in words.
    """
    if ranking.empty:
        return None
    rows = [
        {
            "group": row["groups"],
            "loss": rounded(row["loss"]),
            "low": rounded(row["all_ci_low"]),
            "high": rounded(row["all_ci_high"]),
            "p": rounded(row["p"]),
            "sure": "surely damages" if row["p"] < 0.05 and row["loss"] > 0 else "not sure",
            "ranks": f"{row['rank_low']} to {row['rank_high']}",
        }
        for row in ranking.sort_values("rank").head(MOST).to_dict("records")
    ]
    order = [row["group"] for row in rows]
    base = alt.Chart(alt.InlineData(rows))
    y = alt.Y("group:N", sort=order, title=None, axis=alt.Axis(labelLimit=220))
    colour = alt.Color(
        "sure:N",
        title=None,
        scale=alt.Scale(domain=["surely damages", "not sure"], range=[OUTSIDE, FRONT]),
        legend=alt.Legend(orient="top"),
    )
    tooltip = [
        alt.Tooltip("group:N"),
        alt.Tooltip("loss:Q", title=label, format=".3~g"),
        alt.Tooltip("low:Q", title="for all at once from", format=".3~g"),
        alt.Tooltip("high:Q", title="to", format=".3~g"),
        alt.Tooltip("p:Q", title="p, corrected for all", format=".2~g"),
        alt.Tooltip("ranks:N", title="sure to be rank"),
    ]
    reach = base.mark_rule(strokeWidth=2).encode(
        y=y, x=alt.X("low:Q", title=label), x2="high:Q", color=colour
    )
    dots = base.mark_circle(size=70, opacity=1).encode(
        y=y, x=alt.X("loss:Q", title=label), color=colour, tooltip=tooltip
    )
    zero = alt.Chart(alt.InlineData([{"x": 0.0}])).mark_rule(strokeDash=[4, 4]).encode(x="x:Q")
    return finish(alt.layer(zero, reach, dots), 24 * len(rows) + 30, f"{label}, group by group")
