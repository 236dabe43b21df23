"""What candidates' utilisations say about the groups: an additive model on the probe curves, learnt in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FACTOR_SD = 0.5
"""Prior standard deviation of the factors between a group's probe curve and its share of the utilisation, relatively:
one common to a component and one of the group's own, each."""

UTILISATION_SD = 0.1
"""How far a measured utilisation is from the additive model, relatively, beside its own noise."""

FAR = 4.0
"""Utilisations beyond this lie past the cliff, where nothing adds up."""

_SMALL = 0.3  # below this utilisation the misfit is no smaller any more
_LEAST_FACTOR = 0.1


@dataclass(frozen=True)
class Posterior:
    """The Gaussian posterior of the factors: prior mean `scale`, prior covariance `scale²` times the prior's.

    Attributes:
        scale: Between probe and utilisation.
        rows: (measured, groups) damages.
        utilisations: (measured,).
        noise: (measured,) standard deviations of the utilisations from the model, without errors of measuring.
        prior: (groups, groups) covariance of the factors for a scale of 1.
        gain: (groups, measured) how the factors follow the utilisations.
        mean: (groups,) the factors.
    """

    scale: float
    rows: Floats
    utilisations: Floats
    noise: Floats
    prior: Floats
    gain: Floats
    mean: Floats

    def floored(self, factors: Floats) -> Floats:
        """Factors that are not far below the mean: none makes a group's damage free."""
        return np.asarray(np.maximum(factors, _LEAST_FACTOR * max(float(self.mean.mean()), 1e-12)))

    def sd(self, row: Floats, utilisation: float) -> float:
        """The standard deviation of a predicted utilisation, that of the factors and of the model."""
        prior = self.scale**2 * (self.prior @ row)
        variance = float(row @ prior - (row @ self.gain) @ (self.rows @ prior))
        return math.sqrt(max(variance, 0.0) + (UTILISATION_SD * max(utilisation, _SMALL)) ** 2)


def components_of(groups: Sequence[str]) -> npt.NDArray[np.intp]:
    """The number of each group's component."""
    return np.asarray(np.unique([group.split(":")[0] for group in groups], return_inverse=True)[1])


def prior_of(groups: Sequence[str]) -> Floats:
    """(groups, groups): covariance of the factors before anything is measured, for a scale of 1."""
    component = components_of(groups)
    same = (component[:, None] == component[None, :]).astype(float)
    return np.asarray(FACTOR_SD**2 * (np.eye(len(groups)) + same))


def posterior_of(
    rows: Sequence[Floats], utilisations: Sequence[float], prior: Floats, errors: Floats | None = None
) -> Posterior:
    """What the measured utilisations say about the factors.

    Args:
        rows: Damages of all groups by their probe curves, one array (groups,) a candidate.
        utilisations: Of the candidates.
        prior: See `prior_of`.
        errors: (measured, measured) covariance of the errors of measuring; none without.
    """
    known, used = np.array(rows).reshape(-1, len(prior)), np.array(utilisations)
    sums = known.sum(axis=1)
    some = sums > 0
    # The scale between probe and utilisation is read off the utilisations nearest to the bound.
    near = np.argsort(np.abs(used[some] - 1))[:5]
    scale = float(np.median(used[some][near] / sums[some][near])) if len(near) else 0.0
    if scale <= 0:
        some, scale = np.zeros(len(used), dtype=bool), 1.0
    known, used = known[some], used[some]
    noise = UTILISATION_SD * np.maximum(used, _SMALL)
    off = np.diag(noise**2)
    if errors is not None:
        off = off + errors[np.ix_(some, some)]
    seen = scale**2 * (known @ prior)
    gain = np.linalg.solve(seen @ known.T + off, seen).T
    mean = scale + gain @ (used - scale * known.sum(axis=1))
    return Posterior(scale, known, used, noise, prior, gain, mean)
