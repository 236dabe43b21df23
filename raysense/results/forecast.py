"""What a study will cost, in the words of `raysense plan`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from raysense.strategies.dry_run import Estimate, Speed, Stage
from raysense.study import Budget, Study
from raysense.terminal import say

GIB = 2**30


def render(
    study: Study,
    speed: Speed,
    estimates: Sequence[Estimate],
    *,
    price: float | None,
    memory: Sequence[str],
    peak: float | None,
    console: Console,
) -> None:
    """Prints the plan.

    Args:
        study: The study.
        speed: Of one evaluator.
        estimates: One for each number of evaluators; the stages are shown of the first.
        price: Of an evaluator-hour, in any currency.
        memory: What an evaluator holds, and whether that fits, a line each.
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
            f"`search.lookahead` is {study.search.lookahead}: fewer trials than three for each of "
            f"{first.evaluators} {unit}s; some will wait. {width} would do, but it is part of what the study is: "
            "change it before it begins.",
        )
    for line in memory:
        say(console, line)
    if peak is not None:
        say(console, f"Measured at the calibration's peak: {peak / GIB:.2f} GiB.")
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
