"""Every allocation judged by images: sparsity against the quality budget used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from raysense.results.charts.common import (
    FRONT,
    INSIDE,
    OUTSIDE,
    Spec,
    bound_marks,
    finish,
    rounded,
    sparsity_axis,
)
from raysense.results.pareto import front

_USE_TOOLTIP = [
    alt.Tooltip("strategy:N", title="found by"),
    alt.Tooltip("rung:N", title="judged on"),
    alt.Tooltip("sparsity:Q", title="removed", format=".1%"),
    alt.Tooltip("used:Q", title="budget used", format=".0%"),
    alt.Tooltip("word:N", title="whole interval"),
    alt.Tooltip("allocation:N"),
]


def pareto(candidates: pd.DataFrame, used: pd.Series[float], winner: str | None) -> Spec | None:
    """Every allocation judged by images: sparsity against the share of the quality budget that it uses; the front.

    Args:
        candidates: `Run.candidates`.
        used: Share of the budget of each row: 0 is the dense pipeline, 1 the bound that is nearest.
        winner: Key of the winning allocation.
    """
    frame = candidates.assign(value=used)
    frame = frame[frame["value"].notna() & (frame["strategy"] != "dense")]
    if frame.empty:
        return None
    frame = frame.assign(word=["inside the budget" if ok else "outside" for ok in frame["feasible"]])
    lowest = max(-0.5, float(frame["value"].min()))
    reach = [min(lowest, 0.0), 2.0]
    rows = _uses(frame, reach)
    x = sparsity_axis(frame)
    y = alt.Y(
        "value:Q",
        title="quality budget used",
        axis=alt.Axis(format="%"),
        scale=alt.Scale(domain=reach, clamp=True),
    )
    dots = (
        alt.Chart(alt.InlineData(rows))
        .mark_circle(size=45 if len(rows) < 1000 else 12, opacity=0.75 if len(rows) < 1000 else 0.35)
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "word:N",
                title=None,
                scale=alt.Scale(domain=["inside the budget", "outside"], range=[INSIDE, OUTSIDE]),
                legend=alt.Legend(orient="top"),
            ),
            tooltip=_USE_TOOLTIP,
        )
    )
    front = (
        alt.Chart(alt.InlineData(_front([row for row in rows if row["rung"] in ("score", "validation")])))
        .mark_line(interpolate="step-before", strokeWidth=2, color=FRONT)
        .encode(x=x, y=y)
    )
    star = (
        alt.Chart(
            alt.InlineData([r for r in rows if r["allocation"] == winner and r["rung"] == "validation"])
        )
        .mark_point(size=420, shape="circle", strokeWidth=2.5, fill="transparent", color=INSIDE)
        .encode(x=x, y=y, tooltip=_USE_TOOLTIP)
    )
    return finish(alt.layer(*bound_marks(1.0, reach, True), front, dots, star), 300, "Pareto front")


def _uses(frame: pd.DataFrame, reach: Sequence[float]) -> list[dict[str, Any]]:
    """Allocations with the share of the quality budget that they use, and that share as far as the axis goes."""
    return [
        {
            "sparsity": rounded(row["sparsity_components"]),
            "value": rounded(min(max(row["value"], reach[0]), reach[1])),
            "used": rounded(row["value"]),
            "strategy": row["strategy"],
            "rung": row["rung"],
            "word": row["word"],
            "allocation": row["allocation"],
        }
        for row in frame.to_dict("records")
    ]


def _front(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What no other row beats in both sparsity and budget used, least sparse first."""
    return [
        {"sparsity": rows[i]["sparsity"], "value": rows[i]["value"]}
        for i in front([(row["sparsity"], row["used"]) for row in rows])
    ]
