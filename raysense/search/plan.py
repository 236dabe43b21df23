"""`raysense plan`: a speed, measured or given, and what the study costs at that speed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from rich.console import Console
from torch import nn

from raysense.allocation import LevelGrid
from raysense.evaluation.calibration import calibration_cost
from raysense.evaluation.footprint import Footprint, stored_footprint
from raysense.evaluation.identity import inventory_and_grid
from raysense.evaluation.speed import Measured, measure_speed
from raysense.metrics import photographs
from raysense.pipelines.cost import Cost
from raysense.pipelines.idle_modules import foreseen_for
from raysense.pipelines.load import empty_components, refuse_foreign
from raysense.pipelines.origin import Origin
from raysense.pruning.layers import Inventory
from raysense.results.forecast import render
from raysense.search.gpu_memory import in_words, needs, verdicts
from raysense.search.sweep import refuse_without_sweep, sweep_strategy
from raysense.store.disk import Disk
from raysense.strategies.dry_run import Estimate, Speed, estimate, simulate
from raysense.strategies.noise import foretold
from raysense.study import Study

START_SECONDS = 12.0
"""From the command to the first evaluator's process, on a Ray that has to be started: 11.6 to 12.0 s on two cores."""


def forecast(
    study: Study,
    *,
    evaluators: Sequence[int] | None,
    nfe_per_second: float | None,
    price: float | None,
    gpu_memory: int | None,
    console: Console,
    spreads: Mapping[str, float] | None = None,
    store: str | None = None,
    sweep: bool = False,
) -> list[Estimate]:
    """Says what a study will cost.

    Args:
        study: The study.
        evaluators: Numbers of evaluators to plan for; None for the study's own, or as many as this machine runs.
        nfe_per_second: NFE a second of one evaluator; None for a calibration on this machine.
        price: Of an evaluator-hour.
        gpu_memory: Bytes of a GPU in question.
        console: Where it is said.
        spreads: Bounded measure -> standard deviation that a prompt adds, where the user knows it.
        store: Where an earlier run of the study is, whose evaluators may have measured what an image takes.
        sweep: Of its sweep, not of its search.

    Returns:
        One estimate for each number of evaluators.

    Raises:
        RaysenseError: The pipeline cannot be had, or does not fit.
    """
    if sweep:
        refuse_without_sweep(study)
    empty = empty_components(Origin.of(study))
    refuse_foreign(study.pipeline, {name: type(module) for name, module in empty.items()})
    inventory, grid = inventory_and_grid(study, empty)
    foreseen = foreseen_for(study)
    cost = foreseen.cost
    counts = list(
        evaluators or [here(study) if study.cluster.evaluators == "auto" else study.cluster.evaluators]
    )
    stored = stored_footprint(Disk(store), study) if store is not None else None
    speed, peak, footprint = _speed(study, nfe_per_second, counts[0], cost)
    need = needs(study, inventory, empty, foreseen, footprint or stored)
    told = [*in_words(study, need), *(verdicts(study, need, gpu_memory) if gpu_memory else ())]
    estimates = [_estimate(study, inventory, grid, empty, speed, count, cost, sweep) for count in counts]
    _say(console, f"An image costs {cost.image:,} NFE in {cost.steps} steps, {cost.told}.")
    render(
        study,
        speed,
        estimates,
        price=study.budget.price_per_hour if price is None else price,
        memory=told,
        peak=peak,
        console=console,
    )
    for line in (*_downloads(study), *(foretold(study, spreads) if not sweep else ())):
        _say(console, line)
    return estimates


def _downloads(study: Study) -> list[str]:
    reference = study.metrics.reference
    return [photographs.need(reference.limit)] if reference.path == photographs.NAME else []


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)


def _speed(
    study: Study, nfe_per_second: float | None, count: int, cost: Cost
) -> tuple[Speed, int | None, Footprint | None]:
    """The speed of one evaluator beside as many others, its peak of memory and footprint: measured, or as given."""
    if nfe_per_second is None:
        return calibrated(study, count)
    return given_speed(study, nfe_per_second, cost), None, None


def _estimate(
    study: Study,
    inventory: Inventory,
    grid: LevelGrid,
    empty: Mapping[str, nn.Module],
    speed: Speed,
    count: int,
    cost: Cost,
    sweep: bool,
) -> Estimate:
    """What a study's search, or its sweep, costs on so many evaluators."""
    if sweep:
        runner, *_ = sweep_strategy(study, inventory, grid, empty, cost, None)
        return simulate(runner, study, inventory, grid, speed, count, cost)
    return estimate(
        study, inventory, grid, speed, count, calibration_cost(study, inventory, grid, empty, cost), cost
    )


def here(study: Study) -> int:
    """Evaluators that this machine's cores have room for."""
    return max(1, int((os.cpu_count() or 1) / study.cluster.cpus_per_evaluator))


def calibrated(study: Study, count: int) -> tuple[Speed, int | None, Footprint | None]:
    """The speed of one of so many evaluators on this machine; with a GPU the peak of its memory, and an image's."""
    on_gpu = study.cluster.gpus_per_evaluator > 0
    beside = 1 if on_gpu else min(here(study), count)
    measured = measure_speed(study, beside)
    return measured_speed(measured, beside), measured.memory if on_gpu else None, measured.footprint


def given_speed(study: Study, nfe_per_second: float, cost: Cost) -> Speed:
    """From NFE a second; what a calibration would add beside them is left out."""
    second, rung = 1 / nfe_per_second, study.rungs.probe
    return Speed(
        image=cost.image * second,
        probe=cost.probe(rung) * second,
        first_probe=(cost.probe(rung, records=True) - cost.probe(rung)) * second,
        start=START_SECONDS,
        told=f"at {nfe_per_second:g} NFE a second; loading, decoding and judging are not in it",
    )


def measured_speed(measured: Measured, beside: int) -> Speed:
    """From a calibration."""
    return Speed(
        image=measured.image,
        images=measured.images,
        probe=measured.probe,
        first_probe=measured.first_probe,
        load=measured.load,
        start=START_SECONDS,
        told=(
            f"calibrated on {measured.device}, {beside} side by side, {measured.sampled} images: "
            f"{measured.image:.3g} s an image, {measured.probe:.3g} s a probe, {measured.load:.0f} s to load"
        ),
    )
