"""One bounded measure against sparsity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from raysense.records import Bound
from raysense.results.charts.common import (
    INSIDE,
    TOOLTIP,
    Spec,
    bound_marks,
    finish,
    rounded,
    sparsity_axis,
    strategy_colours,
)


def quality(candidates: pd.DataFrame, bound: Bound, title: str, winner: str | None) -> Spec | None:
    """One bounded measure against sparsity: a line a strategy, intervals, the bound, held-out results.

    Args:
        candidates: `Run.candidates`.
        bound: Which bound.
        title: The measure in words.
        winner: Key of the winning allocation.
    """
    measure = bound.measure
    if measure not in candidates:
        return None
    judged = candidates[candidates["rung"].isin(["score", "validation"]) & candidates[measure].notna()]
    if not (judged["strategy"] != "dense").any():
        return None
    reach = _reach(judged[f"{measure}_ci_low"], judged[f"{measure}_ci_high"], bound)
    scale = alt.Scale(domain=reach, clamp=True, nice=False, zero=False)
    y = alt.Y("value:Q", title=title, scale=scale)
    strategies = [s for s in dict.fromkeys(judged["strategy"]) if s != "dense"]
    color = alt.Color(
        "strategy:N",
        title=None,
        scale=strategy_colours(strategies),
        legend=alt.Legend(orient="top", columns=4),
    )
    encoded = {"x": sparsity_axis(judged), "y": y, "color": color}
    search = _points(judged[judged["rung"] == "score"], measure, reach)
    held = _points(judged[judged["rung"] == "validation"], measure, reach)
    layers = [
        *bound_marks(bound.limit, reach, bound.is_upper),
        *_searched_marks(search, encoded, scale),
        *_tested_marks(held, encoded, scale, winner),
    ]
    return finish(alt.layer(*layers), 300, f"{title} against sparsity")


def _searched_marks(
    search: Sequence[Mapping[str, Any]], encoded: Mapping[str, Any], scale: alt.Scale
) -> list[alt.Chart]:
    """What the search's own prompts gave: a line and dots a strategy, with intervals; the dense pipeline."""
    x, y, color = encoded["x"], encoded["y"], encoded["color"]
    # A line joins what was measured of its strategy and no more; the dense pipeline is a dot of its own.
    dense = [row for row in search if row["strategy"] == "dense"]
    search = [row for row in search if row["strategy"] != "dense"]
    origin = (
        alt.Chart(alt.InlineData(dense))
        .mark_point(size=60, shape="square", filled=True, color="#7f8c99")
        .encode(x=x, y=y, tooltip=TOOLTIP)
    )
    base = alt.Chart(alt.InlineData(search))
    line = (
        alt.Chart(alt.InlineData(search))
        .transform_aggregate(value="mean(value)", groupby=["strategy", "sparsity"])
        .mark_line(opacity=0.45, clip=True)
        .encode(x=x, y=y, color=color)
    )
    bars = base.mark_rule(opacity=0.35, clip=True).encode(
        x=x, y=alt.Y("ci_low:Q", scale=scale), y2="ci_high:Q", color=color
    )
    dots = base.mark_circle(size=34, opacity=0.9).encode(x=x, y=y, color=color, tooltip=TOOLTIP)
    return [line, origin, bars, dots]


def _tested_marks(
    held: Sequence[Mapping[str, Any]], encoded: Mapping[str, Any], scale: alt.Scale, winner: str | None
) -> list[alt.Chart]:
    """What held-out prompts gave: diamonds with intervals, a ring around the winner."""
    x, y, color = encoded["x"], encoded["y"], encoded["color"]
    tested = alt.Chart(alt.InlineData(held))
    tested_bars = tested.mark_rule(strokeWidth=2.5, clip=True).encode(
        x=x, y=alt.Y("ci_low:Q", scale=scale), y2="ci_high:Q", color=color
    )
    tested_dots = tested.mark_point(size=90, shape="diamond", filled=True, strokeWidth=1).encode(
        x=x, y=y, color=color, tooltip=TOOLTIP
    )
    star = (
        alt.Chart(alt.InlineData([row for row in held if row["allocation"] == winner]))
        .mark_point(size=420, shape="circle", strokeWidth=2.5, fill="transparent", color=INSIDE)
        .encode(x=x, y=y, tooltip=TOOLTIP)
    )
    return [tested_bars, tested_dots, star]


def _points(frame: pd.DataFrame, measure: str, reach: Sequence[float]) -> list[dict[str, Any]]:
    def inside(value: float) -> float | None:
        return None if not math.isfinite(value) else rounded(min(max(value, reach[0]), reach[1]))

    return [
        {
            "sparsity": rounded(row["sparsity_components"]),
            "value": inside(row[measure]),
            "ci_low": inside(row[f"{measure}_ci_low"]),
            "ci_high": inside(row[f"{measure}_ci_high"]),
            "exact": rounded(row[measure]),
            "exact_ci_low": rounded(row[f"{measure}_ci_low"]),
            "exact_ci_high": rounded(row[f"{measure}_ci_high"]),
            "n": int(row[f"{measure}_n"]),
            "strategy": row["strategy"],
            "rung": "held-out prompts" if row["rung"] == "validation" else "the search's prompts",
            "word": "inside the budget" if row["feasible"] else "outside",
            "allocation": row["allocation"],
        }
        for row in frame.to_dict("records")
    ]


def _reach(low: pd.Series[float], high: pd.Series[float], bound: Bound) -> list[float]:
    """The y range: the bound and what lies around it; what is far off is drawn at the edge."""
    limit = bound.limit
    if bound.is_upper:
        bottom, top = float(low.min()), float(high.max())
        size = abs(limit - max(bottom, 0.0)) or abs(limit) or 1.0
        return [max(bottom, limit - 3 * size), min(max(top, limit + 0.25 * size), limit + 2 * size)]
    bottom, top = float(low.min()), float(high.max())
    size = abs(top - limit) or 1.0
    return [max(min(bottom, limit - 0.25 * size), limit - 2 * size), min(top, limit + 3 * size)]
