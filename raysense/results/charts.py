"""Frames to charts: each function gives one Vega-Lite chart as plain data, or None where there is nothing to draw.

Colours of text, axes and grid come from the page, which knows whether it is light or dark.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from raysense.records import Bound
from raysense.results.pareto import front
from raysense.results.run import TOLERABLE, Run

Spec = dict[str, Any]

DAMAGE = (
    (0.0005, "free", "#4393c3"),
    (0.005, "slight", "#a6cfe3"),
    (TOLERABLE, "noticeable", "#fddc9b"),
    (0.5, "over the cliff", "#ef6a4c"),
    (math.inf, "destroyed", "#8c1127"),
)
"""Damage in words: upper end of the probe error, name, colour."""

STRATEGIES = ("#2f7ed8", "#e8743b", "#8a5fc7", "#19a979", "#c7a008", "#d2498a", "#6c8893", "#945353")
INSIDE, OUTSIDE = "#19a979", "#d9534f"


def damage_word(value: float) -> str:
    """The name of a damage, see `DAMAGE`."""
    return next(name for limit, name, _ in DAMAGE if value < limit or math.isinf(limit))


def sensitivity_map(run: Run, chosen: pd.DataFrame | None) -> Spec | None:
    """Groups in network order × share removed, coloured by damage; the winner's choice as a line over it.

    Args:
        run: The study.
        chosen: `Run.layer_sparsity` of the winner, or None.
    """
    curves = run.sensitivity()
    curves = curves[curves["metric"] == run.damage_metric()]
    if curves.empty:
        return None
    spans = _spans(run.layers()["group"])
    cells = []
    for group, curve in curves.groupby("group", sort=False):
        before = 0.0
        for row in curve.to_dict("records"):
            for start, end in spans[str(group)]:
                cells.append(
                    {
                        "start": start,
                        "end": end,
                        "from": _round(before),
                        "to": _round(row["sparsity"]),
                        "group": group,
                        "damage": _round(row["value"]),
                        "ci_low": _round(row["ci_low"]),
                        "ci_high": _round(row["ci_high"]),
                        "word": damage_word(row["value"]),
                    }
                )
            before = row["sparsity"]
    x = alt.X("start:Q", title=None, axis=_network_axis(run), scale=_network_scale(run))
    heat = (
        alt.Chart(alt.InlineData(cells))
        .mark_rect()
        .encode(
            x=x,
            x2="end:Q",
            y=alt.Y("from:Q", title="share of the layer removed", axis=alt.Axis(format="%"), scale=_UNIT),
            y2="to:Q",
            color=alt.Color(
                "word:N",
                title="damage, pruned alone",
                scale=alt.Scale(domain=[n for _, n, _ in DAMAGE], range=[c for _, _, c in DAMAGE]),
                legend=alt.Legend(orient="top", columns=3, symbolType="square", offset=34),
            ),
            tooltip=[
                alt.Tooltip("group:N", title="pruned alone"),
                alt.Tooltip("to:Q", title="share removed", format=".1%"),
                alt.Tooltip("damage:Q", title="damage", format=".3~g"),
                alt.Tooltip("ci_low:Q", title="95 % interval from", format=".3~g"),
                alt.Tooltip("ci_high:Q", title="to", format=".3~g"),
                alt.Tooltip("word:N", title="in words"),
            ],
        )
    )
    layers = [heat, *_component_marks(run)]
    if chosen is not None:
        layers += _steps(chosen)
    return _finish(alt.layer(*layers), 300, "Sensitivity of every part of the network at every level")


def allocation_bars(run: Run, chosen: pd.DataFrame, total: float) -> Spec:
    """What share of each layer the allocation removes, along the network, beside one ratio for all.

    Args:
        run: The study.
        chosen: `Run.layer_sparsity` of the allocation.
        total: Zeros over weights of all these layers.
    """
    rows = [
        {
            "start": row["position"],
            "end": row["position"] + 1,
            "base": 0,
            "sparsity": _round(row["sparsity"]),
            "layer": row["layer"],
            "component": row["component"],
            "kind": row["kind"],
            "weights": int(row["weights"]),
            "zeros": int(row["zeros"]),
        }
        for row in chosen.to_dict("records")
    ]
    components = list(dict.fromkeys(chosen["component"]))
    bars = (
        alt.Chart(alt.InlineData(rows))
        .mark_rect(stroke="transparent")
        .encode(
            x=alt.X("start:Q", title=None, axis=_network_axis(run), scale=_network_scale(run)),
            x2="end:Q",
            y=alt.Y("base:Q", title="share of the layer removed", axis=alt.Axis(format="%"), scale=_UNIT),
            y2="sparsity:Q",
            color=alt.Color(
                "component:N",
                title=None,
                scale=alt.Scale(domain=components, range=list(STRATEGIES)),
                legend=alt.Legend(orient="top"),
            ),
            opacity=alt.value(0.85),
            tooltip=[
                alt.Tooltip("layer:N"),
                alt.Tooltip("kind:N"),
                alt.Tooltip("sparsity:Q", title="share removed", format=".1%"),
                alt.Tooltip("zeros:Q", title="weights removed", format=","),
                alt.Tooltip("weights:Q", title="of", format=","),
            ],
        )
    )
    line = alt.Chart(
        alt.InlineData([{"y": _round(total), "text": f"{total:.0%} if all layers shared one ratio"}])
    )
    rule = line.mark_rule(strokeDash=[6, 4], strokeWidth=1.5).encode(y="y:Q")
    text = line.mark_text(align="right", dx=-4, dy=-7, fontWeight="bold").encode(
        y="y:Q", x=alt.value("width"), text="text:N"
    )
    return _finish(
        alt.layer(bars, *_component_marks(run, names=False), rule, text), 240, "Share removed from each layer"
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
        scale=alt.Scale(domain=strategies, range=list(STRATEGIES)),
        legend=alt.Legend(orient="top", columns=4),
    )
    encoded = {"x": _sparsity_axis(judged), "y": y, "color": color}
    search = _points(judged[judged["rung"] == "score"], measure, reach)
    held = _points(judged[judged["rung"] == "validation"], measure, reach)
    layers = [
        *_bound_marks(bound.limit, reach, bound.is_upper),
        *_searched_marks(search, encoded, scale),
        *_tested_marks(held, encoded, scale, winner),
    ]
    return _finish(alt.layer(*layers), 300, f"{title} against sparsity")


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
        .encode(x=x, y=y, tooltip=_TOOLTIP)
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
    dots = base.mark_circle(size=34, opacity=0.9).encode(x=x, y=y, color=color, tooltip=_TOOLTIP)
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
        x=x, y=y, color=color, tooltip=_TOOLTIP
    )
    star = (
        alt.Chart(alt.InlineData([row for row in held if row["allocation"] == winner]))
        .mark_point(size=420, shape="circle", strokeWidth=2.5, fill="transparent", color=INSIDE)
        .encode(x=x, y=y, tooltip=_TOOLTIP)
    )
    return [tested_bars, tested_dots, star]


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
    x = _sparsity_axis(frame)
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
        .mark_line(interpolate="step-before", strokeWidth=2, color=STRATEGIES[0])
        .encode(x=x, y=y)
    )
    star = (
        alt.Chart(
            alt.InlineData([r for r in rows if r["allocation"] == winner and r["rung"] == "validation"])
        )
        .mark_point(size=420, shape="circle", strokeWidth=2.5, fill="transparent", color=INSIDE)
        .encode(x=x, y=y, tooltip=_USE_TOOLTIP)
    )
    return _finish(alt.layer(*_bound_marks(1.0, reach, True), front, dots, star), 300, "Pareto front")


def _uses(frame: pd.DataFrame, reach: Sequence[float]) -> list[dict[str, Any]]:
    """Allocations with the share of the quality budget that they use, and that share as far as the axis goes."""
    return [
        {
            "sparsity": _round(row["sparsity_components"]),
            "value": _round(min(max(row["value"], reach[0]), reach[1])),
            "used": _round(row["value"]),
            "strategy": row["strategy"],
            "rung": row["rung"],
            "word": row["word"],
            "allocation": row["allocation"],
        }
        for row in frame.to_dict("records")
    ]


def curves(run: Run) -> Spec | None:
    """Damage against the share removed, one line a group; one group stands out with its intervals."""
    frame = run.sensitivity()
    frame = frame[(frame["metric"] == run.damage_metric())]
    if frame.empty:
        return None
    floor = 1e-6
    rows = [
        {
            "group": row["group"],
            "sparsity": _round(row["sparsity"]),
            "value": _round(max(row["value"], floor)),
            "ci_low": _round(max(row["ci_low"], floor)),
            "ci_high": _round(max(row["ci_high"], floor)),
        }
        for row in frame.to_dict("records")
    ]
    order = list(dict.fromkeys(frame["group"]))
    worst = run.cliffs()["group"].iloc[0]
    pick = alt.selection_point(
        name="pick",
        fields=["group"],
        bind=alt.binding_select(options=order, name="show "),
        value=[{"group": worst}],
    )
    x = alt.X("sparsity:Q", title="share of the group removed", axis=alt.Axis(format="%"), scale=_UNIT)
    high = max(1.0, float(frame["ci_high"].max()))
    low = max(floor, min(float(frame["value"].clip(lower=floor).min()), 1e-4))
    scale = alt.Scale(type="log", domain=[low, high], clamp=True, nice=False)
    y = alt.Y(
        "value:Q",
        title="damage (probe error)",
        scale=scale,
        axis=alt.Axis(format="~g", tickCount=5),
    )
    base = alt.Chart(alt.InlineData(rows))
    tooltip = _DAMAGE_TOOLTIP
    # `detail` rather than colour: with a hundred groups only the chosen one needs to stand out.
    faint = base.mark_line(opacity=0.28, color="#7f8c99", strokeWidth=1).encode(x=x, y=y, detail="group:N")
    band = (
        base.transform_filter(pick)
        .mark_area(opacity=0.25, color=STRATEGIES[1])
        .encode(x=x, y=alt.Y("ci_low:Q", scale=scale), y2="ci_high:Q")
    )
    shown = (
        base.transform_filter(pick)
        .mark_line(point=True, color=STRATEGIES[1], strokeWidth=2.5)
        .encode(x=x, y=y, tooltip=tooltip)
    )
    dots = base.mark_circle(size=30, opacity=0.001).encode(x=x, y=y, tooltip=tooltip)
    layers = [faint, *_cliff_marks(), band, dots.add_params(pick), shown]
    return _finish(alt.layer(*layers), 320, "Damage curves with intervals")


def _cliff_marks() -> list[alt.Chart]:
    """The line at `TOLERABLE`, with what it means."""
    mark = alt.Chart(
        alt.InlineData([{"y": TOLERABLE, "text": "the cliff: above this line a part is broken"}])
    )
    rule = mark.mark_rule(color=OUTSIDE, strokeDash=[6, 4], strokeWidth=1.5).encode(y="y:Q")
    text = mark.mark_text(align="left", dx=4, dy=-7, color=OUTSIDE, fontWeight="bold").encode(
        y="y:Q", x=alt.value(0), text="text:N"
    )
    return [rule, text]


# --- parts --------------------------------------------------------------------------------------------

_UNIT = alt.Scale(domain=[0, 1], nice=False)
_USE_TOOLTIP = [
    alt.Tooltip("strategy:N", title="found by"),
    alt.Tooltip("rung:N", title="judged on"),
    alt.Tooltip("sparsity:Q", title="removed", format=".1%"),
    alt.Tooltip("used:Q", title="budget used", format=".0%"),
    alt.Tooltip("word:N", title="whole interval"),
    alt.Tooltip("allocation:N"),
]
_DAMAGE_TOOLTIP = [
    alt.Tooltip("group:N"),
    alt.Tooltip("sparsity:Q", title="share removed", format=".1%"),
    alt.Tooltip("value:Q", title="damage", format=".3~g"),
    alt.Tooltip("ci_low:Q", title="95 % interval from", format=".3~g"),
    alt.Tooltip("ci_high:Q", title="to", format=".3~g"),
]
_TOOLTIP = [
    alt.Tooltip("strategy:N", title="found by"),
    alt.Tooltip("rung:N", title="judged on"),
    alt.Tooltip("sparsity:Q", title="removed", format=".1%"),
    alt.Tooltip("exact:Q", title="value", format=".4~g"),
    alt.Tooltip("exact_ci_low:Q", title="95 % interval from", format=".4~g"),
    alt.Tooltip("exact_ci_high:Q", title="to", format=".4~g"),
    alt.Tooltip("n:Q", title="images"),
    alt.Tooltip("word:N", title="whole interval of every bound"),
    alt.Tooltip("allocation:N"),
]


def _sparsity_axis(frame: pd.DataFrame) -> alt.X:
    """Sparsity from 0 to beyond the sparsest row; stated, as layers without data have no extent of their own."""
    top = min(1.0, 1.06 * float(frame["sparsity_components"].max()) or 1.0)
    axis = alt.Axis(format="%", tickCount=8)
    scale = alt.Scale(domain=[0, top], nice=False)
    return alt.X("sparsity:Q", title="share of parameters removed", axis=axis, scale=scale)


def _points(frame: pd.DataFrame, measure: str, reach: Sequence[float]) -> list[dict[str, Any]]:
    def inside(value: float) -> float | None:
        return None if not math.isfinite(value) else _round(min(max(value, reach[0]), reach[1]))

    return [
        {
            "sparsity": _round(row["sparsity_components"]),
            "value": inside(row[measure]),
            "ci_low": inside(row[f"{measure}_ci_low"]),
            "ci_high": inside(row[f"{measure}_ci_high"]),
            "exact": _round(row[measure]),
            "exact_ci_low": _round(row[f"{measure}_ci_low"]),
            "exact_ci_high": _round(row[f"{measure}_ci_high"]),
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


def _bound_marks(limit: float, reach: Sequence[float], is_upper: bool) -> list[alt.Chart]:
    outside = [limit, reach[1]] if is_upper else [reach[0], limit]
    data = alt.Chart(
        alt.InlineData([{"y": limit, "from": outside[0], "to": outside[1], "text": "the bound"}])
    )
    return [
        data.mark_rect(color=OUTSIDE, opacity=0.09).encode(y="from:Q", y2="to:Q"),
        data.mark_rule(color=OUTSIDE, strokeDash=[6, 4], strokeWidth=1.5).encode(y="y:Q"),
        data.mark_text(align="left", dx=4, dy=-7 if is_upper else 9, color=OUTSIDE, fontWeight="bold").encode(
            y="y:Q", x=alt.value(0), text="text:N"
        ),
    ]


def _front(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What no other row beats in both sparsity and budget used, least sparse first."""
    return [
        {"sparsity": rows[i]["sparsity"], "value": rows[i]["value"]}
        for i in front([(row["sparsity"], row["used"]) for row in rows])
    ]


def _spans(groups: pd.Series[str]) -> dict[str, list[tuple[int, int]]]:
    """Group -> runs of neighbouring positions of its layers."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for group, members in itertools.groupby(enumerate(groups), key=lambda pair: pair[1]):
        positions = [position for position, _ in members]
        spans.setdefault(str(group), []).append((positions[0], positions[-1] + 1))
    return spans


def _network_scale(run: Run) -> alt.Scale:
    return alt.Scale(domain=[0, len(run.table("layers"))], nice=False)


def _network_axis(run: Run) -> alt.Axis:
    order = "from the network's input to its output" if run.is_in_call_order else "as the pipeline lists them"
    return alt.Axis(labels=False, ticks=False, grid=False, title=f"layers, {order} →")


def _component_marks(run: Run, *, names: bool = True) -> list[alt.Chart]:
    """A line where a component begins and, above it, its name; neighbours stand on different heights."""
    layers = run.layers()
    first = layers.groupby("component", sort=False)["position"].min()
    rows = [{"x": int(position), "text": str(component)} for component, position in first.items()]
    marks = [alt.Chart(alt.InlineData(rows)).mark_rule(strokeWidth=1, opacity=0.6).encode(x="x:Q")]
    for number, row in enumerate(rows if names else []):
        marks.append(
            alt.Chart(alt.InlineData([row]))
            .mark_text(align="left", baseline="bottom", dx=3, dy=-3 - 13 * (number % 2), fontSize=11)
            .encode(x="x:Q", y=alt.value(0), text="text:N")
        )
    return marks


def _steps(chosen: pd.DataFrame) -> list[alt.Chart]:
    """The winner's share of each layer as a step line over the map, light around dark to show on every colour."""
    rows = [
        {"x": position + edge, "y": _round(row["sparsity"])}
        for position, row in enumerate(chosen.to_dict("records"))
        for edge in (0, 1)
    ]
    data = alt.Chart(alt.InlineData(rows))
    return [
        data.mark_line(strokeWidth=width, color=color, strokeJoin="round").encode(
            x="x:Q", y="y:Q", order="x:Q"
        )
        for width, color in ((4.5, "#ffffff"), (2, "#101820"))
    ]


def _finish(chart: alt.LayerChart | alt.FacetChart, height: int, description: str) -> Spec:
    finished = chart.properties(width="container", height=height, description=description)
    spec: Spec = finished.to_dict()
    spec.pop("config", None)
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    return spec


def _round(value: float) -> float:
    """Six significant digits: what a chart can show, at half the bytes."""
    return float(f"{value:.6g}")
