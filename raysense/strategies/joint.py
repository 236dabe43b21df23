"""The joint search: learns what the probe gets wrong about each group, and solves anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.special import ndtr

from raysense.allocation import Allocation, LevelGrid
from raysense.strategies.proposers import LEAST_GROWTH, MOST_GROWTH, switched
from raysense.strategies.surrogate import (
    FACTOR_SD,
    FAR,
    Floats,
    Posterior,
    components_of,
    posterior_of,
    prior_of,
)

Solve = Callable[[int, Mapping[str, float]], Allocation]
"""Wanted zeros and factors on the groups' damages -> the solver's allocation."""

TOTALS = 12
"""Totals above the best that are weighed up for each proposal, closer together near the best."""


class JointProposer:
    """Raysense's joint search: learns what the probe gets wrong about each group, and solves anew.

    The utilisation of an allocation is modelled as a sum over groups, ``sum_g θ_g · d_g(x_g)``, with d the measured
    probe curves and a Gaussian prior on the factors θ, correlated within a component. Measured utilisations, those of
    allocation rules included, update it in closed form. The mean of the posterior and a sample from it (Thompson
    1933) go to the solver by turns as weights. The total is the one with the largest expected improvement: what it
    exceeds the best by, times the probability that its utilisation is at most 1 (Schonlau, Welch & Jones, "Global
    versus local search in constrained optimization of computer models", 1998). Where a proposal repeats itself, levels
    are switched between a few layers. The sum is only a surrogate: what is kept has been measured.

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
        self._best = 0
        self._rows: list[Floats] = []
        self._utilisations: list[float] = []
        self._proposed: set[Allocation] = set()
        self._number = 0
        self._component = components_of(self._groups)
        self._prior = prior_of(self._groups)

    def propose(self) -> Allocation:
        """The solver's answer to known or sampled factors, at the total with the largest expected improvement."""
        self._number += 1
        known = posterior_of(self._rows, self._utilisations, self._prior)
        sampled = self._number % 2 == 0  # by turns what is known and what might be
        factors = known.floored(self._sampled(known) if sampled else known.mean)
        weights = self._weights(factors)
        # Where nothing says where the bound is: the least total.
        totals = self._totals() if len(known.rows) else self._totals()[:1]
        choices = [self._solve(total, weights) for total in totals]
        improvements = [
            (total - self._best) * self._chance(known, choice, factors)
            for total, choice in zip(totals, choices, strict=True)
        ]
        allocation = choices[int(np.argmax(improvements))]
        if allocation in self._proposed:
            allocation = switched(self._grid, allocation, self._rng, 3)
        self._proposed.add(allocation)
        return allocation

    def tell(self, allocation: Allocation, utilisation: float) -> None:
        """Update the surrogate and the best."""
        if utilisation <= 1:
            self._best = max(self._best, self._grid.zeros(allocation))
        if math.isfinite(utilisation) and utilisation <= FAR:
            self._rows.append(np.asarray(self._damages(allocation), dtype=np.float64))
            self._utilisations.append(max(utilisation, 0.0))

    def _totals(self) -> list[int]:
        """What to choose the next total from: a little above the best and on."""
        most = self._grid.max_zeros
        if not self._best:
            return [int(most * (number / TOTALS) ** 2) for number in range(1, TOTALS + 1)]
        growth = LEAST_GROWTH + (MOST_GROWTH - LEAST_GROWTH) * np.linspace(0, 1, TOTALS) ** 2
        return sorted({min(int(self._best * (1 + share)), most) for share in growth})

    def _weights(self, factors: Floats) -> dict[str, float]:
        return dict(zip(self._groups, (factors / factors.mean()).tolist(), strict=True))

    def _chance(self, known: Posterior, allocation: Allocation, factors: Floats) -> float:
        """The probability that an allocation's utilisation is at most 1, if these are the factors."""
        row = np.asarray(self._damages(allocation), dtype=np.float64)
        expected = float(row @ factors)
        return float(ndtr((1 - expected) / known.sd(row, expected)))

    def _sampled(self, known: Posterior) -> Floats:
        """Factors from the posterior: some from the prior, corrected by what was measured (Matheron's rule)."""
        common = self._rng.standard_normal(int(self._component.max()) + 1)
        own = self._rng.standard_normal(len(self._groups))
        drawn = known.scale * (1 + FACTOR_SD * (own + common[self._component]))
        utilisations = known.rows @ drawn + known.noise * self._rng.standard_normal(len(known.noise))
        return np.asarray(drawn + known.gain @ (known.utilisations - utilisations))
