"""What the strategies that learn have in common: they propose, are told how a proposal fared, and propose better ones.

How an allocation fared is its constraint utilisation, see `raysense.feasibility`: at most 1 is inside the quality
budget; the sparsest such allocation wins. All of them are pure and, given a seed, repeatable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from raysense.allocation import Allocation, LevelGrid

_Floats = npt.NDArray[np.float64]

GROWTH, MOST_GROWTH, LEAST_GROWTH = 0.05, 0.15, 0.001
"""By how much, relatively, a proposal exceeds the best total so far: at first, at most, at least."""


class Proposer(Protocol):
    """What iterative strategies have in common."""

    def propose(self) -> Allocation:
        """The next allocation to measure."""
        ...

    def tell(self, allocation: Allocation, utilisation: float) -> None:
        """How one fared, in the order of proposals; also what others found, to start from."""
        ...


class Push:
    """The best so far and how far beyond it to try: further after a success, less far after a failure."""

    def __init__(self, grid: LevelGrid) -> None:
        self.grid, self.growth = grid, GROWTH
        self.best: Allocation | None = None
        self.zeros = 0

    @property
    def target(self) -> int:
        """The total to try next."""
        return min(int(max(self.zeros, 0.02 * self.grid.n) * (1 + self.growth)), self.grid.max_zeros)

    def tell(self, allocation: Allocation, utilisation: float, counts: bool = True) -> None:
        """How an allocation fared; one that others found does not count for the pace."""
        zeros = self.grid.zeros(allocation)
        better = utilisation <= 1 and zeros > self.zeros
        if better:
            self.best, self.zeros = allocation, zeros
        if counts:
            # A success in four keeps the pace: 1.5 · 0.87³ = 0.99.
            self.growth = min(max(self.growth * (1.5 if better else 0.87), LEAST_GROWTH), MOST_GROWTH)


def switched(grid: LevelGrid, allocation: Allocation, rng: np.random.Generator, times: int) -> Allocation:
    """`times` random switches between two layers, each of about a twentieth of a typical layer; the total stays."""
    layers = [address for address in grid.addresses if grid.step(address)]
    chunk = float(np.median([grid.weights(address) for address in layers])) / 20
    for _ in range(times):
        for _ in range(20):  # most pairs have room
            up, down = (layers[int(i)] for i in rng.choice(len(layers), 2, replace=len(layers) < 2))
            step = max(grid.step(up), grid.step(down))
            moved = grid.switch(allocation, up, down, max(1, round(chunk / step)))
            if moved is not None:
                allocation = moved
                break
    return allocation


def scaled(grid: LevelGrid, allocation: Allocation, zeros: int) -> Allocation:
    """The same proportions of what is left, at another total."""
    return scaled_to(grid, {a: float(grid.zeros_at(a, level)) for a, level in allocation.items()}, zeros)


def scaled_to(grid: LevelGrid, wish: Mapping[str, float], zeros: int) -> Allocation:
    """Every layer's density to one power, so that the zeros are `zeros` and nothing exceeds its top."""
    layers = [a for a in grid.addresses if grid.step(a)]
    sizes = np.array([float(grid.weights(a)) for a in layers])
    tops = np.array([float(grid.step(a) * grid.top(a)) for a in layers])
    left = 1 - np.minimum(np.array([wish.get(a, 0.0) for a in layers]) / sizes, 0.999)
    zeros = min(max(zeros, 0), grid.max_zeros)

    def at(power: float) -> _Floats:
        return np.asarray(np.minimum(sizes * (1 - left**power), tops))

    low, high = 0.0, 64.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle).sum() < zeros else (low, middle)
    return grid.nearest(dict(zip(layers, at(high).tolist(), strict=True)), zeros)
