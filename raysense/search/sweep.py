"""`raysense sweep`: measure the points that a study lists, and where their curves have their cliffs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table
from torch import nn

from raysense.allocation import LevelGrid
from raysense.errors import RaysenseError
from raysense.evaluation.calibration import calibration_cost, with_method
from raysense.evaluation.identity import grid_of, signature
from raysense.evaluation.inputs import device_of, inputs_of
from raysense.evaluation.scoring import ImageScorer
from raysense.evaluation.weights import Weights
from raysense.names import OUTLIERS, UNIFORM
from raysense.pipelines.adapter import takes_timestep
from raysense.pipelines.cost import Cost
from raysense.pipelines.idle_modules import foreseen_for
from raysense.pipelines.load import empty_components
from raysense.pipelines.origin import Origin
from raysense.prompts.sets import load_prompts
from raysense.pruning.allocation_rules import Counts
from raysense.pruning.layers import Inventory
from raysense.results.failures import failures, refuse_if_nothing_was_measured
from raysense.results.pictures import can_paint
from raysense.results.run import Run
from raysense.results.sweep_page import write_running_sweep_page, write_sweep_page
from raysense.results.sweeps import FOLLOWING, as_table, plain, points_of
from raysense.search.earlier_run import EarlierRun
from raysense.search.job import (
    begin_store,
    evaluator_spec,
    executor_of,
    refuse_to_overwrite,
    search,
)
from raysense.search.starts import Starts
from raysense.store.checksummed_json import seal
from raysense.store.disk import Disk
from raysense.store.store import Store
from raysense.strategies.runner import StrategyRunner
from raysense.strategies.sweep import Measured, Swept, make_sweep
from raysense.strategies.sweep_points import Layout
from raysense.study import Study
from raysense.study.complete import complete
from raysense.terminal import patient, say

NAME = "sweep.json"
"""What a sweep found, beside the tables."""

SHOWN = 24
"""Rows of cliffs that the terminal gets."""


def refuse_without_sweep(study: Study) -> None:
    """Refuse a study that lists no points.

    Raises:
        RaysenseError: It has no section `sweep`.
    """
    if study.sweep is None:
        raise RaysenseError(
            f"`sweep` is missing in the study {study.name}: it says which points to measure, such as "
            "`sweep: {points: [{over: component, sparsity: [0.3, 0.5, 0.7]}]}`; see docs/guides/sensitivity.md"
        )


def run_sweep(
    study: Study,
    out: str,
    *,
    address: str | None,
    resume: bool,
    console: Console,
    in_process: bool = False,
    source: str | None = None,
    page: bool = True,
) -> dict[str, Any]:
    """Measure a study's sweep to its end, or on from where it was stopped.

    Args:
        study: With a section `sweep`.
        out: Folder, or ``s3://`` address, for the tables.
        address: A running Ray cluster's address; None starts Ray on this machine.
        resume: Go on in a folder that holds evaluations of this study, of a search or of a sweep.
        console: Where progress and the result are shown.
        in_process: Measure in this process, one evaluation after another, without Ray.
        source: An earlier run, whose rows are taken over where they fit.
        page: Write the page, while the sweep runs and at its end.

    Returns:
        The summary, as written to ``sweep.json``.

    Raises:
        RaysenseError: Something the user can mend; nothing stored is lost.
        KeyboardInterrupt: The sweep was stopped; nothing stored is lost.
    """
    study = complete(study)
    refuse_without_sweep(study)
    refuse_to_overwrite(out, resume)
    earlier = EarlierRun.of(source, study, out) if source else None
    with patient(console, "Reading what the study is measured on …"):
        inputs = inputs_of(study, load_prompts(study.prompts), ImageScorer(study), device_of(study))
    with Weights(study, out, inputs, lambda text: say(console, text)) as weights:
        with patient(console, "Trying the pipeline without its weights …"):  # while its weights are looked at
            foreseen = foreseen_for(study)
            empty = empty_components(Origin.of(study))
        inventory = weights.inventory()
        grid = grid_of(study, inventory)
        strategy, layout, told = sweep_strategy(study, inventory, grid, empty, foreseen.cost, weights.counts)
        identity = signature(study, grid, inputs)
        store = begin_store(study, out, inventory, grid, inputs, foreseen.order)
        executor = executor_of(study, evaluator_spec(study, out, inputs), inventory, address, in_process)
        with store.lock(), Starts(Disk(out), address, inputs["versions"]) as starts:
            search(
                strategy, executor, store, identity, lookahead=study.search.lookahead, starts=starts, console=console,
                earlier=earlier.rows(study, store, identity, inputs) if earlier else None,
                page=(lambda: write_running_sweep_page(out, _point_rows(told, layout))) if page else None,
            )  # fmt: skip
            summary = _finished(study, layout, strategy, store, starts)
    _show(study, summary, store, console, page)
    return summary


def sweep_strategy(
    study: Study,
    inventory: Inventory,
    grid: LevelGrid,
    empty: Mapping[str, nn.Module],
    cost: Cost,
    counts: Callable[[str], Counts] | None,
) -> tuple[StrategyRunner[Swept], Layout, list[Measured]]:
    """A study's sweep as a strategy, its layers by group, and a list that gets every point once it is measured.

    Args:
        study: With a section `sweep`.
        inventory: Its layers.
        grid: Their levels.
        empty: The pipeline's components without weights.
        cost: Of an image.
        counts: Rule of one threshold -> what its scores were counted to be; None to foretell what a sweep costs.

    Raises:
        RaysenseError: A point cannot be measured, or the budget buys none.
    """
    assert study.sweep is not None

    def learning(method: str) -> int:
        return calibration_cost(with_method(study, method), inventory, grid, empty, cost)

    plain = study.model_copy(update={"search": study.search.model_copy(update={"strategies": (UNIFORM,)})})
    own = calibration_cost(plain, inventory, grid, empty, cost)
    others = [name for name in study.sweep.methods if name != study.prune.saliency]
    others += [rule for rule in OUTLIERS if rule in study.sweep.rules]
    methods = {name: taken for name in dict.fromkeys(others) if (taken := learning(name))}
    denoisers = [name for name, part in empty.items() if takes_timestep(type(part))]
    layout = Layout(study, inventory, grid, counts, denoisers)
    told = list[Measured]()
    return make_sweep(layout, cost, own, methods, told), layout, told


def _finished(
    study: Study, layout: Layout, strategy: StrategyRunner[Swept], store: Store, starts: Starts
) -> dict[str, Any]:
    """Write the tables that follow, and the summary."""
    swept = strategy.outcome
    assert swept is not None  # `search` raises otherwise
    store.compact()
    refuse_if_nothing_was_measured(store.evaluations())
    store.write_table("points", _point_rows(swept.points, layout))
    run = Run(store.uri)
    points = points_of(run)
    found = {name: of(run, points) for name, of in FOLLOWING.items()}
    for name, frame in found.items():
        store.write_table(name, as_table(name, frame))
    own = [e for e in store.evaluations() if e.stage == "sweep"]
    summary = {
        "study": study.name,
        "signature": run.record["signature"],
        "points": len(points),
        "listed": swept.wanted,
        "missing": swept.wanted - int(points["listed"].sum()),
        **{name: plain(found[name]) for name in ("cliffs", "pairs", "agreement")},
        "evaluations": len(own),
        "images": sum(e.images for e in own),
        "nfe": strategy.tracker.spent,
        "seconds": round(starts.seconds, 1),
        "stopped_in_words": str(strategy.tracker.refusal or ""),
        "starts": starts.finish(),
    }
    Disk(store.uri).write(NAME, seal(summary, indent=2, finite=True))
    return summary


def _show(study: Study, summary: Mapping[str, Any], store: Store, console: Console, page: bool) -> None:
    """Print what was found and what failed, and write the page if there is to be one."""
    render(summary, store.uri, console)
    if page:
        _write_page(study, store.uri, console)
    if failed := failures(store.evaluations()):
        say(console, failed)


def _write_page(study: Study, out: str, console: Console) -> None:
    """The page, with pictures where this machine can paint them; what goes wrong is said, and loses nothing."""
    try:
        path = write_sweep_page(out, paint=can_paint(study), code=True, tell=lambda text: say(console, text))
        say(console, f"Page:    {path}", whole=True)
    except RaysenseError as error:
        say(console, f"The page could not be written: {error}")


def _point_rows(measured: Sequence[Measured], layout: Layout) -> pa.Table:
    """The table `points`."""
    rows = []
    for one in tuple(measured):  # it may grow meanwhile
        point, request = one.point, one.point.request
        begin, end = request.steps or (None, None)
        weights = layout.weights(point.shares)
        rows.append(
            {
                "key": one.evaluation.key,
                "point_set": point.set,
                "granularity": point.over,
                "groups": point.groups,
                "rule": point.rule,
                "method": point.method,
                "steps_from": begin,
                "steps_to": end,
                "rung": request.rung,
                "shares": json.dumps(dict(point.shares)),
                "weights": weights,
                "sparsity": layout.grid.zeros(request.allocation) / weights if weights else 0.0,
                "listed": point.listed,
            }
        )
    return pa.Table.from_pylist(rows)


def render(summary: Mapping[str, Any], out: str, console: Console) -> None:
    """Print what a sweep found: cliffs, cost, paths."""
    say(console)
    if summary["cliffs"]:
        table = Table("curve", "place", "share of its weights", "95 % interval")
        for row in summary["cliffs"][:SHOWN]:
            name = ", ".join([row["groups"], row["method"], row["rule"]])
            where = ("not reached", "") if row["sparsity"] is None else (
                f"{row['sparsity']:.1%}", f"[{row['ci_low']:.1%}, {row['ci_high']:.1%}]"
            )  # fmt: skip
            table.add_row(name, row["place"], *where)
        console.print(table)
    if len(summary["cliffs"]) > SHOWN:
        say(console, f"… {len(summary['cliffs']) - SHOWN} more rows: the table `cliffs`, and the page.")
    say(
        console,
        f"{summary['points']:,} points, {summary['evaluations']:,} evaluations, {summary['images']:,} images, "
        f"{summary['nfe']:,} NFE, {summary['seconds']:.0f} s.",
    )
    if summary["stopped_in_words"]:
        say(
            console,
            f"The budget left {summary['missing']} listed points unmeasured: {summary['stopped_in_words']}. Raise it "
            "and go on with --resume, nothing is measured again.",
        )
    say(console, f"Summary: {out}/{NAME}\nTables:  {out}/tables/*/*.parquet", whole=True)
