"""Strategies that learn, to be compared with: level switches, random search, TPE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raysense.allocation import Allocation, LevelGrid
from raysense.strategies.proposers import Push, scaled, scaled_to, switched


class Switches:
    """Level switches from the best so far, which is then pushed: EvoPress's mutation, steady-state.

    Args:
        grid: The layers' levels.
        seed: Fixes the proposals.
    """

    def __init__(self, grid: LevelGrid, seed: int | Sequence[int]) -> None:
        self._grid, self._rng, self._push = grid, np.random.default_rng(seed), Push(grid)
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

    def tell(self, allocation: Allocation, utilisation: float) -> None:
        """Keep the best."""
        self._push.tell(allocation, utilisation, allocation in self._proposed)


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
        self._push = Push(grid)
        self._proposed: set[Allocation] = set()

    def propose(self) -> Allocation:
        """A fresh draw."""
        grid, wish = self._grid, dict[str, float]()
        for members in self._groups.values():
            sparsity = float(self._rng.random())
            wish |= {address: sparsity * grid.weights(address) for address in members}
        allocation = scaled_to(grid, wish, self._push.target)
        self._proposed.add(allocation)
        return allocation

    def tell(self, allocation: Allocation, utilisation: float) -> None:
        """Keep the best."""
        self._push.tell(allocation, utilisation, allocation in self._proposed)


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
        self._space = {
            g: optuna.distributions.FloatDistribution(0.0, grid.max_layer_sparsity) for g in groups
        }
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

    def tell(self, allocation: Allocation, utilisation: float) -> None:
        """Finish a trial, or add what another strategy found."""
        utilisation, zeros = min(utilisation, 1e6), float(self._grid.zeros(allocation))
        if waiting := self._open.get(allocation):
            trial = waiting.pop(0)
            trial.set_constraint("utilisation", utilisation - 1.0)
            self._study.tell(trial, zeros)
            return
        parameters = {}
        for group, members in self._groups.items():
            zeros_of = sum(self._grid.zeros_at(a, allocation[a]) for a in members)
            size = sum(self._grid.weights(a) for a in members)
            parameters[group] = min(zeros_of / size, self._grid.max_layer_sparsity)
        self._study.add_trial(
            self._optuna.trial.create_trial(
                params=parameters, distributions=self._space, value=zeros,
                constraints={"utilisation": utilisation - 1.0}
            )
        )  # fmt: skip
