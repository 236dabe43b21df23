"""A search strategy and an allocation rule."""

from collections.abc import Generator, Sequence

import numpy as np

import raysense as rs
from raysense.allocation import Allocation, LevelGrid
from raysense.pruning.layers import Inventory
from raysense.strategies.context import Candidate, SearchContext, best_of


@rs.strategy("walk")
def walk(
    search: SearchContext, candidates: Sequence[Candidate]
) -> Generator[list[Allocation], list[Candidate], None]:
    """A random walk upwards: from the best so far, a few layers go one level further; two proposals side by side."""
    rng = np.random.default_rng(search.study.seed)
    start = best_of(candidates)
    best, zeros = (start.allocation, start.zeros) if start else (Allocation(), 0)
    while True:
        proposals = [further(best, search.grid, rng) for _ in range(2)]
        for candidate in (yield proposals):
            if candidate.feasible and candidate.zeros > zeros:
                best, zeros = candidate.allocation, candidate.zeros


def further(allocation: Allocation, grid: LevelGrid, rng: np.random.Generator, layers: int = 3) -> Allocation:
    """A few layers of an allocation, drawn at random, at a level more."""
    free = [address for address in grid.addresses if allocation[address] < grid.top(address)]
    chosen = rng.choice(free, size=min(layers, len(free)), replace=False) if free else []
    return Allocation({**allocation, **{str(a): allocation[str(a)] + 1 for a in chosen}})


@rs.allocation_rule("later")
def later(inventory: Inventory, grid: LevelGrid, zeros: int) -> Allocation:
    """Layers that stand later in the pipeline lose more: shares rise in a straight line from 1 to 2."""
    count = len(inventory.layers)
    pull = {layer.address: layer.n * (1 + number / count) for number, layer in enumerate(inventory.layers)}
    scale = zeros / sum(pull.values())
    wish = {address: min(scale * part, float(grid.limit(address))) for address, part in pull.items()}
    return grid.nearest(wish, zeros)
