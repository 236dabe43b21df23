"""Iterative strategies: each proposes allocations, is told how they fared, and proposes better ones.

How an allocation fared is its *load*: 1 minus its tightest margin, in units of the bound. At most 1 is inside the
quality budget; the sparsest such allocation wins. All of them are pure and, given a seed, repeatable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from raysense.allocation import Allocation, LevelGrid

_Floats = npt.NDArray[np.float64]

Solve = Callable[[int, Mapping[str, float]], Allocation]
"""Wanted zeros and factors on the groups' damages -> the solver's allocation."""

GROWTH, MOST_GROWTH, LEAST_GROWTH = 0.05, 0.15, 0.001
"""By how much, relatively, a proposal exceeds the best total so far: at first, at most, at least."""

FACTOR_SD = 0.5
"""Prior standard deviation of the factors between a group's probe curve and its share of the load, relatively:
one common to a component and one of the group's own, each."""

LOAD_SD = 0.1
"""How far a measured load is from the additive model, relatively, beside its own noise."""

_FAR = 4.0  # loads beyond this lie past the cliff, where nothing adds up
_LEAST_FACTOR = 0.1


class Proposer(Protocol):
    """What iterative strategies have in common."""

    def propose(self) -> Allocation:
        """The next allocation to measure."""
        ...

    def tell(self, allocation: Allocation, load: float) -> None:
        """How one fared, in the order of proposals; also what others found, to start from."""
        ...


class _Push:
    """The best so far and how far beyond it to try: further after a success, less far after a failure."""

    def __init__(self, grid: LevelGrid) -> None:
        self.grid, self.growth = grid, GROWTH
        self.best: Allocation | None = None
        self.zeros = 0

    @property
    def target(self) -> int:
        return min(int(max(self.zeros, 0.02 * self.grid.n) * (1 + self.growth)), self.grid.max_zeros)

    def tell(self, allocation: Allocation, load: float, counts: bool = True) -> None:
        zeros = self.grid.zeros(allocation)
        better = load <= 1 and zeros > self.zeros
        if better:
            self.best, self.zeros = allocation, zeros
        if counts:
            # A success in four keeps the pace: 1.5 · 0.87³ = 0.99.
            self.growth = min(max(self.growth * (1.5 if better else 0.87), LEAST_GROWTH), MOST_GROWTH)


class Learned:
    """Raysense's joint search: learns what the probe gets wrong about each group, and solves anew.

    The load of an allocation is modelled as a sum over groups, ``sum_g θ_g · d_g(x_g)``, with d the measured probe
    curves and a Gaussian prior on the factors θ, correlated within a component. Measured loads, those of closed forms
    included, update it in closed form; a sample from the posterior (Thompson 1933) goes to the solver as weights, at
    a total above the best so far; where it repeats itself, levels are switched between a few layers. The sum is only
    a surrogate: what is kept has been measured.

    Args:
        grid: The layers' levels.
        damages: Allocation -> damage of every group by its probe curve, in the order of `groups`.
        groups: The groups' addresses.
        solve: See `Solve`.
        seed: Fixes the proposals.
    """

    def __init__(
        self,
        grid: LevelGrid,
        damages: Callable[[Allocation], Sequence[float]],
        groups: Sequence[str],
        solve: Solve,
        seed: int | Sequence[int],
    ) -> None:
        self._grid, self._damages, self._solve = grid, damages, solve
        self._groups = list(groups)
        self._rng = np.random.default_rng(seed)
        self._push = _Push(grid)
        self._rows: list[_Floats] = []
        self._loads: list[float] = []
        self._proposed: set[Allocation] = set()
        self._number = 0
        names = [group.split(":")[0] for group in self._groups]
        _, self._component = np.unique(names, return_inverse=True)
        same = (self._component[:, None] == self._component[None, :]).astype(float)
        self._prior = FACTOR_SD**2 * (np.eye(len(names)) + same)

    def propose(self) -> Allocation:
        """The solver's answer to sampled factors, at a total above the best."""
        self._number += 1
        known = self._known()
        mean = known.mean
        sampled = self._number % 2 == 0  # by turns what is known and what might be
        factors = self._sampled(known) if sampled else mean
        factors = np.maximum(factors, _LEAST_FACTOR * max(float(mean.mean()), 1e-12))
        weights = dict(zip(self._groups, (factors / factors.mean()).tolist(), strict=True))
        allocation = self._solve(self._push.target, weights)
        if allocation in self._proposed:
            allocation = switched(self._grid, allocation, self._rng, 3)
        self._proposed.add(allocation)
        return allocation

    def tell(self, allocation: Allocation, load: float) -> None:
        """Update the surrogate and the best."""
        self._push.tell(allocation, load, allocation in self._proposed)
        if math.isfinite(load) and load <= _FAR:
            self._rows.append(np.asarray(self._damages(allocation), dtype=np.float64))
            self._loads.append(max(load, 0.0))

    def factors(self) -> dict[str, float]:
        """Group -> mean factor, as weights for the solver."""
        mean = self._known().mean
        mean = np.maximum(mean, _LEAST_FACTOR * max(float(mean.mean()), 1e-12))
        return dict(zip(self._groups, (mean / mean.mean()).tolist(), strict=True))

    def predict(self, allocation: Allocation) -> tuple[float, float]:
        """The load that the surrogate expects, and its standard deviation."""
        known = self._known()
        row = np.asarray(self._damages(allocation), dtype=np.float64)
        load = float(row @ known.mean)
        prior = known.scale**2 * (self._prior @ row)
        variance = float(row @ prior - (row @ known.gain) @ (known.rows @ prior))
        return load, float(np.sqrt(max(variance, 0.0) + (LOAD_SD * max(load, 0.3)) ** 2))

    def _known(self) -> _Known:
        """What the measured loads say about the factors."""
        rows, loads = np.array(self._rows).reshape(-1, len(self._groups)), np.array(self._loads)
        sums = rows.sum(axis=1)
        rows, loads, sums = rows[sums > 0], loads[sums > 0], sums[sums > 0]
        # The scale between probe and load is read off the loads nearest to the bound.
        near = np.argsort(np.abs(loads - 1))[:5]
        scale = float(np.median(loads[near] / sums[near])) if len(near) else 0.0
        if scale <= 0:
            rows, loads, scale = rows[:0], loads[:0], 1.0
        noise = LOAD_SD * np.maximum(loads, 0.3)
        seen = scale**2 * (rows @ self._prior)
        gain = np.linalg.solve(seen @ rows.T + np.diag(noise**2), seen).T
        mean = scale + gain @ (loads - scale * rows.sum(axis=1))
        return _Known(scale, rows, loads, noise, gain, mean)

    def _sampled(self, known: _Known) -> _Floats:
        """Factors from the posterior: some from the prior, corrected by what was measured (Matheron's rule)."""
        common = self._rng.standard_normal(int(self._component.max()) + 1)
        own = self._rng.standard_normal(len(self._groups))
        drawn = known.scale * (1 + FACTOR_SD * (own + common[self._component]))
        loads = known.rows @ drawn + known.noise * self._rng.standard_normal(len(known.noise))
        return np.asarray(drawn + known.gain @ (known.loads - loads))


@dataclass(frozen=True)
class _Known:
    """The Gaussian posterior of the factors: prior mean `scale`, prior covariance `scale²` times the prior's.

    Attributes:
        scale: Between probe and load.
        rows: (measured, groups) damages.
        loads: (measured,).
        noise: (measured,) standard deviations of the loads.
        gain: (groups, measured) how the factors follow the loads.
        mean: (groups,) the factors.
    """

    scale: float
    rows: _Floats
    loads: _Floats
    noise: _Floats
    gain: _Floats
    mean: _Floats


class Switches:
    """Level switches from the best so far, which is then pushed: EvoPress's mutation, steady-state.

    Args:
        grid: The layers' levels.
        seed: Fixes the proposals.
    """

    def __init__(self, grid: LevelGrid, seed: int | Sequence[int]) -> None:
        self._grid, self._rng, self._push = grid, np.random.default_rng(seed), _Push(grid)
        self._proposed: set[Allocation] = set()

    def propose(self) -> Allocation:
        """The best, switched in one to three places and scaled to a total above its own."""
        grid, best = self._grid, self._push.best
        parent = best if best is not None else grid.uniform(0.02)
        allocation = scaled(
            grid, switched(grid, parent, self._rng, int(self._rng.integers(1, 4))), self._push.target
        )
        self._proposed.add(allocation)
        return allocation

    def tell(self, allocation: Allocation, load: float) -> None:
        """Keep the best."""
        self._push.tell(allocation, load, allocation in self._proposed)


class Random:
    """Independent random sparsities for all groups, scaled to a total above the best.

    Args:
        grid: The layers' levels.
        groups: Group -> layers.
        seed: Fixes the proposals.
    """

    def __init__(
        self, grid: LevelGrid, groups: Mapping[str, Sequence[str]], seed: int | Sequence[int]
    ) -> None:
        self._grid, self._groups, self._rng = grid, groups, np.random.default_rng(seed)
        self._push = _Push(grid)
        self._proposed: set[Allocation] = set()

    def propose(self) -> Allocation:
        """A fresh draw."""
        grid, wish = self._grid, dict[str, float]()
        for members in self._groups.values():
            sparsity = float(self._rng.random())
            wish |= {address: sparsity * grid.weights(address) for address in members}
        allocation = _scaled(grid, wish, self._push.target)
        self._proposed.add(allocation)
        return allocation

    def tell(self, allocation: Allocation, load: float) -> None:
        """Keep the best."""
        self._push.tell(allocation, load, allocation in self._proposed)


class Tpe:
    """Optuna's tree-structured Parzen estimator, constrained, by ask and tell: one sparsity a group.

    What others found is given to it as finished trials.

    Args:
        grid: The layers' levels.
        groups: Group -> layers.
        seed: Fixes the proposals.
    """

    def __init__(self, grid: LevelGrid, groups: Mapping[str, Sequence[str]], seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna: Any = optuna
        self._grid, self._groups = grid, groups
        sampler = optuna.samplers.TPESampler(seed=seed)
        self._study: Any = optuna.create_study(direction="maximize", sampler=sampler)
        self._space = {g: optuna.distributions.FloatDistribution(0.0, grid.cap) for g in groups}
        self._open: dict[Allocation, list[Any]] = {}

    def propose(self) -> Allocation:
        """Optuna's next point."""
        trial = self._study.ask(self._space)
        grid = self._grid
        allocation = Allocation(
            {
                a: grid.level_for(a, trial.params[group])
                for group, members in self._groups.items()
                for a in members
            }
        )
        self._open.setdefault(allocation, []).append(trial)
        return allocation

    def tell(self, allocation: Allocation, load: float) -> None:
        """Finish a trial, or add what another strategy found."""
        load, zeros = min(load, 1e6), float(self._grid.zeros(allocation))
        if waiting := self._open.get(allocation):
            trial = waiting.pop(0)
            trial.set_constraint("load", load - 1.0)
            self._study.tell(trial, zeros)
            return
        parameters = {}
        for group, members in self._groups.items():
            zeros_of = sum(self._grid.zeros_at(a, allocation[a]) for a in members)
            size = sum(self._grid.weights(a) for a in members)
            parameters[group] = min(zeros_of / size, self._grid.cap)
        self._study.add_trial(
            self._optuna.trial.create_trial(
                params=parameters, distributions=self._space, value=zeros, constraints={"load": load - 1.0}
            )
        )  # fmt: skip


EVOPRESS_OFFSPRING = 64
EVOPRESS_SURVIVORS = (8, 2, 1)


Stage = tuple[int, list[Allocation]]


def evopress(
    grid: LevelGrid, start: Allocation, seed: int | Sequence[int], push: bool = True
) -> Generator[Stage, Sequence[float], None]:
    """EvoPress's published procedure, generation after generation without end.

    Published it minimises a loss at a fixed total. To find the sparsest allocation inside a budget, the total is
    raised after a generation whose survivor has a load of at most 1, and eased towards the best after two without.

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

    64 offspring by 1 to 3 level switches (the total stays exact) are measured on the cheapest stage, 8 are kept and
    measured on the next, then 2; the parent re-enters the last stage. All candidates of a stage share their data.

    Source: Sieberling et al., "EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary Search" (ICML
    2025), algorithm 1 and its settings for unstructured sparsity.
    """
    pool = [switched(grid, parent, rng, int(rng.integers(1, 4))) for _ in range(EVOPRESS_OFFSPRING)]
    loss = math.inf
    for stage, survivors in enumerate(EVOPRESS_SURVIVORS):
        if stage == len(EVOPRESS_SURVIVORS) - 1:
            pool = [*pool, parent]
        pool = list(dict.fromkeys(pool))
        losses = yield stage, pool
        order = sorted(range(len(pool)), key=lambda i: (losses[i], i))
        pool, loss = [pool[i] for i in order[:survivors]], losses[order[0]]
    return pool[0], loss


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
    return _scaled(grid, {a: float(grid.zeros_at(a, level)) for a, level in allocation.items()}, zeros)


def _scaled(grid: LevelGrid, wish: Mapping[str, float], zeros: int) -> Allocation:
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
