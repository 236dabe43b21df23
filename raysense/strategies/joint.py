"""The joint search: learns what the probe gets wrong about each group, and solves anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from raysense.allocation import Allocation, LevelGrid
from raysense.strategies.proposers import LEAST_GROWTH, MOST_GROWTH, switched

_Floats = npt.NDArray[np.float64]

Solve = Callable[[int, Mapping[str, float]], Allocation]
"""Wanted zeros and factors on the groups' damages -> the solver's allocation."""

FACTOR_SD = 0.5
"""Prior standard deviation of the factors between a group's probe curve and its share of the utilisation, relatively:
one common to a component and one of the group's own, each."""

UTILISATION_SD = 0.1
"""How far a measured utilisation is from the additive model, relatively, beside its own noise."""

TOTALS = 12
"""Totals above the best that are weighed up for each proposal, closer together near the best."""

_FAR = 4.0  # utilisations beyond this lie past the cliff, where nothing adds up
_LEAST_FACTOR = 0.1


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
        self._rows: list[_Floats] = []
        self._utilisations: list[float] = []
        self._proposed: set[Allocation] = set()
        self._number = 0
        names = [group.split(":")[0] for group in self._groups]
        _, self._component = np.unique(names, return_inverse=True)
        same = (self._component[:, None] == self._component[None, :]).astype(float)
        self._prior = FACTOR_SD**2 * (np.eye(len(names)) + same)

    def propose(self) -> Allocation:
        """The solver's answer to known or sampled factors, at the total with the largest expected improvement."""
        self._number += 1
        known = self._posterior()
        sampled = self._number % 2 == 0  # by turns what is known and what might be
        factors = _floored(self._sampled(known) if sampled else known.mean, known)
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
        if math.isfinite(utilisation) and utilisation <= _FAR:
            self._rows.append(np.asarray(self._damages(allocation), dtype=np.float64))
            self._utilisations.append(max(utilisation, 0.0))

    def _totals(self) -> list[int]:
        """What to choose the next total from: a little above the best and on."""
        most = self._grid.max_zeros
        if not self._best:
            return [int(most * (number / TOTALS) ** 2) for number in range(1, TOTALS + 1)]
        growth = LEAST_GROWTH + (MOST_GROWTH - LEAST_GROWTH) * np.linspace(0, 1, TOTALS) ** 2
        return sorted({min(int(self._best * (1 + share)), most) for share in growth})

    def _weights(self, factors: _Floats) -> dict[str, float]:
        return dict(zip(self._groups, (factors / factors.mean()).tolist(), strict=True))

    def _chance(self, known: _Posterior, allocation: Allocation, factors: _Floats) -> float:
        """The probability that an allocation's utilisation is at most 1, if these are the factors."""
        row = np.asarray(self._damages(allocation), dtype=np.float64)
        expected = float(row @ factors)
        return float(ndtr((1 - expected) / self._sd(known, row, expected)))

    def _sd(self, known: _Posterior, row: _Floats, utilisation: float) -> float:
        """The standard deviation of a predicted utilisation, that of the factors and of the model."""
        prior = known.scale**2 * (self._prior @ row)
        variance = float(row @ prior - (row @ known.gain) @ (known.rows @ prior))
        return math.sqrt(max(variance, 0.0) + (UTILISATION_SD * max(utilisation, 0.3)) ** 2)

    def _posterior(self) -> _Posterior:
        """What the measured utilisations say about the factors."""
        rows, utilisations = np.array(self._rows).reshape(-1, len(self._groups)), np.array(self._utilisations)
        sums = rows.sum(axis=1)
        rows, utilisations, sums = rows[sums > 0], utilisations[sums > 0], sums[sums > 0]
        # The scale between probe and utilisation is read off the utilisations nearest to the bound.
        near = np.argsort(np.abs(utilisations - 1))[:5]
        scale = float(np.median(utilisations[near] / sums[near])) if len(near) else 0.0
        if scale <= 0:
            rows, utilisations, scale = rows[:0], utilisations[:0], 1.0
        noise = UTILISATION_SD * np.maximum(utilisations, 0.3)
        seen = scale**2 * (rows @ self._prior)
        gain = np.linalg.solve(seen @ rows.T + np.diag(noise**2), seen).T
        mean = scale + gain @ (utilisations - scale * rows.sum(axis=1))
        return _Posterior(scale, rows, utilisations, noise, gain, mean)

    def _sampled(self, known: _Posterior) -> _Floats:
        """Factors from the posterior: some from the prior, corrected by what was measured (Matheron's rule)."""
        common = self._rng.standard_normal(int(self._component.max()) + 1)
        own = self._rng.standard_normal(len(self._groups))
        drawn = known.scale * (1 + FACTOR_SD * (own + common[self._component]))
        utilisations = known.rows @ drawn + known.noise * self._rng.standard_normal(len(known.noise))
        return np.asarray(drawn + known.gain @ (known.utilisations - utilisations))


@dataclass(frozen=True)
class _Posterior:
    """The Gaussian posterior of the factors: prior mean `scale`, prior covariance `scale²` times the prior's.

    Attributes:
        scale: Between probe and utilisation.
        rows: (measured, groups) damages.
        utilisations: (measured,).
        noise: (measured,) standard deviations of the utilisations.
        gain: (groups, measured) how the factors follow the utilisations.
        mean: (groups,) the factors.
    """

    scale: float
    rows: _Floats
    utilisations: _Floats
    noise: _Floats
    gain: _Floats
    mean: _Floats


def _floored(factors: _Floats, known: _Posterior) -> _Floats:
    """Factors that are not far below the mean: none makes a group's damage free."""
    return np.asarray(np.maximum(factors, _LEAST_FACTOR * max(float(known.mean.mean()), 1e-12)))
