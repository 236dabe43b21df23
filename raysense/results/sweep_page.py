"""One self-contained HTML page of a sweep: curves, cliffs, rankings, pairs, pictures along the cliff."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pandas as pd
import pyarrow as pa

import raysense
from raysense import plugins
from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.evaluation.inputs import prompts_of
from raysense.feasibility import IMAGE_RUNGS
from raysense.metrics.builtin import SPECS
from raysense.metrics.builtin.probe_error import PROBE_ERROR
from raysense.metrics.spec import base_of
from raysense.results.charts.common import Spec
from raysense.results.charts.ranking_bars import ranking_bars
from raysense.results.charts.sweep_curves import sweep_curves
from raysense.results.page import (
    GENERATOR,
    REFRESH_SECONDS,
    costs_of,
    environment,
    library,
    provenance_of,
    row_of,
    script_json,
)
from raysense.results.pictures import Painter, Strip, held_out, in_words
from raysense.results.run import Run
from raysense.results.sweeps import (
    CURVE,
    FOLLOWING,
    as_table,
    by_prompt_kind,
    curves_of,
    labels_of,
    points_of,
)
from raysense.store.derived import completed
from raysense.study.sweep import loss_on

NAME = "sweep.html"

SHOWN = tuple(name for name, spec in SPECS.items() if spec.kind != "probe")
"""Measures that are drawn, as far as they were measured."""

STEPS_OF_CLIFF = 6
"""Rows of pictures beside the dense one."""

MOST_KINDS = 60
"""Rows of the table of losses by kind of prompt."""


def write_sweep_page(
    uri: str,
    *,
    images: int = 6,
    paint: bool = True,
    code: bool = False,
    tell: Callable[[str], None] | None = None,
) -> str:
    """Write a sweep's page into its folder and return its path.

    Args:
        uri: The folder or ``s3://`` address of a sweep that has ended.
        images: Prompts in the pictures; 0 for none.
        paint: Whether pictures that are not painted yet may be painted now, which loads the pipeline.
        code: Whether they may be if that runs code that the study names.
        tell: Called with a line before each row of pictures that is painted.

    Raises:
        RaysenseError: There is no study, or what is there is damaged.
    """
    run = Run(uri)
    run.disk.write(NAME, build(run, images=images, paint=paint, code=code, tell=tell).encode())
    return run.disk.path(NAME)


def write_running_sweep_page(uri: str, points: pa.Table) -> None:
    """Write the page of a sweep that is still running, without pictures; nothing where no point is measured yet.

    Args:
        uri: Its folder or ``s3://`` address.
        points: The table `points` so far, each with its evaluation in the store.

    Raises:
        RaysenseError: What is there is damaged.
    """
    if not points.num_rows:
        return
    run = Run(uri)
    run.show(points=completed("points", points).to_pandas())
    found = points_of(run)
    run.show(**{name: as_table(name, of(run, found)).to_pandas() for name, of in FOLLOWING.items()})
    run.disk.write(NAME, build(run, images=0, refresh=REFRESH_SECONDS).encode())


def build(
    run: Run,
    *,
    images: int = 6,
    paint: bool = True,
    code: bool = False,
    tell: Callable[[str], None] | None = None,
    refresh: int | None = None,
) -> str:
    """The page as text; see `write_sweep_page`, and `write_running_sweep_page` for one that reloads itself.

    Raises:
        RaysenseError: The run holds no sweep that has ended.
    """
    points = points_of(run)
    if points.empty:
        raise RaysenseError(f"`{run.uri}` holds no sweep that has ended; `raysense sweep` measures one")
    paint = paint and (code or not plugins.code_of(run.study))
    charts = drawn(run, points)
    strips = cliff_strips(run, points, images, paint, tell) if images else []
    page = environment().get_template("sweep.html.j2")
    return page.render(
        name=run.study.name,
        generator=f"{GENERATOR} {raysense.__version__}",
        refresh=refresh,
        measures={f"measure-{name}": _words(name, run) for name in SHOWN if f"measure-{name}" in charts},
        rankings=_rankings(run, charts),
        drawn=charts,
        points=len(points),
        components=", ".join(run.study.prune.components),
        images=int(points.drop_duplicates("key")["images"].sum()),
        cliffs=_cliffs(run, points),
        agreement=run.table("agreement").to_dict("records"),
        pairs=run.table("pairs").to_dict("records"),
        screened=run.study.sweep is not None and run.study.sweep.screen is not None,
        steps=_steps(run, points),
        kinds=_kinds(run),
        pictures=[row_of(strip) for strip in strips],
        costs=costs_of(run),
        provenance=provenance_of(run, run.candidates()),
        definition=run.study.to_yaml(),
        specs=script_json(charts),
        library=library(),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def drawn(run: Run, points: pd.DataFrame) -> dict[str, Spec]:
    """The page's charts, by the id of their place; those with nothing to draw are left out."""
    coarse = points[points["granularity"].isin(["component", "kind"]) & points["rung"].isin(IMAGE_RUNGS)]
    sets = [curve["point_set"] for curve, _ in curves_of(coarse)]
    found: dict[str, Spec | None] = {
        f"measure-{name}": sweep_curves(coarse, name, _words(name, run), sets) for name in SHOWN
    }
    fine = points[
        (points["rung"] == "probe") & points["point_set"].isin([c["point_set"] for c, _ in curves_of(points)])
    ]
    if not fine.empty:
        found["probed"] = sweep_curves(fine, PROBE_ERROR, "probe error", list(fine["point_set"].unique()))
    for number, group in enumerate(_sets_of_ranking(run)):
        found[f"ranking-{number}"] = ranking_bars(group, _words(str(group["measure"].iloc[0]), run))
    return {name: spec for name, spec in found.items() if spec is not None}


def _words(measure: str, run: Run) -> str:
    return in_words(measure, run.study) if base_of(measure) in SPECS else measure


def _sets_of_ranking(run: Run) -> list[pd.DataFrame]:
    ranking = run.table("ranking")
    ranking = ranking[ranking["rung"].isin(IMAGE_RUNGS) & ranking["granularity"].isin(["block", "layer"])]
    columns = ["point_set", "granularity", "rule", "method", "rung", "asked"]
    return [group for _, group in ranking.groupby(columns, sort=False)]


def _rankings(run: Run, charts: dict[str, Spec]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"ranking-{number}",
            "granularity": group["granularity"].iloc[0],
            "asked": group["asked"].iloc[0],
            "count": len(group),
            "sure": int(((group["p"] < 0.05) & (group["loss"] > 0)).sum()),
        }
        for number, group in enumerate(_sets_of_ranking(run))
        if f"ranking-{number}" in charts
    ]


def _cliffs(run: Run, points: pd.DataFrame) -> list[dict[str, Any]]:
    """Curves with images first: knee and collapse of each."""
    table = run.table("cliffs").fillna({"steps_from": -1.0, "steps_to": -1.0})
    names = labels_of(points)
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in table.to_dict("records"):
        curve = tuple(row[name] for name in CURVE)
        place = None if row["sparsity"] != row["sparsity"] or row["sparsity"] is None else row
        kept = rows.setdefault(
            curve,
            {"label": names.get(curve, row["groups"]), "rung": row["rung"], "measure": _words(row["measure"], run),
             "points": row["points"], "knee": None, "collapse": None},
        )  # fmt: skip
        kept[str(row["place"])] = place
    return sorted(rows.values(), key=lambda row: row["rung"] not in IMAGE_RUNGS)


def _steps(run: Run, points: pd.DataFrame) -> list[dict[str, Any]]:
    """What pruning in a part of the trajectory does, beside the same allocation in all of it."""
    own = points[points["steps_from"].notna()]
    rows = []
    for row in own.to_dict("records"):
        measure = loss_on(run.study.sweep, row["rung"])
        same = points[
            (points["allocation"] == row["allocation"])
            & points["steps_from"].isna()
            & (points["rung"] == row["rung"])
            & (points["method"] == row["method"])
        ]
        rows.append(
            {
                "groups": row["groups"], "sparsity": row["sparsity"], "from": row["steps_from"], "to": row["steps_to"],
                "measure": _words(measure, run), "loss": row[measure], "ci_low": row[f"{measure}_ci_low"],
                "ci_high": row[f"{measure}_ci_high"],
                "whole": float(same[measure].iloc[0]) if len(same) else None,
            }
        )  # fmt: skip
    return rows


def _kinds(run: Run) -> list[dict[str, Any]]:
    """The loss by kind of prompt at listed points of components and kinds of layers, `MOST_KINDS` rows at most."""
    table = by_prompt_kind(run)
    if table.empty:
        return []
    own = table[table["granularity"].isin(["component", "kind"]) & table["steps_from"].isna()]
    own = own.drop_duplicates(["key", "kind", "groups"])
    columns = ["groups", "sparsity", "kind", "prompts", "loss", "ci_low", "ci_high"]
    return [
        {str(k): v for k, v in row.items()}
        for row in own[own["listed"]].sort_values(["groups", "sparsity", "kind"])[columns].to_dict("records")
    ][:MOST_KINDS]


def cliff_strips(
    run: Run, points: pd.DataFrame, count: int, paint: bool, tell: Callable[[str], None] | None
) -> list[Strip]:
    """Dense, then the first two curves with images from mild to past their cliffs, from the same noise."""
    own = run.study.prune.saliency
    curves = [
        (curve, frame)
        for curve, frame in curves_of(points)
        if curve["rung"] in IMAGE_RUNGS
        and curve["method"] == own
        and curve["steps_from"] != curve["steps_from"]
    ]
    prompts = held_out(prompts_of(run.record, run.study, run.disk), run.study, count)
    texts = tuple(prompt.text for prompt in prompts)
    painter = Painter(run, prompts)
    found: list[Strip] = []
    for curve, frame in curves[:2]:
        shown = (
            frame[frame["sparsity"] > 0].iloc[:: max(1, len(frame) // STEPS_OF_CLIFF)].tail(STEPS_OF_CLIFF)
        )
        rows = [(f"{curve['groups']}: {row['sparsity']:.0%}", _note(run, row), row["allocation"])
                for row in shown.to_dict("records")]  # fmt: skip
        if not found:
            rows.insert(0, ("dense", "nothing removed", Allocation().key))
        for number, (label, note, key) in enumerate(rows, 1):
            painter.tell = partial(tell, f"Painting pictures: {number} of {len(rows)} …") if tell else None
            pixels = painter.pixels(run.allocation(key), paint)
            if pixels is None:
                return []
            found.append(Strip(label, note, "dense" if label == "dense" else "compared", texts, pixels))
    return found


def _note(run: Run, row: dict[Any, Any]) -> str:
    measure = loss_on(run.study.sweep, row["rung"])
    return f"{_words(measure, run)} {row[measure]:.3g}"
