"""A metric over the sparsities of text encoder and U-Net, with intervals that say how little is known of it.

The model, and all that it assumes:

1. A metric is its dense value, plus what light pruning does to it (a slope for each component up to 30 %, either way:
   light pruning *improves* FID), plus *damage*, which each component does monotonically.
2. The logarithm of a component's damage is a curve of positive slope, whose own logarithm walks at random from knot to
   knot: the curve is smooth where there are points, and the further they are the less is known of it.
3. Both components together do more than their sum, in proportion to the product.
4. A rival of magnitude moves a component's curve sideways and scales it. How much is learned where it was measured;
   where it was not (all rivals on the U-Net), the prior says it.
5. The early batch has an offset, more noise, and another idea of what a sparsity is.
6. A model beyond a threshold, or without a value, is broken. Broken models are not ordered, as damage saturates: each
   only says that the damage reaches at least the threshold (a censored value). How bad broken models are is a
   distribution of its own, of which the broken runs are the sample.
7. How far runs scatter, how far damage is off the model (a share of it) and how far slopes walk is stated, not
   learned.

The posterior is sampled by preconditioned Crank-Nicolson (Cotter et al., 2013, arXiv 1202.0709) around the mode, many
chains side by side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import least_squares
from scipy.special import log_ndtr

Floats = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]

METHODS = ("magnitude", "owl-magnitude", "wanda", "owl-wanda")
KNOTS = np.array([0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 1.0])
LIGHT = 0.3
"""Up to here pruning may improve a metric; from here on it only worsens it."""

WALK = 4.0
"""Standard deviation of a curve's log slope after a walk of one whole unit of sparsity."""

MOST_LOG_DAMAGE, NO_LOG_DAMAGE = 12.0, -50.0
COLLAPSE_RUNS = 4
"""How many broken runs the prior of how bad broken models are is worth."""


@dataclass(frozen=True)
class Metric:
    """What is known of a metric before a table is read.

    Attributes:
        name: For people.
        column: Of the table.
        sign: +1 where damage raises it.
        dense: Prior mean and standard deviation of the dense value.
        slope: Prior standard deviation of the change by light pruning, a unit of sparsity.
        offset: Prior mean and standard deviation of what the early batch is off by.
        least_damage: Prior median of the damage at the first knot.
        repeat: Standard deviation of a run around the model where nothing is damaged.
        early: The same, in addition, for the early batch.
        error: Standard deviation of the damage around the model's, as a share of it.
        broken: Where the metric counts as broken.
        collapsed: Prior of a broken model's value, and of the standard deviation on the metric's scale.
        limit: Beyond it no value was ever seen; the scale on which intervals are widened has its pole there.
        possible: Range of values that are no mistake.
    """

    name: str
    column: str
    sign: float
    dense: tuple[float, float]
    slope: float
    offset: tuple[float, float]
    least_damage: float
    repeat: float
    early: float
    error: float
    broken: float
    collapsed: tuple[float, float]
    limit: float
    possible: tuple[float, float]

    @property
    def whole(self) -> float:
        """Damage at which a model breaks."""
        return abs(self.broken - self.dense[0])

    def scale(self, value: Floats) -> Floats:
        """Logarithm of the distance from `limit`, strictly increasing in the metric; a cliff is a slope on it."""
        return np.asarray(self.sign * np.log(np.maximum(self.sign * (value - self.limit), 1e-6)))

    def unscale(self, scaled: Floats) -> Floats:
        return np.asarray(self.limit + self.sign * np.exp(self.sign * scaled))

    def widened(
        self, middle: Floats, low: Floats, high: Floats, factor: float | Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Median and ends, whose distances from the median are so many times as large on the scale."""
        at, below, above = self.scale(middle), self.scale(low), self.scale(high)
        return middle, self.unscale(at - factor * (at - below)), self.unscale(at + factor * (above - at))

    def is_broken(self, value: Floats) -> npt.NDArray[np.bool_]:
        """Beyond the threshold, or no value at all."""
        return np.asarray(np.isnan(value) | (self.sign * (value - self.broken) >= 0))


FID = Metric(
    name="fid", column="fid_10k", sign=1.0, dense=(17.0, 1.5), slope=6.0, offset=(2.0, 1.5), least_damage=0.05,
    repeat=0.6, early=1.2, error=0.2, broken=100.0, collapsed=(200.0, 0.3), limit=10.0, possible=(0.0, 1e4),
)  # fmt: skip
CLIP = Metric(
    name="clip", column="clip_vit_b32_cosine", sign=-1.0, dense=(0.315, 0.003), slope=0.015, offset=(0.0, 0.002),
    least_damage=1e-4, repeat=6e-4, early=1.5e-3, error=0.1, broken=0.22, collapsed=(0.18, 0.1), limit=0.33,
    possible=(-1.0, 1.0),
)  # fmt: skip


@dataclass(frozen=True)
class Places:
    """Rows as arrays of (n,): sparsities, methods as numbers in `METHODS`, 1 for the early batch."""

    text: Floats
    unet: Floats
    text_method: Whole
    unet_method: Whole
    early: Floats

    @classmethod
    def of(cls, table: pd.DataFrame) -> Places:
        text, unet = (table[f"{c}_sparsity"].to_numpy(dtype=np.float64) for c in ("text_encoder", "unet"))
        by_text, by_unet = (
            np.array([METHODS.index(m) if m in METHODS else 0 for m in table[f"{c}_method"]], dtype=np.int64)
            for c in ("text_encoder", "unet")
        )
        early = table["batch"] == "early" if "batch" in table else np.zeros(len(table))
        return cls(text, unet, by_text, by_unet, np.asarray(early, dtype=np.float64))

    @classmethod
    def by_magnitude(cls, text: Floats, unet: Floats) -> Places:
        """Both components by magnitude, in the main batch."""
        nothing = np.zeros(len(text))
        return cls(text, unet, nothing.astype(np.int64), nothing.astype(np.int64), nothing)


@dataclass(frozen=True)
class Unknowns:
    """What the model does not know, draw by draw, in the order in which a vector holds it.

    Attributes:
        dense: (draws,): the dense value.
        light: (draws, 2): change by light pruning, of text encoder and U-Net.
        offset: (draws,): of the early batch.
        early_shift: (draws, 2): how far its sparsities are off.
        together: (draws,): logarithm of how much both components do beyond their sum.
        shift: (draws, 2, methods): how far a method moves a component's curve.
        factor: (draws, 2, methods): logarithm of what it scales it by.
        curves: (draws, 2, 1 + knots): see `_log_damage`.
    """

    dense: Floats
    light: Floats
    offset: Floats
    early_shift: Floats
    together: Floats
    shift: Floats
    factor: Floats
    curves: Floats

    @staticmethod
    def prior(metric: Metric) -> tuple[Floats, Floats]:
        """Means and standard deviations of a vector of unknowns; steps of the slopes are in units of their walk."""
        rivals = 2 * (len(METHODS) - 1)
        curve = (math.log(metric.least_damage), 2.7, *[0.0] * (len(KNOTS) - 1))
        curve_sd = (1.5, 0.8, *(WALK * np.sqrt(np.diff(KNOTS))))
        mean = [metric.dense[0], 0.0, 0.0, metric.offset[0], 0.0, 0.0, math.log(2)]
        sd = [metric.dense[1], metric.slope, metric.slope, metric.offset[1], 0.05, 0.05, 1.0]
        mean += [0.0] * 2 * rivals + [*curve, *curve]
        sd += [0.02] * rivals + [0.5] * rivals + [*curve_sd, *curve_sd]
        return np.array(mean), np.array(sd)

    @classmethod
    def of(cls, v: Floats) -> Unknowns:
        """Reads vectors of (draws, unknowns)."""
        rivals = len(METHODS) - 1
        by_method = v[:, 7 : 7 + 4 * rivals].reshape(-1, 2, 2, rivals)
        by_method = np.concatenate([np.zeros((len(v), 2, 2, 1)), by_method], axis=3)  # magnitude: neither
        curves = v[:, 7 + 4 * rivals :].reshape(len(v), 2, -1)
        return cls(v[:, 0], v[:, 1:3], v[:, 3], v[:, 4:6], v[:, 6], by_method[:, 0], by_method[:, 1], curves)

    def predict(self, at: Places, whole: float) -> tuple[Floats, Floats]:
        """What is not damage, and the damage, of (draws, places); `whole` damage is where a model breaks."""
        logs = []
        quiet = self.dense[:, None] + self.offset[:, None] * at.early
        for i, (sparsity, method) in enumerate(((at.text, at.text_method), (at.unet, at.unet_method))):
            moved = self.shift[:, i, method] + self.early_shift[:, i, None] * at.early
            moved = np.clip(sparsity + moved * np.minimum(sparsity / LIGHT, 1), 0, 1)
            logs.append(_log_damage(moved, self.curves[:, i]) + self.factor[:, i, method])
            quiet = quiet + self.light[:, i, None] * np.minimum(sparsity, LIGHT)
        both = self.together[:, None] + logs[0] + logs[1] - math.log(whole)
        return quiet, _exp(logs[0]) + _exp(logs[1]) + _exp(both)


def _exp(log: Floats) -> Floats:
    return np.asarray(np.exp(np.minimum(log, MOST_LOG_DAMAGE)))


def _log_damage(sparsity: Floats, curves: Floats) -> Floats:
    """Curves of (draws, 1 + knots) at sparsities of (draws, places); linear between knots, nothing at no sparsity.

    A curve is its value at the first knot, the logarithm of its slope there, and the steps of that logarithm.
    """
    slopes = np.cumsum(curves[:, 1:], axis=1)
    rises = np.diff(KNOTS) * np.exp(np.clip((slopes[:, 1:] + slopes[:, :-1]) / 2, -20, 10))
    values = curves[:, :1] + np.concatenate([np.zeros((len(curves), 1)), np.cumsum(rises, axis=1)], axis=1)
    left = np.clip(np.searchsorted(KNOTS, sparsity, "right") - 1, 0, len(KNOTS) - 2)
    share = (sparsity - KNOTS[left]) / (KNOTS[left + 1] - KNOTS[left])
    low, high = np.take_along_axis(values, left, 1), np.take_along_axis(values, left + 1, 1)
    begun = NO_LOG_DAMAGE + (values[:, :1] - NO_LOG_DAMAGE) * sparsity / KNOTS[0]
    return np.asarray(np.where(sparsity < KNOTS[0], begun, low + share * (high - low)))


class Surface:
    """One metric over both sparsities: posterior draws of the model in this module's docstring.

    Args:
        metric: Which.
        table: Rows to learn from; one without a value is a broken model.
        steps: Of each Markov chain; the first third is left out.
        chains: How many, side by side.
        seed: Of the chains.
    """

    def __init__(
        self, metric: Metric, table: pd.DataFrame, steps: int = 300, chains: int = 64, seed: int = 0
    ) -> None:
        self.metric, self._seed = metric, seed
        self._mean, self._sd = Unknowns.prior(metric)
        self._places = Places.of(table)
        self._values = table[metric.column].to_numpy(dtype=np.float64)
        self._is_broken = metric.is_broken(self._values)
        self._collapse = self._collapsed()
        self._draws = Unknowns.of(self._sample(steps, chains, np.random.default_rng(seed)))

    def _collapsed(self) -> tuple[float, float, float]:
        """Mean, spread and degrees of freedom of Student's distribution of a broken model's value, on the scale."""
        metric = self.metric
        seen = metric.scale(self._values[self._is_broken & np.isfinite(self._values)])
        usual, spread = metric.scale(np.array(metric.collapsed[0])), metric.collapsed[1]
        mean = (COLLAPSE_RUNS * usual + seen.sum()) / (COLLAPSE_RUNS + len(seen))
        freedom = COLLAPSE_RUNS + len(seen)
        squares = COLLAPSE_RUNS * (spread**2 + (usual - mean) ** 2) + ((seen - mean) ** 2).sum()
        return float(mean), math.sqrt(squares / freedom * (1 + 1 / freedom)), float(freedom)

    def _residuals(self, whitened: Floats) -> Floats:
        """Of (draws, unknowns); half the sum of a row's squares is its negative log posterior."""
        metric = self.metric
        unknowns = Unknowns.of(self._mean + self._sd * whitened)
        quiet, damage = unknowns.predict(self._places, metric.whole)
        predicted = quiet + metric.sign * damage
        sd = np.sqrt(
            metric.repeat**2 + (metric.early * self._places.early) ** 2 + (metric.error * damage) ** 2
        )
        beyond = log_ndtr(metric.sign * (predicted - metric.broken) / sd)
        wide = np.log(sd / metric.repeat)  # the Gaussian's own normalisation
        return np.concatenate([
            np.where(self._is_broken, np.sqrt(np.maximum(-2 * beyond, 0.0)), (predicted - self._values) / sd),
            np.where(self._is_broken, 0.0, np.sqrt(2 * wide)),
            whitened,
        ], axis=1)  # fmt: skip

    def _slopes(self, whitened: Floats) -> Floats:
        """Jacobian of the residuals at one vector, by differences."""
        reach = 1e-5
        around = whitened + reach * np.vstack([np.eye(len(whitened)), -np.eye(len(whitened))])
        ahead, behind = np.split(self._residuals(around), 2)
        return np.asarray((ahead - behind).T / (2 * reach))

    def _sample(self, steps: int, chains: int, rng: np.random.Generator) -> Floats:
        """Draws (16 · chains, unknowns) of the posterior."""

        def residuals(whitened: Floats) -> Floats:
            return np.asarray(self._residuals(whitened[None])[0])

        mode = least_squares(residuals, np.zeros(len(self._mean)), self._slopes, max_nfev=100)
        slope = self._slopes(mode.x)
        root = np.linalg.cholesky(np.linalg.inv(slope.T @ slope))

        def energy(offsets: Floats) -> Floats:
            """Negative log posterior less that of the Gaussian around the mode, in the Gaussian's own axes."""
            residuals = self._residuals(mode.x + offsets @ root.T)
            return np.asarray(0.5 * ((residuals**2).sum(axis=1) - (offsets**2).sum(axis=1)))

        here, reach = 0.5 * rng.standard_normal((chains, len(root))), 0.25
        now = energy(here)
        kept, first = [], steps // 3
        for step in range(steps):
            there = math.sqrt(1 - reach**2) * here + reach * rng.standard_normal(here.shape)
            then = energy(there)
            taken = np.log(rng.random(chains)) < now - then
            here, now = np.where(taken[:, None], there, here), np.where(taken, then, now)
            if step < first:
                reach = min(0.9, max(0.02, reach * math.exp((float(taken.mean()) - 0.3) * 0.2)))
            else:
                kept.append(here)
        chosen = np.concatenate([kept[i] for i in np.linspace(0, len(kept) - 1, 16).astype(int)])
        return np.asarray(self._mean + self._sd * (mode.x + chosen @ root.T))

    def interval(self, at: Places, widen: float = 1.0, level: float = 0.95) -> tuple[Floats, Floats, Floats]:
        """Median and both ends, lower first, of what one run would measure there.

        A draw has the same luck everywhere, so that what is monotone in every draw is so in median and ends as well.

        Args:
            at: Where.
            widen: Factor on the distances from the median, on the metric's scale.
            level: How much of the predictive distribution is inside before it is widened.
        """
        metric, rng, draws = self.metric, np.random.default_rng([self._seed, 1]), self._draws
        quiet, damage = draws.predict(at, metric.whole)
        luck = rng.standard_normal((3, len(quiet), 1))
        damage = damage * np.exp(metric.error * luck[0])
        noise = metric.repeat * luck[1] + metric.early * at.early * luck[2]
        value = metric.scale(quiet + metric.sign * damage + noise)
        mean, spread, freedom = self._collapse  # damage saturates: nothing is worse than broken models are
        floor = metric.sign * (mean + spread * rng.standard_t(freedom, (len(quiet), 1)))
        floor = np.maximum(floor, metric.sign * metric.scale(np.array(metric.broken)))
        value = metric.sign * np.minimum(metric.sign * value, floor)
        low, middle, high = np.quantile(value, [(1 - level) / 2, 0.5, (1 + level) / 2], axis=0)
        return metric.widened(metric.unscale(middle), metric.unscale(low), metric.unscale(high), widen)
