"""What a test on held-out prompts would say of an allocation that nobody tested, from candidates that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from raysense.metrics.intervals import quantile
from raysense.strategies.surrogate import FAR, Floats, Posterior, posterior_of, prior_of

SHARED = 0.5
"""Share of the variance of measuring that candidates on the same prompts have in common: some prompts suffer from any
pruning. Of the default study's rows two candidates' drops correlate by .1 to .99 over prompts, median .55."""

NORMAL = 1.96
_LEAST_WIDTH = 1e-9


@dataclass(frozen=True)
class Seen:
    """A measured candidate.

    Attributes:
        damages: (groups,) by their probe curves.
        value: Share of the budget that it used by its values.
        width: What the reported interval's worse end adds to that.
        prompts: How many it was measured on.
        rung: Rung; candidates of one rung share their prompts.
    """

    damages: Floats
    value: float
    width: float
    prompts: int
    rung: str


class Forecast(NamedTuple):
    """Utilisation of the budget by the worse end of a test's interval.

    Attributes:
        expected: The prediction.
        ci_low: Lower end of its 95 % interval.
        ci_high: Upper end.
    """

    expected: float
    ci_low: float
    ci_high: float


class HeldOutForecast:
    """The joint search's surrogate, learnt from values, and how wide a test's interval is at a value.

    A candidate's utilisation by its values is the additive model's (see `raysense.strategies.surrogate`), measured with
    an error that its interval tells, partly common to all on the same prompts. The interval's half-width is modelled as
    ``w² = a + b · value``: quiet images differ a little, damaged ones more. What a test's worse end says is then
    ``value + stretch · w``, with the value uncertain by the factors, by the model and by the test's own prompts.

    Args:
        groups: The groups' addresses.
        seen: Candidates.
        prompts: Of the test.
        stretch: How many times wider than the reported interval the one is that must clear the bounds.
    """

    def __init__(self, groups: Sequence[str], seen: Sequence[Seen], prompts: int, stretch: float) -> None:
        near = [row for row in seen if row.value <= FAR]
        self._stretch = stretch
        self._quantile = quantile(prompts - 1)
        errors = np.array([row.width / quantile(row.prompts - 1) for row in near])
        rungs = np.array([row.rung for row in near], dtype=str)
        mixed = SHARED * (rungs[:, None] == rungs[None, :]) + (1 - SHARED) * np.eye(len(near))
        self._known: Posterior = posterior_of(
            [row.damages for row in near],
            [max(row.value, 0.0) for row in near],
            prior_of(groups),
            np.outer(errors, errors) * mixed,
        )
        self.factors: Floats = self._known.floored(self._known.mean)
        values = np.array([max(row.value, 0.0) for row in near])
        # A mean's interval shrinks with the root of the number of prompts; a set's distance faster, so this is safe.
        squares = np.array([row.width**2 * row.prompts / prompts for row in near])
        self._squared = _line(values, squares)

    def of(self, damages: Floats) -> Forecast:
        """What a test would say.

        Args:
            damages: (groups,) of the allocation.
        """
        value = float(damages @ self.factors)
        test = self._width(value) / self._quantile
        sd = float(np.hypot(self._known.sd(damages, value), test))
        reach = NORMAL * sd
        low, middle, high = (
            v + self._stretch * self._width(v) for v in (value - reach, value, value + reach)
        )
        return Forecast(middle, low, high)

    def _width(self, value: float) -> float:
        quiet, loud = self._squared
        return float(np.sqrt(quiet + loud * max(value, 0.0)))


def _line(values: Floats, squares: Floats) -> tuple[float, float]:
    """Intercept and slope, neither negative, of squared widths over values; errors count relatively."""
    if not len(values):
        return 0.0, 0.0
    weight = 1 / np.maximum(squares, _LEAST_WIDTH)
    found, _ = nnls(np.stack([weight, values * weight], axis=1), np.maximum(squares, _LEAST_WIDTH) * weight)
    return float(found[0]), float(found[1])
