"""The curves of `benchmarks.search` as a picture: what each strategy had found when so much was spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import vl_convert

from raysense.names import JOINT
from raysense.results.charts.common import strategy_colours

TITLE = "Lines: found by the search's own images. Points: confirmed on held-out prompts, where the strategy ended."
Parts = Sequence[tuple[str, float, pd.DataFrame]]
SHARES = np.linspace(0, 1, 101)


def draw(
    parts: Parts, curves: pd.DataFrame, credited: Callable[[pd.DataFrame], pd.DataFrame], file: Path
) -> None:
    """Lines: means over the studies of what the search's own images had found. Points: what held-out prompts confirmed.

    Args:
        parts: Pipeline, bound and rows, one a study and strategy, see `benchmarks.search`.
        curves: Whenever a strategy's search found more.
        credited: Rows of one pipeline and bound -> validated sparsity by seed and strategy.
        file: The SVG.
    """
    lines, points = _lines(parts, curves), _points(parts, credited)
    colours = alt.Color(
        "strategy:N",
        scale=strategy_colours(lines["strategy"]),
        legend=alt.Legend(title=None, symbolOpacity=1),
    )
    y = alt.Y("sparsity:Q", title="removed of the components' parameters", axis=alt.Axis(format="%"))
    x = alt.X("share:Q", title="cost, as a share of the joint search's", axis=alt.Axis(format="%"))
    ours = alt.condition("datum.ours", alt.value(3.0), alt.value(1.2))
    steps = (
        alt.Chart()
        .transform_filter("isValid(datum.sparsity)")
        .mark_line(interpolate="step-after")
        .encode(x=x, y=y, color=colours, strokeWidth=ours)
    )
    dots = (
        alt.Chart()
        .transform_filter("isValid(datum.validated)")
        .mark_point(filled=True, size=55)
        .encode(x=x, y="validated:Q", color=colours)
    )
    both = pd.concat([lines, points])
    order = list(dict.fromkeys(both["panel"]))
    chart = (
        alt.layer(steps, dots, data=both)
        .properties(width=300, height=220)
        .facet(facet=alt.Facet("panel:N", title=None, sort=order), columns=2)
        .properties(title=alt.TitleParams(TITLE, fontSize=11, fontWeight="normal"))
        .configure(background="white")
    )
    file.write_text(vl_convert.vegalite_to_svg(chart.to_json()), encoding="utf-8")


def _panel(bed: str, bound: float, studies: int) -> str:
    return f"{bed}, CLIP-score drop ≤ {bound:g} ({studies} {'study' if studies == 1 else 'studies'})"


def _lines(parts: Parts, curves: pd.DataFrame) -> pd.DataFrame:
    found = []
    for bed, bound, part in parts:
        whole = part[part["strategy"] == JOINT].set_index("seed")["nfe"]
        panel = _panel(bed, bound, part["seed"].nunique())
        for strategy in dict.fromkeys(part["strategy"]):
            of = curves[
                (curves["bed"] == bed) & (curves["max_drop"] == bound) & (curves["strategy"] == strategy)
            ]
            best = np.zeros((len(whole), len(SHARES)))
            for place, (seed, nfe) in enumerate(whole.items()):
                own = of[of["seed"] == seed]
                for spent, sparsity in zip(own["nfe"], own["sparsity_components"], strict=True):
                    best[place][spent <= SHARES * nfe] = sparsity
            name, mean = str(strategy).rpartition(".")[2], best.mean(axis=0)
            line = pd.DataFrame({"panel": panel, "strategy": name, "share": SHARES, "sparsity": mean})
            line["ours"] = name in ("solver", JOINT)
            # Where a line steps, and its ends: a chart has a limit of rows, and six panels are past it.
            steps = np.append(np.diff(mean, prepend=-1.0)[:-1] > 0, True)
            found.append(line.loc[steps.tolist()])
    return pd.concat(found)


def _points(parts: Parts, credited: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    found = []
    for bed, bound, part in parts:
        whole, validated = part[part["strategy"] == JOINT]["nfe"].mean(), credited(part).mean()
        panel = _panel(bed, bound, part["seed"].nunique())
        for strategy, own in part.groupby("strategy", sort=False):
            spent = min(float(own["nfe"].mean() / whole), 1.0)
            name = str(strategy).rpartition(".")[2]
            found.append({"panel": panel, "strategy": name, "share": spent, "validated": validated[strategy]})
    return pd.DataFrame(found)
