"""Checks of what proposes allocations: search strategies and allocation rules."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from raysense.allocation import Allocation, LevelGrid
from raysense.errors import RaysenseError
from raysense.pruning import allocation_rules
from raysense.pruning.layers import Inventory, take_inventory
from raysense.records import TrialSpec
from raysense.strategies.context import Candidate, SearchContext
from raysense.strategies.dry_run import Speed, simulate
from raysense.strategies.schedule import make_strategy
from raysense.strategies.user_defined import Proposals, UserStrategy, checked_rule, started
from raysense.study import Study, parse
from raysense.testing.contract import asserted, declared_as, other_random_numbers

SECONDS = 60.0
"""What a strategy may take to propose all that its budget allows, on a simulated cluster."""


def small() -> tuple[Inventory, LevelGrid]:
    """Layers of a made-up denoiser, and their levels."""
    modules = {"unet": nn.Sequential(*(nn.Linear(32, 32 + 8 * (i % 3)) for i in range(8)))}
    inventory = take_inventory(modules, select=["unet"])
    return inventory, LevelGrid(inventory.sizes, 0.95)


def check_strategy(strategy: UserStrategy, *, seconds: float = SECONDS) -> None:
    """Check a search strategy on the simulated cluster that `raysense plan` uses.

    That it is a generator, proposes something, proposes only what is on the grid, and comes to its end in time; that it
    proposes the same, in the same order, whatever random numbers the process draws and however many evaluators there
    are.

    Args:
        strategy: Decorated with `raysense.strategy`.
        seconds: What the whole search may take.

    Raises:
        AssertionError: It breaks its contract; says how.
    """
    name = declared_as(strategy, "strategy").name
    runs = []
    for seed, evaluators in ((1, 1), (2, 1), (3, 4)):
        other_random_numbers(seed)
        runs.append(_within(seconds, name, lambda n=evaluators: _proposed(name, strategy, n)))  # type: ignore[misc]
    assert runs[0], f"{name}: proposed nothing"
    assert runs[0] == runs[1], (
        f"{name}: proposed something else the second time: {_first_difference(*runs[:2])}"
    )
    assert runs[0] == runs[2], (
        f"{name}: what it proposes depends on the number of evaluators: {_first_difference(runs[0], runs[2])}"
    )


def _proposed(name: str, strategy: UserStrategy, evaluators: int) -> list[str]:
    """What a strategy yields in a simulated study, in words."""
    inventory, grid = small()
    study = _study(name)
    said: list[str] = []

    def recorded(search: SearchContext, candidates: Sequence[Candidate]) -> Proposals:
        proposals, answer = started(name, strategy, search, candidates), None
        while True:
            try:
                wanted = proposals.send(answer)
            except StopIteration as end:
                return end.value
            said.append(_in_words(wanted))
            answer = yield wanted

    rules = {"uniform": lambda zeros: allocation_rules.uniform(inventory, grid, zeros)}
    with asserted():
        runner = make_strategy(study, inventory, grid, rules, own={name: recorded})
        simulate(runner, study, inventory, grid, Speed(image=1.0, probe=1.0), evaluators)
    return said


def _study(name: str) -> Study:
    return parse(
        {
            "name": "check",
            "prune": {"components": ["unet"]},
            "constraints": {"clip_score": {"max_drop": 0.2}},
            "rungs": {"preview": {"prompts": 8}, "score": {"prompts": 16}, "validation": {"prompts": 16}},
            "search": {"strategies": ["uniform", name], "bisections": 3, "rounds": 2, "offspring": 6},
        }
    )


def _in_words(wanted: object) -> str:
    if isinstance(wanted, TrialSpec):
        return f"trial of {[(request.allocation.key, request.rung) for request in wanted.requests]}"
    if isinstance(wanted, Allocation):
        return f"allocation {wanted.key}"
    if isinstance(wanted, Sequence):
        return f"allocations {[getattr(one, 'key', one) for one in wanted]}"
    return repr(wanted)


def _first_difference(one: Sequence[str], other: Sequence[str]) -> str:
    for number, (a, b) in enumerate(zip(one, other, strict=False), 1):
        if a != b:
            return f"proposal {number} is {a}, then {b}"
    return f"{len(one)} proposals, then {len(other)}"


def _within(seconds: float, name: str, work: Callable[[], list[str]]) -> list[str]:
    """What work gives, if it comes to an end in time; a strategy that does not is left to its thread."""
    found: list[Any] = []

    def attempt() -> None:
        try:
            found.append(work())
        except BaseException as error:  # shown where the check is called
            found.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, f"{name}: did not come to its end in {seconds:g} s"
    if isinstance(found[0], BaseException):
        raise found[0]
    return list(found[0])


def check_allocation_rule(rule: Callable[[Inventory, LevelGrid, int], Allocation]) -> None:
    """Check an allocation rule: that every total is met within a step of the grid, always by the same allocation.

    Args:
        rule: Decorated with `raysense.allocation_rule`.

    Raises:
        AssertionError: It breaks its contract; says how.
    """
    name = declared_as(rule, "allocation_rule").name
    inventory, grid = small()
    allocate = checked_rule(name, rule, inventory, grid)
    for share in (0.0, 0.1, 0.35, 0.5, 0.75, 1.0):
        asked = int(share * grid.max_zeros)
        try:
            other_random_numbers(1)
            first = allocate(asked)
            other_random_numbers(2)
            second = allocate(asked)
        except RaysenseError as error:
            raise AssertionError(str(error)) from error
        assert first == second, f"{name}: shared {asked} zeros out differently the second time"
        off = abs(grid.zeros(first) - asked)
        assert off <= grid.base, (
            f"{name}: was asked for {asked} zeros and gives {grid.zeros(first)}, {off} off; a step is {grid.base}; "
            "round with `grid.nearest(wish, zeros)`"
        )
