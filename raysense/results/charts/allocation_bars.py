"""What share of each layer an allocation removes."""

from __future__ import annotations

import altair as alt
import pandas as pd

from raysense.results.charts.common import (
    COMPONENTS,
    UNIT,
    Spec,
    component_marks,
    finish,
    network_axis,
    network_scale,
    rounded,
)
from raysense.results.run import Run


def allocation_bars(run: Run, chosen: pd.DataFrame) -> Spec:
    """What share of each layer the allocation removes, along the network, beside one ratio for all.

    Args:
        run: The study.
        chosen: `Run.layer_sparsity` of the allocation.
    """
    total = float(chosen["zeros"].sum() / chosen["weights"].sum())
    rows = [
        {
            "start": row["position"],
            "end": row["position"] + 1,
            "base": 0,
            "sparsity": rounded(row["sparsity"]),
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
            x=alt.X("start:Q", title=None, axis=network_axis(run), scale=network_scale(run)),
            x2="end:Q",
            y=alt.Y("base:Q", title="share of the layer removed", axis=alt.Axis(format="%"), scale=UNIT),
            y2="sparsity:Q",
            color=alt.Color(
                "component:N",
                title=None,
                scale=alt.Scale(domain=components, range=list(COMPONENTS)),
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
        alt.InlineData([{"y": rounded(total), "text": f"{total:.0%} if all layers shared one ratio"}])
    )
    rule = line.mark_rule(strokeDash=[6, 4], strokeWidth=1.5).encode(y="y:Q")
    text = line.mark_text(align="right", dx=-4, dy=-7, fontWeight="bold").encode(
        y="y:Q", x=alt.value("width"), text="text:N"
    )
    return finish(
        alt.layer(bars, *component_marks(run, names=False), rule, text), 240, "Share removed from each layer"
    )
