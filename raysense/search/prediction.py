"""What a test on held-out prompts would say of a total that nobody tested, from candidates that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls
from scipy.special import ndtr

from raysense.metrics.intervals import LEVEL, quantile

Floats = npt.NDArray[np.float64]

SHARED = 0.75
"""Share of the variance of measuring that candidates on the same prompts have in common: the drops of the solver's and
the joint search's candidates correlate over the prompts by .61 to .88 (medians of four studies of the bundled beds)."""

EXPONENTS = np.geomspace(0.5, 5, 24)
USUAL_EXPONENT, EXPONENT_SD = 1.5, 0.5
"""Prior of the exponent: lognormal, with this median and this standard deviation of the logarithm."""

MISFITS = np.array([0.05, 0.1, 0.2, 0.4])
"""Relative standard deviations of a candidate from the curve, beside its error of measuring; equally likely."""

OTHERS = 0.5
"""Relative standard deviation, common to all of them, of candidates that were not shared out as the test is."""

FAR = 4.0
"""Candidates that use more of the budget lie past the cliff and are left out."""

_LEVELS = np.geomspace(0.005, 2 * FAR, 60)
_LEAST = 1e-9


@dataclass(frozen=True)
class Seen:
    """A measured candidate.

    Attributes:
        damage: Sum over the groups by their curves.
        value: Share of the budget that it used by its values.
        width: What the reported interval's worse end adds to that.
        prompts: How many it was measured on.
        rung: Rung; candidates of one rung share their prompts.
        alike: Whether its zeros were shared out over the layers as the test's are.
    """

    damage: float
    value: float
    width: float
    prompts: int
    rung: str
    alike: bool = True


class Forecast(NamedTuple):
    """Utilisation of the budget by the worse end of a test's interval.

    Attributes:
        expected: The prediction, a median.
        ci_low: Lower end of its 95 % interval.
        ci_high: Upper end.
    """

    expected: float
    ci_low: float
    ci_high: float


class HeldOutForecast:
    """A curve from the groups' summed damage to a test's utilisation of the budget, and how far off it may be.

    By its values a candidate uses ``level · (damage / usual damage)^exponent`` of the budget, up to a relative misfit
    and an error of measuring. The error follows from its interval. What the prompts of a rung add to it is in part
    common to all candidates on them, so that those tested on the held-out prompts also say what these will add to the
    next test; what sets candidates of another kind off is common to all of these. Level, exponent and misfit are
    averaged over a grid, each weighed by how well it explains the candidates. An interval's half-width is modelled as
    ``w² = a + b · value``: quiet images differ a little, damaged ones more. What the worse end says is
    ``value + stretch · w``.

    Args:
        seen: Candidates; those without damage, or past the cliff, say nothing.
        prompts: Of the test.
        stretch: How many times wider than the reported interval the one is that must clear the bounds.
    """

    def __init__(self, seen: Sequence[Seen], prompts: int, stretch: float) -> None:
        near = [row for row in seen if row.value <= FAR and row.damage > 0]
        self._stretch, self._quantile = stretch, quantile(prompts - 1)
        values = np.array([row.value for row in near])
        errors = np.array([row.width / quantile(row.prompts - 1) for row in near])
        # A mean's interval shrinks with the root of the number of prompts; a set's distance faster, so this is safe.
        squares = np.array([row.width**2 * row.prompts / prompts for row in near])
        self._squared = _line(np.maximum(values, 0.0), squares)
        logs = np.log([row.damage for row in near])
        self._usual = float(logs.mean()) if near else 0.0
        level, exponent, misfit = (a.ravel() for a in np.meshgrid(_LEVELS, EXPONENTS, MISFITS, indexing="ij"))
        curves = level[:, None] * np.exp(exponent[:, None] * (logs - self._usual))

        rungs = np.array([row.rung for row in near], dtype=str)
        common = SHARED * (rungs[:, None] == rungs[None, :]) + (1 - SHARED) * np.eye(len(near))
        spread = np.einsum("ki,ij->kij", (misfit[:, None] * curves) ** 2, np.eye(len(near)))
        others = curves * np.array([OTHERS * (not row.alike) for row in near])
        spread += others[:, :, None] * others[:, None, :]
        root = np.linalg.cholesky(spread + np.outer(errors, errors) * common + _LEAST * np.eye(len(near)))
        missed = np.linalg.solve(root, (values - curves)[:, :, None])[:, :, 0]
        held = np.linalg.solve(
            root, np.broadcast_to((errors * (rungs == "validation"))[:, None], (*curves.shape, 1))
        )
        held = held[:, :, 0]
        explained = -0.5 * (missed**2).sum(axis=1) - np.log(np.diagonal(root, axis1=1, axis2=2)).sum(axis=1)
        explained -= 0.5 * (np.log(exponent / USUAL_EXPONENT) / EXPONENT_SD) ** 2
        weights = np.exp(explained - explained.max())
        kept = weights > _LEAST * weights.sum()
        self._weights = weights[kept] / weights[kept].sum()
        self._level, self._exponent, self._misfit = level[kept], exponent[kept], misfit[kept]
        self._moved, self._known = (held * missed).sum(axis=1)[kept], (held**2).sum(axis=1)[kept]

    def of(self, damage: float) -> Forecast:
        """What a test would say of a total with so much damage by the curves; more than 0."""
        curve = self._level * np.exp(self._exponent * (np.log(damage) - self._usual))
        error = self._widths(curve) / self._quantile
        mean = curve + SHARED * error * self._moved
        left = error**2 * np.maximum(1 - SHARED**2 * self._known, 0.0)
        sd = np.sqrt(left + (self._misfit * curve) ** 2 + _LEAST)
        ends = (
            _quantile(share, self._weights, mean, sd) for share in (0.5, (1 - LEVEL) / 2, (1 + LEVEL) / 2)
        )
        return Forecast(*(v + self._stretch * float(self._widths(np.array(v))) for v in ends))

    def _widths(self, values: Floats) -> Floats:
        """Half of a test's interval at values."""
        quiet, loud = self._squared
        return np.asarray(np.sqrt(quiet + loud * np.maximum(values, 0.0)))


def _line(values: Floats, squares: Floats) -> tuple[float, float]:
    """Intercept and slope, neither negative, of squared widths over values; errors count relatively."""
    if not len(values):
        return 0.0, 0.0
    weight = 1 / np.maximum(squares, _LEAST)
    found, _ = nnls(np.stack([weight, values * weight], axis=1), np.maximum(squares, _LEAST) * weight)
    return float(found[0]), float(found[1])


def _quantile(share: float, weights: Floats, means: Floats, sds: Floats) -> float:
    """Of a mixture of normal distributions."""
    low, high = float((means - 8 * sds).min()), float((means + 8 * sds).max())
    for _ in range(60):
        middle = (low + high) / 2
        if float(weights @ ndtr((middle - means) / sds)) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2
