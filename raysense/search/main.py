"""The main job: `python -m raysense.search`. Reads top to bottom as what a study does."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from rich.console import Console

from raysense import plugins
from raysense.cluster import EvaluatorSpec, LiveView, run_on_ray
from raysense.cluster.tracking import Tracker, check_track
from raysense.errors import RaysenseError
from raysense.evaluation.calibration import OWL, calibration_cost
from raysense.evaluation.engine import inventory_and_grid, signature
from raysense.evaluation.inputs import inputs_of, keep_code, keep_prompts
from raysense.evaluation.judges import Judges
from raysense.pipelines.adapter import foresee
from raysense.pipelines.load import load_pipeline, modules_of
from raysense.pipelines.prompts import load_prompts
from raysense.pruning.allocation import LevelGrid
from raysense.pruning.layers import Inventory
from raysense.report.page import write_page
from raysense.report.refresh import PageWhileRunning
from raysense.report.summary import render, summarise
from raysense.search.families import ITERATIVE, SOLVER, check_strategies, closed_forms
from raysense.search.plan import make_story
from raysense.search.verdict import quality_budget
from raysense.store.disk import Disk
from raysense.store.sealed import seal
from raysense.store.store import Store
from raysense.study import EXTENSIONS, PLACES, Study
from raysense.terminal import say

logger = logging.getLogger(__name__)

PREPARED = ("cache", "partial")
"""What `raysense prepare` may have left in a study's folder."""


def run_study(
    study: Study, out: str, *, address: str | None, resume: bool, console: Console
) -> dict[str, Any]:
    """Run a study to its end, or on from where it was stopped.

    Args:
        study: What to do.
        out: Folder, or ``s3://`` address, for tables and summary.
        address: A running Ray cluster's address; None starts Ray on this machine.
        resume: Go on in a folder that already holds evaluations of this study.
        console: Where progress and the result are shown.

    Returns:
        The summary, as written to ``summary.json``.

    Raises:
        RaysenseError: Something the user can mend; nothing stored is lost.
    """
    check_track(study.track)
    refuse_to_overwrite(out, resume)
    pipeline = load_pipeline(study.pipeline, revision=study.revision, dtype=study.dtype)
    inventory, grid = inventory_and_grid(study, pipeline.components)
    modules = modules_of(pipeline)
    foreseen = foresee(study.pipeline, study.sampling, revision=study.revision)
    learning = calibration_cost(study, inventory, grid, modules, foreseen.cost)
    families = closed_forms(inventory, grid, modules, study.search.proportions)
    check_strategies(study.search.strategies, (*families, OWL, SOLVER, *ITERATIVE[1:]))
    device = "cuda" if study.cluster.gpus_per_evaluator > 0 else "cpu"
    inputs = inputs_of(study, load_prompts(study.prompts), Judges(study), device)
    story = make_story(study, inventory, grid, families, learning, foreseen.cost)
    store = begin_store(study, out, inventory, grid, inputs, foreseen.order)

    cluster = study.cluster
    spec = evaluator_spec(study, out, inputs)
    tracker = Tracker(study.track, study.name, denominators(inventory)) if study.track.wanted else None
    with LiveView(console) as live, PageWhileRunning(out):
        run = run_on_ray(
            story,
            spec,
            out,
            signature=signature(study, grid, inputs),
            lookahead=study.search.lookahead,
            evaluators=cluster.evaluators,
            cpus_per_evaluator=cluster.cpus_per_evaluator,
            gpus_per_evaluator=cluster.gpus_per_evaluator,
            patience=cluster.patience,
            address=address,
            on_progress=live,
            tracker=tracker,
        )
    if story.error is not None:
        raise story.error
    if story.outcome is None:
        say(
            console,
            f"Stopped; nothing stored is lost. Go on with --resume --out {shlex.quote(out)}",
            whole=True,
        )
        raise KeyboardInterrupt
    store.compact()

    summary = summarise(study, inventory, grid, story.outcome, store, run.snapshot.seconds, story.purse)
    Disk(out).write("summary.json", seal(summary, indent=2, finite=True))
    render(summary, out, console)
    # Pictures are painted on this machine: where the study needed a GPU, only if there is one here.
    can_paint = not cluster.gpus_per_evaluator or torch.cuda.is_available()
    try:
        page = write_page(out, paint=can_paint)
    except RaysenseError as error:
        say(console, f"The page could not be written: {error}")
    else:
        say(console, f"Page:    {page}", whole=True)
    return summary


def refuse_to_overwrite(out: str, resume: bool) -> None:
    """Refuse a folder that holds a study, unless it is to be resumed, or other people's files.

    Raises:
        RaysenseError: See above.
    """
    folder = Path(out)
    local = "://" not in out
    if local and folder.exists() and not folder.is_dir():
        raise RaysenseError(f"`--out {out}` is a file; give a folder")
    holds_study = Disk(out).read("study.json") is not None
    if holds_study and not resume:
        raise RaysenseError(
            f"`--out {out}` already holds a study; add --resume to go on with it, or give another folder"
        )
    others = [entry for entry in folder.iterdir() if entry.name not in PREPARED] if folder.is_dir() else []
    if local and others and not holds_study:
        raise RaysenseError(f"`--out {out}` holds other files, but no study; give an empty or a new folder")


def begin_store(
    study: Study,
    out: str,
    inventory: Inventory,
    grid: LevelGrid,
    inputs: Mapping[str, Any],
    order: Sequence[str] = (),
) -> Store:
    """The study's store, with its definition, its layers, its prompts and its plug-ins' code in it.

    Args:
        study: The study.
        out: Its folder or address.
        inventory: Its layers.
        grid: Their levels.
        inputs: What it is measured on, by content.
        order: Modules in the order of their first call; empty if unknown.

    Raises:
        RaysenseError: `out` cannot be written, or holds a study of another definition or of other contents.
    """
    store = Store.open(out, create=True)
    store.begin(
        study.model_dump(mode="json"),
        signature=signature(study, grid, inputs),
        denominators=denominators(inventory),
        extensions=(*EXTENSIONS, *PLACES),
        inputs=inputs,
        budget=quality_budget(study),
    )
    store.write_table("layers", layer_rows(inventory, grid, study.search.granularity, order))
    disk = Disk(out)
    keep_prompts(disk, load_prompts(study.prompts))
    keep_code(disk, study)
    return store


def evaluator_spec(study: Study, out: str, inputs: Mapping[str, Any]) -> EvaluatorSpec:
    """How a worker makes an evaluator: it gets the plug-ins' code too, and refuses to measure anything else."""
    return EvaluatorSpec(
        "raysense.evaluation.engine:build",
        {
            "study": study.model_dump(mode="json"),
            "directory": out if "://" in out else str(Path(out).resolve()),
            "threads": max(1, round(study.cluster.cpus_per_evaluator)),
            "expected": dict(inputs),
            "code": plugins.packed(plugins.named_by(study)),
        },
    )


def denominators(inventory: Inventory) -> dict[str, int]:
    """The integers that turn zeros into sparsities, for the store."""
    names = ("zeros_before", "n_selected", "n_prunable", "n_components", "n_pipeline")
    return {name: getattr(inventory, name) for name in names}


def layer_rows(
    inventory: Inventory, grid: LevelGrid, granularity: Any, order: Sequence[str] = ()
) -> pa.Table:
    """The table `layers`: one row a selected layer, as the pipeline lists them; `order` says when each runs first."""
    ran = set(order)
    first = sorted((layer.address for layer in inventory.layers if layer.address in ran), key=order.index)
    place = {address: number for number, address in enumerate(first)}
    group_of = {a: group for group, members in inventory.groups(granularity).items() for a in members}
    own = set(grid.addresses)
    return pa.Table.from_pylist(
        [
            {
                "layer": layer.address,
                "component": layer.component,
                "block": layer.block,
                "kind": layer.kind,
                "weights": layer.n,
                "step": grid.step(layer.address) if layer.address in own else 0,
                "levels": grid.top(layer.address) if layer.address in own else 0,
                "group": group_of[layer.address],
                "order": place.get(layer.address),
            }
            for layer in inventory.layers
        ]
    )
