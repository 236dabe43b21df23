"""What a study will cost, in the words of `raysense plan`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from raysense.pruning.layers import Inventory
from raysense.strategies.dry_run import Estimate, Speed, Stage
from raysense.study import Budget, Study
from raysense.terminal import say

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
GIB = 2**30


def memory(study: Study, inventory: Inventory) -> dict[str, float]:
    """Bytes that an evaluator holds before it samples, by what they are for."""
    width = BYTES[study.dtype]
    return {
        "weights of the whole pipeline": inventory.n_pipeline * width,
        "levels, one byte a selected weight": inventory.n_selected,
        "dense master of the selected weights": inventory.n_selected * width,
    }


def fits(study: Study, inventory: Inventory, gib: float, peak: float | None = None) -> str:
    """Whether a study fits a device with so much memory, and what would not.

    Args:
        study: The study.
        inventory: Its layers.
        gib: The device's memory, GiB.
        peak: Bytes at the calibration's peak on a GPU, if it ran on one.
    """
    weights, levels, master = (part / GIB for part in memory(study, inventory).values())
    if weights + levels > gib:
        return (
            f"does not fit {gib:g} GiB: weights and levels alone take {weights + levels:.1f} GiB; use a larger GPU, a "
            "narrower `dtype`, or select fewer layers"
        )
    if peak is not None:
        return (
            f"fits {gib:g} GiB: {peak / GIB:.1f} GiB at the peak"
            if peak / GIB <= gib
            else f"does not fit {gib:g} GiB: {peak / GIB:.1f} GiB at the peak; shrink `sampling.batch`"
        )
    room = gib - weights - levels - master
    if room < 0.15 * gib:
        return (
            f"fits {gib:g} GiB with the dense master ({master:.1f} GiB) in the host's memory; "
            f"{gib - weights - levels:.1f} GiB are left for activations and judges, which are not measured"
        )
    return f"fits {gib:g} GiB; {room:.1f} GiB are left for activations and judges, which are not measured"


def render(
    study: Study,
    inventory: Inventory,
    speed: Speed,
    estimates: Sequence[Estimate],
    *,
    price: float | None,
    gpu_memory: float | None,
    peak: float | None,
    console: Console,
) -> None:
    """Prints the plan.

    Args:
        study: The study.
        inventory: Its layers.
        speed: Of one evaluator.
        estimates: One for each number of evaluators; the stages are shown of the first.
        price: Of an evaluator-hour, in any currency.
        gpu_memory: GiB of the device that an evaluator gets.
        peak: Bytes at the calibration's peak.
        console: Where.
    """
    first = estimates[0]
    unit = "GPU" if study.cluster.gpus_per_evaluator else "evaluator"
    say(console, f"{study.name}: {speed.told}", style="bold")
    console.print(_stages(first, unit))
    for limit in limits(study.budget):
        say(console, f"{limit} stops it at the latest.")
    if first.stopped:
        say(console, f"The budget is smaller than the study: {first.stopped}.")
    console.print(_walls(estimates, unit, price))
    width = first.evaluators * 3
    if study.search.lookahead < width:
        say(
            console,
            f"`search.lookahead` is {study.search.lookahead}: fewer questions than three for each of "
            f"{first.evaluators} {unit}s; some will wait. {width} would do, but it is part of what the study is: "
            "change it before it begins.",
        )
    parts = "; ".join(f"{what} {size / GIB:.2f}" for what, size in memory(study, inventory).items())
    say(console, f"Memory of an evaluator, GiB: {parts}.")
    if peak is not None:
        say(console, f"Measured at the calibration's peak: {peak / GIB:.2f} GiB.")
    if gpu_memory is not None:
        say(console, f"It {fits(study, inventory, gpu_memory, peak)}.")
    say(
        console,
        "Assumed: no candidate is hopeless on the preview rung, every finalist is tested, no machine is lost. "
        "The head node and storage are not in the price.",
    )


def _stages(estimate: Estimate, unit: str) -> Table:
    """What every stage takes, and all of them."""
    stages = Table("stage", "evaluations", "images", "NFE", f"{unit}-hours")
    parts: list[tuple[str, Stage | Estimate]] = [*estimate.stages.items(), ("all", estimate)]
    for name, part in parts:
        stages.add_row(
            name,
            f"{part.evaluations:,}",
            f"{part.images:,}",
            f"{part.cost:,}",
            f"{part.busy / 3600:,.2f}",
        )
    return stages


def _walls(estimates: Sequence[Estimate], unit: str, price: float | None) -> Table:
    """How long each number of evaluators takes, and what it costs."""
    walls = Table(f"{unit}s", "wall time", "busy", *(["price"] if price is not None else []))
    for one in estimates:
        cells = [f"{one.evaluators:,}", _duration(one.wall), f"{one.utilisation:.0%}"]
        walls.add_row(*cells, *([f"{one.price(price):,.2f}"] if price is not None else []))
    return walls


def limits(budget: Budget) -> list[str]:
    """The limits that a budget sets, in words."""
    found = []
    if budget.max_nfe is not None:
        found.append(f"`budget.max_nfe` of {budget.max_nfe:,} NFE")
    if budget.max_hours is not None:
        found.append(f"`budget.max_hours` of {budget.max_hours:,g} hours of evaluators at work")
    if budget.max_price is not None and budget.price_per_hour is not None:
        found.append(
            f"`budget.max_price` of {budget.max_price:,g} at {budget.price_per_hour:,g} an hour at work"
        )
    return found


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:,.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
