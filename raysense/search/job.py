"""The main job: `python -m raysense.search`. Reads top to bottom as what a study does."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from raysense import plugins
from raysense.allocation import LevelGrid
from raysense.errors import RaysenseError
from raysense.evaluation.calibration import calibration_cost
from raysense.evaluation.identity import grid_of, signature
from raysense.evaluation.inputs import device_of, inputs_of, keep_code, keep_prompts
from raysense.evaluation.scoring import ImageScorer
from raysense.evaluation.weights import Weights
from raysense.execution.executor import EvaluatorSpec, Executor
from raysense.execution.local import LocalExecutor
from raysense.execution.progress import Snapshot
from raysense.execution.progress_view import view
from raysense.execution.ray.driver import RayExecutor
from raysense.execution.ray.tracking import Tracker, check_track
from raysense.execution.reused_rows import ReusedRows
from raysense.hashing import known_files
from raysense.names import ITERATIVE, OUTLIERS, SOLVER
from raysense.pipelines.idle_modules import foreseen_for
from raysense.pipelines.load import empty_components
from raysense.pipelines.origin import Origin
from raysense.prompts.sets import load_prompts
from raysense.pruning.layers import Inventory
from raysense.results.failures import failures, refuse_if_nothing_was_measured
from raysense.results.page import NAME as PAGE
from raysense.results.page import is_finished_page, page_of, write_page
from raysense.results.page_with_pictures import write_painted_page
from raysense.results.pictures import can_paint
from raysense.results.refresh import PageWhileRunning
from raysense.results.summary import render, summarise
from raysense.search.earlier_run import EarlierRun, swept_in
from raysense.search.looks import FIRST, Looks, with_looks
from raysense.search.looks import in_words as looks_in_words
from raysense.search.save_live_objects import FOLDER
from raysense.search.starts import Starts, stored_starts
from raysense.store.checksummed_json import seal
from raysense.store.disk import Disk, read_sealed
from raysense.store.store import Store
from raysense.strategies.context import Findings
from raysense.strategies.rules import built_in_rules, check_strategies
from raysense.strategies.runner import StrategyRunner
from raysense.strategies.schedule import make_strategy
from raysense.strategies.swept_curves import Points
from raysense.strategies.user_defined import user_rules, user_strategies
from raysense.strategies.verdict import quality_budget
from raysense.study import EXTENSIONS, LOOKS, PLACES, Study
from raysense.study.complete import complete
from raysense.terminal import patient, say

logger = logging.getLogger(__name__)

PREPARED = ("cache", "partial", FOLDER)
"""What `raysense prepare` may have left in a study's folder, and what was given in Python."""


@dataclass(frozen=True)
class Begun:
    """A study that can be searched: what its pipeline consists of, who asks, and where answers are stored.

    Attributes:
        inventory: The selected layers and the denominators.
        grid: Their levels.
        strategy: Asks for trials.
        store: Has the study's definition, layers, prompts and code in it.
    """

    inventory: Inventory
    grid: LevelGrid
    strategy: StrategyRunner[Findings]
    store: Store


def run_study(
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
    """Run a study to its end, or on from where it was stopped.

    Args:
        study: What to do.
        out: Folder, or ``s3://`` address, for tables and summary.
        address: A running Ray cluster's address; None starts Ray on this machine.
        resume: Go on in a folder that already holds evaluations of this study.
        console: Where progress and the result are shown.
        in_process: Measure in this process, one evaluation after another, without Ray.
        source: An earlier run, whose rows are taken over where they fit.
        page: Write the page, while the study runs and at its end.

    Returns:
        The summary, as written to ``summary.json``.

    Raises:
        RaysenseError: Something the user can mend; nothing stored is lost.
        KeyboardInterrupt: The study was stopped; nothing stored is lost.
    """
    refuse_to_overwrite(out, resume)
    study = complete(study)
    check_track(study.track)
    earlier = EarlierRun.of(source, study, out) if source else None
    with patient(console, "Reading what the study is measured on …"):
        inputs = inputs_of(study, load_prompts(study.prompts), ImageScorer(study), device_of(study))
    study, looks = with_looks(study, out, inputs, source)
    if resume and (done := finished_already(study, out, inputs, page=page)) is not None:
        say(console, _nothing_to_do(done, out, page), whole=True)
        return done
    for line in looks_in_words(study, looks):
        say(console, line)
    with Weights(study, out, inputs, lambda text: say(console, text)) as weights:
        begun = begin(study, out, inputs, weights, console, looks, earlier)
        spec = evaluator_spec(study, out, inputs)
        executor = executor_of(study, spec, begun.inventory, address, in_process)
        where = "this process" if in_process else address
        summary = _searched(study, out, begun, executor, inputs, where, console, earlier, page)
    if page:
        finish_page(study, out, console)
    return summary


def begin(
    study: Study,
    out: str,
    inputs: Mapping[str, Any],
    weights: Weights,
    console: Console,
    looks: Looks,
    earlier: EarlierRun | None = None,
) -> Begun:
    """Find the layers and their levels, make the strategy, and begin the store: all that needs no evaluator.

    Args:
        study: The study, complete.
        out: Its folder or address.
        inputs: What it is measured on, by content.
        weights: What a driver has to know of the pipeline's weights.
        console: Where what takes time is said.
        looks: Earlier runs that looked at the same held-out prompts.
        earlier: A run whose rows are taken over; a sweep in it begins the curves.

    Raises:
        RaysenseError: The study does not fit its pipeline, or `out` holds another study.
    """
    with patient(console, "Trying the pipeline without its weights …"):  # while its weights are looked at
        foreseen = foreseen_for(study)
        empty = empty_components(Origin.of(study))
    inventory = weights.inventory()
    grid = grid_of(study, inventory)
    learning = calibration_cost(study, inventory, grid, empty, foreseen.cost)
    rules = built_in_rules(inventory, grid, {}, study.search.proportions, weights.counts)
    rules |= user_rules(asked := study.search.strategies, inventory, grid)
    check_strategies(asked, (*rules, *OUTLIERS, SOLVER, *ITERATIVE[1:], *user_strategies(asked)))
    swept = swept_before(out, study, grid, inputs) or (earlier.swept(study, grid) if earlier else {})
    strategy = make_strategy(study, inventory, grid, rules, learning, foreseen.cost, swept=swept)
    store = begin_store(study, out, inventory, grid, inputs, foreseen.order, looks)
    return Begun(inventory, grid, strategy, store)


def _nothing_to_do(summary: Mapping[str, Any], out: str, page: bool) -> str:
    found = f"{summary['sparsity_components']:.1%} removed" if summary["feasible"] else "nothing passed"
    link = f" Page: {page_of(out)}" if page else ""
    return f"Finished already ({found}); nothing to do.{link}"


def _searched(
    study: Study,
    out: str,
    begun: Begun,
    executor: Executor,
    inputs: Mapping[str, Any],
    address: str | None,
    console: Console,
    earlier: EarlierRun | None,
    page: bool,
) -> dict[str, Any]:
    """Search, then write and show the summary."""
    inventory, grid, strategy, store = begun.inventory, begun.grid, begun.strategy, begun.store
    with store.lock(), Starts(Disk(out), address, inputs["versions"]) as starts:
        identity, lookahead = signature(study, grid, inputs), study.search.lookahead
        taken = earlier.rows(study, store, identity, inputs) if earlier else None
        if earlier and taken:
            earlier.take_sweep(study, store, taken)
        search(
            strategy,
            executor,
            store,
            identity,
            lookahead=lookahead,
            starts=starts,
            console=console,
            earlier=taken,
            page=partial(write_page, out, paint=False) if page else None,
        )
        assert strategy.outcome is not None  # `search` raises otherwise
        say(console, "Writing the tables and the summary …")
        store.compact()
        evaluations = store.evaluations()
        refuse_if_nothing_was_measured(evaluations)
        summary = summarise(study, inventory, grid, strategy.outcome, store, starts.seconds, strategy.tracker)
        summary["starts"] = starts.finish()
        Disk(out).write("summary.json", seal(summary, indent=2, finite=True))
    render(summary, out, console)
    if failed := failures(evaluations):
        say(console, failed)
    return summary


def search(
    strategy: StrategyRunner[Any],
    executor: Executor,
    store: Store,
    identity: str,
    *,
    lookahead: int,
    starts: Starts,
    console: Console,
    earlier: ReusedRows | None = None,
    page: Callable[[], object] | None = None,
) -> None:
    """Let the strategy ask, and the executor measure, until the strategy has its outcome.

    Args:
        strategy: Asks.
        executor: Measures.
        store: Where answers are kept.
        identity: The study's signature.
        lookahead: How many answers the strategy may be ahead of.
        starts: Is told how far it is.
        console: Where progress is shown.
        earlier: Rows of an earlier run.
        page: Writes the page of what is known so far; None for no page while it runs.

    Raises:
        RaysenseError: See `run_study`.
        KeyboardInterrupt: The study was stopped.
    """
    starting = patient(console, "Starting …")
    refreshed = PageWhileRunning(page) if page else contextlib.nullcontext()
    with view(console) as live, refreshed, starting as started:

        def see(snapshot: Snapshot) -> None:
            started.set()
            starts.see(snapshot)
            with contextlib.suppress(OSError):  # the terminal went away
                live(snapshot)

        executor.run(
            strategy, store, signature=identity, lookahead=lookahead, on_progress=see, earlier=earlier
        )
        if strategy.error is not None:
            raise strategy.error
        if strategy.outcome is None:
            raise KeyboardInterrupt


def executor_of(
    study: Study, spec: EvaluatorSpec, inventory: Inventory, address: str | None, in_process: bool
) -> Executor:
    """What measures for a study: this process, the cluster at an address, or Ray on this machine."""
    if in_process:
        return LocalExecutor(spec.build())
    cluster = study.cluster
    return RayExecutor(
        spec,
        evaluators=cluster.evaluators,
        cpus=cluster.cpus_per_evaluator,
        gpus=cluster.gpus_per_evaluator,
        address=address,
        patience=cluster.patience,
        tracker=Tracker(study.track, study.name, denominators(inventory)) if study.track.wanted else None,
    )


def swept_before(out: str, study: Study, grid: LevelGrid, inputs: Mapping[str, Any]) -> Points:
    """What a sweep of the same study has probed in this folder, see `swept_in`."""
    store = Store.open(out, create=True)
    if store.study is None or store.study["signature"] != signature(study, grid, inputs):
        return {}  # of another study: `begin_store` refuses it
    return swept_in(store, study, grid)


def finish_page(study: Study, out: str, console: Console) -> None:
    """Write the finished page, first without pictures, then with them: stopped in between, it only lacks those."""
    try:
        say(console, "Writing the page …")
        say(console, f"Page:    {write_page(out, paint=False)}", whole=True)
        if can_paint(study):  # on this machine
            write_painted_page(out, lambda text: say(console, text))
    except RaysenseError as error:
        say(console, f"The page could not be written: {error}")
    except KeyboardInterrupt:
        command = f"raysense report {shlex.quote(out)}"
        raise KeyboardInterrupt(
            f"Stopped; the study has finished, only its page lacks the pictures, which this paints: {command}"
        ) from None


def finished_already(
    study: Study, out: str, inputs: Mapping[str, Any], *, page: bool = True
) -> dict[str, Any] | None:
    """The summary of a study of which nothing is left to do; None if something may be. Mends a page that is not there.

    A study whose budget grew goes on, and so does one in which something failed.
    """
    disk = Disk(out)
    starts = stored_starts(disk)
    stored = Store.open(out, create=True).study
    if stored is None or not starts or not starts[-1].get("finished"):
        return None
    before, now = stored["definition"], study.model_dump(mode="json")
    free = ("cluster", "sweep", "track", *PLACES)
    if any(before.get(part) != now[part] for part in now if part not in free):
        return None
    if stored["inputs"] != inputs:
        return None
    summary = read_sealed(disk, "summary.json", "Delete it, and resume: it is written anew.")
    if summary is None or any(evaluation.failed for evaluation in Store.open(out).evaluations()):
        return None
    if page and not is_finished_page(disk.read(PAGE)):
        write_page(out, paint=False)
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
    looks: Looks = FIRST,
) -> Store:
    """The study's store, with its definition, its layers, its prompts and its plug-ins' code in it.

    Args:
        study: The study.
        out: Its folder or address.
        inventory: Its layers.
        grid: Their levels.
        inputs: What it is measured on, by content.
        order: Modules in the order of their first call; empty if unknown.
        looks: Earlier runs that looked at the same held-out prompts.

    Raises:
        RaysenseError: `out` cannot be written, or holds a study of another definition or of other contents.
    """
    store = Store.open(out, create=True)
    with store.lock():  # once for all that is written
        store.begin(
            study.model_dump(mode="json"),
            signature=signature(study, grid, inputs),
            denominators=denominators(inventory),
            extensions=(*EXTENSIONS, *PLACES, LOOKS),
            inputs=inputs,
            budget=quality_budget(study),
            looks=looks.to_fields(),
        )
        store.write_table("layers", layer_rows(inventory, grid, study.search.granularity, order))
        keep_prompts(Disk(out), load_prompts(study.prompts))
        keep_code(Disk(out), study)
    return store


def evaluator_spec(study: Study, out: str, inputs: Mapping[str, Any]) -> EvaluatorSpec:
    """How a worker makes an evaluator: it gets the plug-ins' code too, and refuses to measure anything else."""
    return EvaluatorSpec(
        "raysense.evaluation.evaluator:build",
        {
            "study": study.model_dump(mode="json"),
            "directory": out if "://" in out else str(Path(out).resolve()),
            "threads": max(1, round(study.cluster.cpus_per_evaluator)),
            "expected": dict(inputs),
            "code": plugins.packed(plugins.named_by(study)),
            "files": known_files(),
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
