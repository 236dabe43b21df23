"""Sensitivity curves: how a group's damage grows with its sparsity, from a few measured points.

The model. Removing the smallest share s of normally distributed weights removes the share E(s) of their energy, and
the damage of a group is close to a power of it: log damage = a + b·log E(s) + residual. On the bundled pipeline's
layers b lies around 1.7 and the residual below 0.2 in half of them, over up to eight decades of damage, so two or
three measured points say what seven said before. Residuals are correlated between near sparsities; together this is
a Gaussian process on (log E, log damage), and its posterior is the curve with its uncertainty. The constants below are
its maximum-likelihood fit, rounded, to 80 layers of the bundled pipeline. `check_curves` tests it on any study.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from raysense.allocation import Allocation, LevelGrid

Floats = npt.NDArray[np.float64]

SLOPE, SLOPE_SD = 1.74, 0.25
"""Prior of b: how damage follows the removed energy."""

RESIDUAL_SD, RESIDUAL_REACH = 1.2, 13.0
"""Standard deviation of the residual, in units of log damage, and the distance in log E over which it fades."""

POINT_SD = 0.03
"""What a single measured log damage scatters, levels being whole and prompts few."""

_LEVEL_SD = 10.0
_LOWEST_OF_INTEREST = 0.15
_LEAST = 1e-12


def removed_energy(sparsity: Floats) -> Floats:
    """Share of the energy in the smallest `sparsity` share of normally distributed weights.

    With q the normal quantile of (1 + s) / 2: E(s) = s - 2·q·φ(q).
    """
    s = np.clip(np.asarray(sparsity, dtype=np.float64), 0.0, 1.0 - 1e-12)
    q = ndtri((1 + s) / 2)
    density = np.exp(-0.5 * q * q) / math.sqrt(2 * math.pi)
    return np.clip(s - 2 * q * density, _LEAST, 1.0)


def sparsity_removing(energy: float) -> float:
    """The sparsity s at which E(s) is `energy`."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if removed_energy(np.array(middle)) < energy else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Curve:
    """How one group's damage grows with its zeros, the rest being dense.

    Attributes:
        group: The group's address.
        sparsity: Measured sparsities of the group, ascending, from 0.
        zeros: Zeros at these sparsities.
        damage: Damage at these sparsities, from 0; any unit in which damages of groups may be added.
    """

    group: str
    sparsity: tuple[float, ...]
    zeros: tuple[int, ...]
    damage: tuple[float, ...]

    def predict(self, sparsity: Sequence[float] | Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of log damage at sparsities above 0."""
        x = np.log(removed_energy(np.asarray(self.sparsity[1:])))
        y = np.log(np.maximum(np.asarray(self.damage[1:]), _LEAST))
        at = np.log(removed_energy(np.asarray(sparsity, dtype=np.float64)))
        if not len(x):
            return np.full(len(at), math.log(_LEAST)), np.full(len(at), _LEVEL_SD)
        centre = float(x.mean())
        level = float(y.mean())
        across = _covariance(at, x, centre)
        weights = np.linalg.solve(_covariance(x, x, centre) + POINT_SD**2 * np.eye(len(x)), across.T).T
        mean = level + SLOPE * (at - centre) + weights @ (y - level - SLOPE * (x - centre))
        variance = np.diag(_covariance(at, at, centre)) - (weights * across).sum(axis=1)
        return mean, np.sqrt(np.maximum(variance, 0.0))

    def refined(self, points: int = 24) -> Curve:
        """The curve at `points` even sparsities: the expected damage, which never falls.

        Pruning more never earns credit; where the curve is uncertain, the expectation is above the median.
        """
        if len(self.sparsity) < 2:
            return self
        s = np.linspace(0.0, self.sparsity[-1], points)
        mean, sd = self.predict(s[1:])
        expected = np.exp(mean + np.minimum(sd, 1.0) ** 2 / 2)
        damage = np.concatenate([[0.0], np.maximum.accumulate(expected)])
        zeros = s / self.sparsity[-1] * self.zeros[-1]
        return Curve(
            self.group, tuple(s.tolist()), tuple(int(z) for z in zeros.round()), tuple(damage.tolist())
        )


@dataclass(frozen=True)
class CurveCheck:
    """Leave-one-out test of the curve model on measured points.

    Attributes:
        points: Points left out and predicted from the others of their group.
        error: Median absolute error of log damage.
        coverage: Share of the points inside the model's 95 % interval.
    """

    points: int
    error: float
    coverage: float


def least_known(curve: Curve, nothing: float, hopeless: float) -> tuple[float, float]:
    """Where the curve is least certain among the sparsities that could be chosen: (sparsity, log standard deviation).

    Looked at are the middles (in log E) between measured points, and one below the first. Left out are stretches
    where even the upper end does nothing, or where even the lower end leaves nothing of the group's work.
    """
    best = (0.0, 0.0)
    edges = [_LOWEST_OF_INTEREST, *(s for s in curve.sparsity[1:] if s > _LOWEST_OF_INTEREST)]
    damage = dict(zip(curve.sparsity, curve.damage, strict=True))
    for low, high in itertools.pairwise(edges):
        if damage[high] < nothing or damage.get(low, 0.0) > hopeless:
            continue
        energies = removed_energy(np.array([low, high]))
        middle = sparsity_removing(float(np.sqrt(energies.prod())))
        sd = float(curve.predict([middle])[1][0])
        if sd > best[1]:
            best = (middle, sd)
    return best


def check_curves(curves: Sequence[Curve]) -> CurveCheck | None:
    """Predict every point but the heaviest of every curve that has three from its other points; None if none has."""
    errors, inside = [], []
    for curve in curves:
        for left in range(1, len(curve.damage) - 1):
            if curve.damage[left] <= 0 or len(curve.damage) < 4:
                continue
            rest = [i for i in range(len(curve.damage)) if i != left]
            mean, sd = Curve(
                curve.group,
                tuple(curve.sparsity[i] for i in rest),
                tuple(curve.zeros[i] for i in rest),
                tuple(curve.damage[i] for i in rest),
            ).predict([curve.sparsity[left]])
            error = abs(float(mean[0]) - math.log(curve.damage[left]))
            errors.append(error)
            inside.append(error <= 1.96 * math.hypot(float(sd[0]), POINT_SD))
    if not errors:
        return None
    return CurveCheck(len(errors), float(np.median(errors)), float(np.mean(inside)))


def _covariance(a: Floats, b: Floats, centre: float) -> Floats:
    distance = np.abs(a[:, None] - b[None, :])
    slope = SLOPE_SD**2 * (a[:, None] - centre) * (b[None, :] - centre)
    residual = RESIDUAL_SD**2 * np.exp(-distance / RESIDUAL_REACH)
    return np.asarray(_LEVEL_SD**2 + slope + residual)


def damages_of(
    curves: Sequence[Curve], groups: Mapping[str, Sequence[str]], grid: LevelGrid
) -> Callable[[Allocation], list[float]]:
    """What curves say of an allocation: allocation -> each curve's damage at the zeros of its group, in their order.

    Args:
        curves: Read on the straight lines between their points.
        groups: Group -> its layers.
        grid: The layers' levels.
    """

    def damages(allocation: Allocation) -> list[float]:
        zeros = [sum(grid.zeros_at(a, allocation[a]) for a in groups[c.group]) for c in curves]
        return [float(np.interp(z, c.zeros, c.damage)) for z, c in zip(zeros, curves, strict=True)]

    return damages
