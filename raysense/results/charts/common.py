"""What charts share: scales along the network and of sparsity, bounds, colours.

Colours of text, axes and grid come from the page, which knows whether it is light or dark.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import pandas as pd

from raysense.results.run import Run

Spec = dict[str, Any]

COLOURS = {
    "dense": "#7f8c99",
    "uniform": "#e8743b",
    "per_component": "#c7a008",
    "linear_uniform": "#945353",
    "erk": "#19a979",
    "global": "#8a5fc7",
    "lamp": "#d2498a",
    "owl": "#13a4b4",
    "owl_block": "#0b6670",
    "solver": "#2f7ed8",
    "joint": "#12507b",
    "random": "#6c8893",
    "switches": "#525df4",
    "tpe": "#7a9a01",
    "evopress": "#bf399e",
}
"""Strategy -> its colour in every chart of every study."""

OTHERS = ("#6b7a2a", "#a15c1f", "#5a4fa3", "#2a7f62", "#a33b3b", "#3f6fa8", "#86577f", "#4d4d4d")
"""Colours of strategies that are not raysense's own, by name too."""

COMPONENTS = ("#2f7ed8", "#e8743b", "#8a5fc7", "#19a979", "#c7a008", "#d2498a", "#6c8893", "#945353")
FRONT, PICKED = COMPONENTS[0], COMPONENTS[1]
INSIDE, OUTSIDE = "#19a979", "#d9534f"


def colour_of(strategy: str) -> str:
    """A strategy's colour; it depends on nothing but the name."""
    return COLOURS.get(strategy) or OTHERS[zlib.crc32(strategy.encode()) % len(OTHERS)]


def strategy_colours(strategies: Iterable[str]) -> alt.Scale:
    """The scale of a chart that shows these."""
    shown = list(dict.fromkeys(strategies))
    return alt.Scale(domain=shown, range=[colour_of(strategy) for strategy in shown])


UNIT = alt.Scale(domain=[0, 1], nice=False)
TOOLTIP = [
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


def sparsity_axis(frame: pd.DataFrame) -> alt.X:
    """Sparsity from 0 to beyond the sparsest row; stated, as layers without data have no extent of their own."""
    top = min(1.0, 1.06 * float(frame["sparsity_components"].max()) or 1.0)
    axis = alt.Axis(format="%", tickCount=8)
    scale = alt.Scale(domain=[0, top], nice=False)
    return alt.X("sparsity:Q", title="share of parameters removed", axis=axis, scale=scale)


def bound_marks(limit: float, reach: Sequence[float], is_upper: bool) -> list[alt.Chart]:
    """The bound, and the side that breaks it."""
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


def spans(groups: pd.Series[str]) -> dict[str, list[tuple[int, int]]]:
    """Group -> runs of neighbouring positions of its layers."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for group, members in itertools.groupby(enumerate(groups), key=lambda pair: pair[1]):
        positions = [position for position, _ in members]
        spans.setdefault(str(group), []).append((positions[0], positions[-1] + 1))
    return spans


def network_scale(run: Run) -> alt.Scale:
    """Layers from 0 to how many there are."""
    return alt.Scale(domain=[0, len(run.table("layers"))], nice=False)


def network_axis(run: Run) -> alt.Axis:
    """The axis along the network, with the names of blocks where they begin, as far as there is room."""
    order = "from the network's input to its output" if run.is_in_call_order else "as the pipeline lists them"
    starts = block_starts(run)
    names = {start: block for block, start in starts}
    label = " : ".join(f"datum.value == {start} ? {block!r}" for start, block in names.items())
    return alt.Axis(
        values=list(names),
        labelExpr=f"{label} : ''",
        labelAngle=-40,
        labelAlign="right",
        labelFontSize=10,
        labelLimit=150,
        labelOverlap="greedy",
        ticks=True,
        grid=False,
        title=f"layers by block, {order} →",
    )


def block_starts(run: Run) -> list[tuple[str, int]]:
    """Blocks and the position of their first layer, in order; a long network's blocks without those that are short."""
    layers = run.layers()
    runs = [
        (str(block), [position for position, _ in members])
        for block, members in itertools.groupby(
            zip(layers["position"], layers["block"], strict=True), key=lambda pair: pair[1]
        )
    ]
    least = len(layers) / 60  # what gets a name is at least so wide
    return [
        (block.partition(":")[2] or block, int(positions[0]))
        for block, positions in runs
        if len(positions) >= least
    ]


def component_marks(run: Run, *, names: bool = True) -> list[alt.Chart]:
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


def finish(chart: alt.LayerChart | alt.FacetChart, height: int, description: str) -> Spec:
    """A chart as plain data, as wide as its place on the page."""
    finished = chart.properties(width="container", height=height, description=description)
    spec: Spec = finished.to_dict()
    spec.pop("config", None)
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    return spec


def rounded(value: float) -> float:
    """Six significant digits: what a chart can show, at half the bytes."""
    return float(f"{value:.6g}")
