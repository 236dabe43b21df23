"""EvoPress's published procedure, to be compared with."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import numpy as np

from raysense.allocation import Allocation, LevelGrid
from raysense.strategies.proposers import GROWTH, LEAST_GROWTH, MOST_GROWTH, scaled, switched

EVOPRESS_OFFSPRING = 64
EVOPRESS_SURVIVORS = (8, 2, 1)

Stage = tuple[int, list[Allocation]]


def evopress(
    grid: LevelGrid, start: Allocation, seed: int | Sequence[int], push: bool = True
) -> Generator[Stage, Sequence[float], None]:
    """EvoPress's published procedure, generation after generation without end.

    Published it minimises a loss at a fixed total. To find the sparsest allocation inside a budget, the total is
    raised after a generation whose survivor has a utilisation of at most 1, and eased towards the best after two
    without.

    Args:
        grid: The layers' levels.
        start: Inside the budget, or where a search at its total starts.
        seed: Fixes the mutations.
        push: Move the total; without, it stays.

    Yields:
        (stage, allocations) to be measured, stage 0 the cheapest, 2 the dearest. It is sent their losses.
    """
    rng = np.random.default_rng(seed)
    parent, best, growth, failures = start, grid.zeros(start), GROWTH, 0
    while True:
        if push:
            parent = scaled(grid, parent, min(int(best * (1 + growth)), grid.max_zeros))
        parent, loss = yield from generation(grid, parent, rng)
        if loss <= 1 and grid.zeros(parent) > best:
            best, growth, failures = grid.zeros(parent), min(growth * 1.5, MOST_GROWTH), 0
        else:
            failures += 1
            if failures % 2 == 0:
                growth = max(growth / 2, LEAST_GROWTH)


def generation(
    grid: LevelGrid, parent: Allocation, rng: np.random.Generator
) -> Generator[Stage, Sequence[float], tuple[Allocation, float]]:
    """One generation of EvoPress; the survivor and its loss on the last stage.

    64 different offspring by 1 to 3 level switches, few more likely than many (the total stays exact), are measured on
    the cheapest stage, 8 are kept and measured on the next, then 2; the parent re-enters the last stage. All candidates
    of a stage share their data.

    Source: Sieberling et al., "EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary Search" (ICML
    2025), algorithm 1 and its settings for unstructured sparsity; the number of switches, and that an offspring like
    another or like its parent is drawn anew, as in the authors' programme (IST-DASLab/EvoPress).
    """
    pool = offspring_of(grid, parent, rng)
    loss = math.inf
    for stage, survivors in enumerate(EVOPRESS_SURVIVORS):
        if stage == len(EVOPRESS_SURVIVORS) - 1:
            pool = [*pool, parent]
        pool = list(dict.fromkeys(pool))
        losses = yield stage, pool
        order = sorted(range(len(pool)), key=lambda i: (losses[i], i))
        pool, loss = [pool[i] for i in order[:survivors]], losses[order[0]]
    return pool[0], loss


def offspring_of(grid: LevelGrid, parent: Allocation, rng: np.random.Generator) -> list[Allocation]:
    """As many different mutations of a parent as a generation has; fewer where a grid has not so many."""
    found: dict[Allocation, None] = {}
    in_vain = 0
    while len(found) < EVOPRESS_OFFSPRING and in_vain < EVOPRESS_OFFSPRING:
        child = switched(grid, parent, rng, int(rng.integers(1, 4, size=2).min()))
        in_vain = in_vain + 1 if child == parent or child in found else 0
        if not in_vain:
            found[child] = None
    return list(found) or [parent]
