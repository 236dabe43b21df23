"""How much damage each part of the network takes, at every level, pruned alone."""

from __future__ import annotations

import math

import altair as alt
import pandas as pd

from raysense.results.charts.common import (
    UNIT,
    Spec,
    component_marks,
    finish,
    network_axis,
    network_scale,
    rounded,
    spans,
)
from raysense.results.run import TOLERABLE, Run

DAMAGE = (
    (0.0005, "free", "#4393c3"),
    (0.005, "slight", "#a6cfe3"),
    (TOLERABLE, "noticeable", "#fddc9b"),
    (0.5, "over the cliff", "#ef6a4c"),
    (math.inf, "destroyed", "#8c1127"),
)
"""Damage in words: upper end of the probe error, name, colour."""


def _classes() -> list[str]:
    """The classes with their thresholds, as the legend shows them."""
    ends = [limit for limit, _, _ in DAMAGE]
    names = [name for _, name, _ in DAMAGE]
    first = f"{names[0]}: below {ends[0]:g}"
    between = [
        f"{name}: {low:g} to {high:g}"
        for name, low, high in zip(names[1:], ends[:-2], ends[1:-1], strict=False)
    ]
    return [first, *between, f"{names[-1]}: {ends[-2]:g} and more"]


CLASSES = _classes()


def class_of(value: float) -> str:
    """The class of a damage, with its thresholds; see `DAMAGE`."""
    return next(
        shown
        for shown, (limit, _, _) in zip(CLASSES, DAMAGE, strict=True)
        if value < limit or math.isinf(limit)
    )


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
    places = spans(run.layers()["group"])
    cells = []
    for group, curve in curves.groupby("group", sort=False):
        before = 0.0
        for row in curve.to_dict("records"):
            for start, end in places[str(group)]:
                cells.append(
                    {
                        "start": start,
                        "end": end,
                        "from": rounded(before),
                        "to": rounded(row["sparsity"]),
                        "group": group,
                        "damage": rounded(row["value"]),
                        "ci_low": rounded(row["ci_low"]),
                        "ci_high": rounded(row["ci_high"]),
                        "word": class_of(row["value"]),
                    }
                )
            before = row["sparsity"]
    x = alt.X("start:Q", title=None, axis=network_axis(run), scale=network_scale(run))
    heat = (
        alt.Chart(alt.InlineData(cells))
        .mark_rect()
        .encode(
            x=x,
            x2="end:Q",
            y=alt.Y("from:Q", title="share of the layer removed", axis=alt.Axis(format="%"), scale=UNIT),
            y2="to:Q",
            color=alt.Color(
                "word:N",
                title="damage (probe error), pruned alone",
                scale=alt.Scale(domain=CLASSES, range=[c for _, _, c in DAMAGE]),
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
    layers = [heat, *component_marks(run)]
    if chosen is not None:
        layers += _steps(chosen)
    return finish(alt.layer(*layers), 300, "Sensitivity of every part of the network at every level")


def _steps(chosen: pd.DataFrame) -> list[alt.Chart]:
    """The winner's share of each layer as a step line over the map, light around dark to show on every colour."""
    rows = [
        {"x": position + edge, "y": rounded(row["sparsity"])}
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
