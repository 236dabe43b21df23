"""Damage against the share removed, a line a group."""

from __future__ import annotations

import altair as alt

from raysense.results.charts.common import (
    OUTSIDE,
    PICKED,
    UNIT,
    Spec,
    finish,
    rounded,
)
from raysense.results.run import TOLERABLE, Run

_DAMAGE_TOOLTIP = [
    alt.Tooltip("group:N"),
    alt.Tooltip("sparsity:Q", title="share removed", format=".1%"),
    alt.Tooltip("value:Q", title="damage", format=".3~g"),
    alt.Tooltip("ci_low:Q", title="95 % interval from", format=".3~g"),
    alt.Tooltip("ci_high:Q", title="to", format=".3~g"),
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
            "sparsity": rounded(row["sparsity"]),
            "value": rounded(max(row["value"], floor)),
            "ci_low": rounded(max(row["ci_low"], floor)),
            "ci_high": rounded(max(row["ci_high"], floor)),
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
    x = alt.X("sparsity:Q", title="share of the group removed", axis=alt.Axis(format="%"), scale=UNIT)
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
        .mark_area(opacity=0.25, color=PICKED)
        .encode(x=x, y=alt.Y("ci_low:Q", scale=scale), y2="ci_high:Q")
    )
    shown = (
        base.transform_filter(pick)
        .mark_line(point=True, color=PICKED, strokeWidth=2.5)
        .encode(x=x, y=y, tooltip=tooltip)
    )
    dots = base.mark_circle(size=30, opacity=0.001).encode(x=x, y=y, tooltip=tooltip)
    layers = [faint, *_cliff_marks(), band, dots.add_params(pick), shown]
    return finish(alt.layer(*layers), 320, "Damage curves with intervals")


def _cliff_marks() -> list[alt.Chart]:
    """The line at `TOLERABLE`, with what it means."""
    mark = alt.Chart(
        alt.InlineData([{"y": TOLERABLE, "text": "the cliff: above this line a group is broken"}])
    )
    rule = mark.mark_rule(color=OUTSIDE, strokeDash=[6, 4], strokeWidth=1.5).encode(y="y:Q")
    text = mark.mark_text(align="left", dx=4, dy=-7, color=OUTSIDE, fontWeight="bold").encode(
        y="y:Q", x=alt.value(0), text="text:N"
    )
    return [rule, text]
