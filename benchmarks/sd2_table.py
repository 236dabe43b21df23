"""The tabulated Stable Diffusion 2: FID and CLIP score of component sparsities that nobody measured.

    python -m benchmarks.sd2_table                      # the answer, and how far it can be believed
    python -m benchmarks.sd2_table --predict FILE.csv   # median and 95 % interval of each row of a file

The points are public measurements of the study that raysense starts from (`data/sd2_pruning_runs.csv`, source in its
first line): pruning of the Linear layers, one ratio for the text encoder and one for the U-Net. Nothing new is
measured; what this says is a prediction.

The model. A metric is its dense value, plus what light pruning does to it (a slope for each component; light pruning
*improves* FID), plus *damage*. Each component's damage grows monotonically with sparsity: its logarithm is a curve of
positive slope whose own logarithm walks at random from knot to knot, so the curve is smooth where there are points and
less and less certain where they end. Both components together do more than their sum by a power of the product. Rivals
of magnitude move the text encoder's curve sideways and scale it. The early batch of runs has an offset and more noise.
Broken models (FID of 100 and more) saturate and are not ordered: each only says that the damage is at least so large.
The posterior is sampled (preconditioned Crank-Nicolson around the mode).

How far it can be believed: whole stretches of the table are left out, one after the other, and predicted from the
rest. Intervals are widened until the *other* stretches are covered, so no stretch helps to cover itself.

The question answered: FID at most dense + 0.5 and CLIP score at least dense - 0.003; which pair of ratios removes most
weights? The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import least_squares
from scipy.special import log_ndtr

Floats = npt.NDArray[np.float64]

DATA = Path(__file__).parent / "data" / "sd2_pruning_runs.csv"
LINEAR = {"text_encoder": 289.4e6, "unet": 301.2e6}
"""Linear weights, which the original recipe prunes; the two components have 1,206.3 M parameters."""

PARAMETERS = 340.4e6 + 865.9e6
PUBLISHED = (0.475, 0.35)
FID_RISE, CLIP_DROP = 0.5, 0.003
BROKEN_FID, BROKEN_CLIP = 100.0, 0.20
"""Models whose FID is above are broken. Their CLIP score is anything from its floor to 0.25; below 0.20 it is floor."""

METHODS = ("magnitude", "owl-magnitude", "wanda", "owl-wanda")
TEXT_KNOTS = np.array([0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 1.0])
UNET_KNOTS = np.array([0.05, 0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 1.0])
WALK = 2.0
"""Standard deviation of a curve's log slope after a walk of one whole unit of sparsity."""

DAMAGE_ERROR = 0.12
"""Relative standard deviation of the damage around the model's."""


class BadTableError(ValueError):
    """A file to be predicted that cannot be read; the message is for its owner."""


@dataclass(frozen=True)
class Metric:
    """What is known of a metric before the table is read.

    Attributes:
        name: For people.
        column: Of the table.
        damage_sign: +1 where damage raises it.
        dense: Prior mean and standard deviation of the dense value.
        slope: Prior standard deviation of the change by light pruning, a unit of sparsity.
        offset: Prior mean and standard deviation of what the early batch is off by.
        least_damage: Prior median of the damage at the first knot.
        repeat: Standard deviation of a run around the model where nothing is damaged.
        early: The same, in addition, for the early batch.
        broken: Where the metric counts as broken.
        bound: Damaged at least to here when the model is broken, and how softly.
        limits: Beyond these no value was ever seen; the scale on which intervals are widened has its pole there.
    """

    name: str
    column: str
    damage_sign: float
    dense: tuple[float, float]
    slope: float
    offset: tuple[float, float]
    least_damage: float
    repeat: float
    early: float
    broken: float
    bound: tuple[float, float]
    limits: float

    def scale(self, value: Floats) -> Floats:
        """Logarithm of the distance from `limits`, strictly increasing in the metric; a cliff is a slope on it."""
        return np.asarray(
            self.damage_sign * np.log(np.maximum(self.damage_sign * (value - self.limits), 1e-6))
        )

    def unscale(self, scaled: Floats) -> Floats:
        return np.asarray(self.limits + self.damage_sign * np.exp(self.damage_sign * scaled))


FID = Metric(
    "fid", "fid_10k", 1.0, (17.0, 1.5), 4.0, (2.0, 1.5), 0.05, 0.5, 1.0, BROKEN_FID, (100.0, 10.0), 10.0
)
CLIP = Metric(
    "clip", "clip_vit_b32_cosine", -1.0, (0.315, 0.003), 0.01, (0.0, 0.002), 1e-4, 4e-4, 8e-4, BROKEN_CLIP,
    (0.25, 0.02), 0.33,
)  # fmt: skip


def read(path: Path) -> pd.DataFrame:
    """A file with the table's columns; metrics may be missing.

    Raises:
        BadTableError: A column is missing, a method is unknown or a sparsity is no share.
    """
    try:
        table = pd.read_csv(path, comment="#")
    except (OSError, ValueError) as error:
        raise BadTableError(f"cannot read `{path}`: {' '.join(str(error).split())[:200]}") from None
    needed = ("text_encoder_method", "text_encoder_sparsity", "unet_method", "unet_sparsity")
    if missing := [column for column in needed if column not in table]:
        raise BadTableError(f"`{path}` lacks the columns {', '.join(missing)}; it needs {', '.join(needed)}")
    if table.empty:
        raise BadTableError(f"`{path}` has no rows")
    for column, known in (
        ("text_encoder_method", ("none", *METHODS)),
        ("unet_method", ("none", "magnitude")),
    ):
        for row, method in enumerate(table[column].fillna("none").astype(str)):
            if method not in known:
                raise BadTableError(
                    f"`{path}`, row {row + 1}: `{column}` is {method!r}, of which nothing is tabulated; "
                    f"there are {', '.join(known)}"
                )
        table[column] = table[column].fillna("none").astype(str)
    for column in ("text_encoder_sparsity", "unet_sparsity"):
        share = pd.to_numeric(table[column], errors="coerce")
        if not share.between(0, 1).all():
            row = int((~share.between(0, 1)).to_numpy().argmax())
            raise BadTableError(
                f"`{path}`, row {row + 1}: `{column}` must be a share from 0 to 1, but is {table[column][row]!r}"
            )
        table[column] = share.astype(float)
        unnamed = (table[column.replace("sparsity", "method")] == "none") & (table[column] > 0)
        if unnamed.any():
            row = int(unnamed.to_numpy().argmax())
            raise BadTableError(
                f"`{path}`, row {row + 1}: `{column}` is {share[row]}, but no method is named"
            )
    for metric in (FID, CLIP):
        if metric.column in table:
            table[metric.column] = pd.to_numeric(table[metric.column], errors="coerce")
    return table


def points() -> pd.DataFrame:
    """The published table."""
    return read(DATA)


def regions(table: pd.DataFrame) -> list[str]:
    """Which stretch each row lies in; whole stretches are left out together. The dense row is never left out."""
    found = []
    places = Places.of(table)
    for text, unet, is_early in zip(places.text, places.unet, places.early, strict=True):
        if text == unet == 0:
            found.append("dense")
        elif is_early:
            found.append(f"early, U-Net {np.digitize(unet, [0.15, 0.35])}")
        elif unet == 0:
            found.append(f"text encoder {np.digitize(text, [0.35, 0.475, 0.525, 0.58, 0.625])}")
        elif text == 0:
            found.append(f"U-Net {np.digitize(unet, [0.25, 0.375, 0.475])}")
        else:
            found.append(f"joint {np.digitize(text, [0.45, 0.55])}")
    return found


@dataclass(frozen=True)
class Places:
    """Rows as arrays of (n,): sparsities, the text encoder's method as a number, 1 for the early batch."""

    text: Floats
    unet: Floats
    method: npt.NDArray[np.int64]
    early: Floats

    @classmethod
    def of(cls, table: pd.DataFrame) -> Places:
        methods = [METHODS.index(name) if name in METHODS else 0 for name in table["text_encoder_method"]]
        early = table["batch"] == "early" if "batch" in table else np.zeros(len(table))
        text, unet = (table[f"{c}_sparsity"].to_numpy(dtype=np.float64) for c in ("text_encoder", "unet"))
        return cls(text, unet, np.array(methods), np.asarray(early, dtype=np.float64))


class Surface:
    """One metric over both sparsities: posterior draws of the model in this module's docstring.

    Args:
        metric: Which.
        table: Rows to learn from.
        steps: Of the Markov chain; 200 draws are kept of its second part.
        seed: Of the chain.
    """

    def __init__(self, metric: Metric, table: pd.DataFrame, steps: int = 8000, seed: int = 0) -> None:
        self.metric, self._seed = metric, seed
        self._mean, self._sd = self._prior()
        self._places = Places.of(table)
        self._values = table[metric.column].to_numpy(dtype=np.float64)
        self._is_broken = table[FID.column].to_numpy(dtype=np.float64) >= BROKEN_FID
        floor = metric.damage_sign * (self._values - metric.broken) >= 0
        self._floor = metric.scale(self._values[floor])
        self._draws = self._sample(steps, np.random.default_rng(seed))

    def _prior(self) -> tuple[Floats, Floats]:
        """Means and standard deviations of all unknowns, in the order in which `_damage` reads them."""
        metric = self.metric
        mean = [metric.dense[0], 0.0, 0.0, metric.offset[0], math.log(0.3), 0.8, 0.0]
        sd = [metric.dense[1], metric.slope, metric.slope, metric.offset[1], 1.0, 0.15, 0.03]
        mean += [0.0] * 6
        sd += [0.02] * 3 + [0.5] * 3
        for knots in (TEXT_KNOTS, UNET_KNOTS):
            mean += [math.log(metric.least_damage), 2.7] + [0.0] * (len(knots) - 1)
            sd += [1.5, 0.8, *(WALK * np.sqrt(np.diff(knots)))]
        return np.array(mean), np.array(sd)

    def _damage(self, unknowns: Floats, at: Places) -> tuple[Floats, Floats]:
        """What is not damage, and the damage, of every place."""
        dense, by_text, by_unet, offset, together, power, early_shift = unknowns[:7]
        shift, factor = np.append(0.0, unknowns[7:10]), np.append(0.0, unknowns[10:13])
        curves = unknowns[13:].reshape(2, -1)
        text = np.clip(at.text + shift[at.method] * np.minimum(at.text / 0.3, 1), 0, 1)
        unet = np.clip(at.unet + early_shift * at.early * np.minimum(at.unet / 0.2, 1), 0, 1)
        log_text = _log_damage(text, TEXT_KNOTS, curves[0]) + factor[at.method]
        log_unet = _log_damage(unet, UNET_KNOTS, curves[1])
        both = np.exp(np.minimum(together + power * (log_text + log_unet), 12))
        quiet = (
            dense
            + by_text * np.minimum(at.text, 0.5)
            + by_unet * np.minimum(at.unet, 0.5)
            + offset * at.early
        )
        return quiet, np.exp(log_text) + np.exp(log_unet) + both

    def _residuals(self, whitened: Floats) -> Floats:
        """Half the sum of their squares is the negative log posterior."""
        metric = self.metric
        quiet, damage = self._damage(self._mean + self._sd * whitened, self._places)
        predicted = quiet + metric.damage_sign * damage
        sd = np.sqrt(
            metric.repeat**2 + (metric.early * self._places.early) ** 2 + (DAMAGE_ERROR * damage) ** 2
        )
        bound, softness = metric.bound
        beyond = np.sqrt(np.maximum(-2 * log_ndtr(metric.damage_sign * (predicted - bound) / softness), 0.0))
        wide = np.sqrt(2 * np.log(sd / metric.repeat))  # the Gaussian's own normalisation
        return np.concatenate([
            np.where(self._is_broken, beyond, (predicted - self._values) / sd),
            np.where(self._is_broken, 0.0, wide),
            whitened,
        ])  # fmt: skip

    def _sample(self, steps: int, rng: np.random.Generator) -> Floats:
        """Draws (200, unknowns) of the posterior."""
        mode = least_squares(self._residuals, np.zeros(len(self._mean)), max_nfev=200)
        slope: Floats = np.asarray(mode.jac)
        root = np.linalg.cholesky(np.linalg.inv(slope.T @ slope))

        def energy(offset: Floats) -> float:
            """Negative log posterior less that of the Gaussian around the mode, in the Gaussian's own axes."""
            residuals = self._residuals(mode.x + root @ offset)
            return 0.5 * float(residuals @ residuals - offset @ offset)

        here, reach = np.zeros(len(root)), 0.25
        now = energy(here)
        kept = []
        for step in range(steps):
            there = math.sqrt(1 - reach**2) * here + reach * rng.standard_normal(len(root))
            then = energy(there)
            taken = math.log(rng.random()) < now - then
            if taken:
                here, now = there, then
            if step < steps // 4:
                reach = min(0.9, max(0.02, reach * math.exp((float(taken) - 0.3) * 0.05)))
            else:
                kept.append(here)
        chosen = np.array(kept)[np.linspace(0, len(kept) - 1, 200).astype(int)]
        return np.asarray(self._mean + self._sd * (mode.x + chosen @ root.T))

    def interval(self, at: Places, widen: float = 1.0, level: float = 0.95) -> tuple[Floats, Floats, Floats]:
        """Median and both ends, lower first, of what one run would measure there.

        Args:
            at: Where.
            widen: Factor on the distances from the median, on the metric's scale.
            level: How much of the predictive distribution is inside before it is widened.
        """
        metric, rng = self.metric, np.random.default_rng([self._seed, 1])
        values = []
        for unknowns in self._draws:
            quiet, damage = self._damage(unknowns, at)
            damage = damage * np.exp(DAMAGE_ERROR * rng.standard_normal(len(damage)))
            noise = np.hypot(metric.repeat, metric.early * at.early) * rng.standard_normal(len(damage))
            value = metric.scale(quiet + metric.damage_sign * damage + noise)
            floor = rng.choice(self._floor, len(value)) + 0.1 * rng.standard_normal(len(value))
            # A broken model is as bad as broken models are: damage saturates.
            values.append(
                metric.damage_sign * np.minimum(metric.damage_sign * value, metric.damage_sign * floor)
            )
        low, middle, high = np.quantile(np.array(values), [(1 - level) / 2, 0.5, (1 + level) / 2], axis=0)
        low, high = middle - widen * (middle - low), middle + widen * (high - middle)
        return metric.unscale(middle), metric.unscale(low), metric.unscale(high)


def _log_damage(sparsity: Floats, knots: Floats, curve: Floats) -> Floats:
    """A curve at some sparsities; (first value, log slope at the first knot, steps of the log slope) describe it."""
    slopes = np.cumsum(curve[1:])
    rises = np.diff(knots) * np.exp((slopes[1:] + slopes[:-1]) / 2)
    values = curve[0] + np.append(0.0, np.cumsum(rises))
    inside = np.minimum(np.interp(sparsity, knots, values), 12.0)
    untouched = -50.0  # no damage at all at no sparsity
    below = untouched + (inside - untouched) * sparsity / knots[0]
    return np.asarray(np.where(sparsity < knots[0], below, inside))


@dataclass(frozen=True)
class LeftOut:
    """Every kept point predicted without its stretch.

    Attributes:
        rows: One row a point: region, place, measured, median, ends of the interval (not widened), and how far off it
            is in half-widths.
        widen: What covers 95 % of all of them.
        coverage: Share inside intervals that were widened by the *other* stretches' needs.
    """

    rows: pd.DataFrame
    widen: float
    coverage: float


def leave_stretches_out(metric: Metric, table: pd.DataFrame, steps: int = 8000) -> LeftOut:
    """Cross-validation by region."""
    stretch = np.array(regions(table))
    kept = (table[FID.column] < BROKEN_FID).to_numpy()
    rows: list[dict[str, Any]] = []
    for region in sorted(set(stretch[kept]) - {"dense"}):
        chosen = table[(stretch == region) & kept]
        surface = Surface(metric, table[stretch != region], steps)
        measured = chosen[metric.column].to_numpy(dtype=np.float64)
        found = surface.interval(Places.of(chosen))
        middle, low, high = (metric.scale(ends) for ends in found)
        off = metric.scale(measured) - middle
        for i, (_, point) in enumerate(chosen.iterrows()):
            reach = high[i] - middle[i] if off[i] > 0 else middle[i] - low[i]
            rows.append({
                "region": region,
                **{c: point[c] for c in ("text_encoder_method", "text_encoder_sparsity", "unet_sparsity")},
                "measured": float(measured[i]),
                "median": float(found[0][i]),
                "low": float(found[1][i]),
                "high": float(found[2][i]),
                "off": float(off[i] / reach),
            })  # fmt: skip
    frame = pd.DataFrame(rows)
    off = frame["off"].abs().to_numpy()
    names = frame["region"].to_numpy()
    needed = [max(1.0, float(np.quantile(off[names != name], 0.95))) for name in names]
    return LeftOut(frame, max(1.0, float(np.quantile(off, 0.95))), float((off <= np.array(needed)).mean()))


@dataclass(frozen=True)
class Model:
    """Both metrics' surfaces and what their intervals are widened by."""

    surfaces: dict[str, Surface]
    widen: dict[str, float]

    def interval(self, metric: str, at: Places, level: float = 0.95) -> tuple[Floats, Floats, Floats]:
        """See `Surface.interval`."""
        return self.surfaces[metric].interval(at, self.widen[metric], level)


def learn(steps: int = 8000) -> tuple[Model, dict[str, LeftOut]]:
    """The model of the whole table, and what leaving stretches out says of it."""
    table = points()
    checks = {metric.name: leave_stretches_out(metric, table, steps) for metric in (FID, CLIP)}
    surfaces = {metric.name: Surface(metric, table, steps) for metric in (FID, CLIP)}
    return Model(surfaces, {name: check.widen for name, check in checks.items()}), checks


def answer(model: Model, step: float = 0.005) -> dict[str, Any]:
    """The sparsest pair of ratios by the predicted medians, and by one-sided 95 % intervals."""
    table = points()
    dense = table[table["scope"] == "dense"].iloc[0]
    text, unet = (g.ravel() for g in np.meshgrid(np.arange(0, 0.65, step), np.arange(0, 0.55, step)))
    at = Places(text, unet, np.zeros(len(text), dtype=np.int64), np.zeros(len(text)))
    zeros = LINEAR["text_encoder"] * text + LINEAR["unet"] * unet
    fid_mid, _, fid_high = model.interval("fid", at, 0.90)
    clip_mid, clip_low, _ = model.interval("clip", at, 0.90)
    fid_most, clip_least = dense[FID.column] + FID_RISE, dense[CLIP.column] - CLIP_DROP

    def best(inside: npt.NDArray[np.bool_]) -> dict[str, float] | None:
        if not inside.any():
            return None
        i = int(np.where(inside, zeros, -1.0).argmax())
        return {
            "text_encoder": round(float(text[i]), 4),
            "unet": round(float(unet[i]), 4),
            "zeros": float(zeros[i]),
            "sparsity_components": float(zeros[i] / PARAMETERS),
            "fid": float(fid_mid[i]),
            "fid_high_95": float(fid_high[i]),
            "clip": float(clip_mid[i]),
            "clip_low_95": float(clip_low[i]),
        }

    published = LINEAR["text_encoder"] * PUBLISHED[0] + LINEAR["unet"] * PUBLISHED[1]
    return {
        "bounds": {"fid": float(fid_most), "clip": float(clip_least)},
        "published": {
            "text_encoder": PUBLISHED[0], "unet": PUBLISHED[1], "zeros": published,
            "sparsity_components": published / PARAMETERS,
        },
        "by_median": best((fid_mid <= fid_most) & (clip_mid >= clip_least)),
        "by_interval": best((fid_high <= fid_most) & (clip_low >= clip_least)),
    }  # fmt: skip


def predict(model: Model, table: pd.DataFrame) -> pd.DataFrame:
    """Median and 95 % interval of each row and metric; ``inside`` where the table has a measured value."""
    at = Places.of(table)
    columns: dict[str, Any] = {}
    for metric in (FID, CLIP):
        middle, low, high = model.interval(metric.name, at)
        columns |= {metric.name: middle, f"{metric.name}_low": low, f"{metric.name}_high": high}
        if metric.column in table:
            measured = table[metric.column].to_numpy(dtype=np.float64)
            inside = [
                None if math.isnan(m) else bool(a <= m <= b)
                for m, a, b in zip(measured, low, high, strict=True)
            ]
            columns |= {
                f"{metric.name}_measured": measured,
                f"{metric.name}_inside": np.array(inside, dtype=object),
            }
    names = ["text_encoder_method", "text_encoder_sparsity", "unet_sparsity"]
    return pd.concat([table[names].reset_index(drop=True), pd.DataFrame(columns)], axis=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the answer in words, and as JSON on the last line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sd2_table", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--predict", type=Path, metavar="FILE.csv", help="predict the rows of this file instead"
    )
    parser.add_argument("--quick", action="store_true", help="shorter Markov chains")
    given = parser.parse_args(arguments)
    try:
        asked = None if given.predict is None else read(given.predict)
    except BadTableError as error:
        print(error, file=sys.stderr)
        return 2
    model, checks = learn(1500 if given.quick else 8000)
    coverage = {name: check.coverage for name, check in checks.items()}
    found: dict[str, Any] = {"quick": given.quick}
    if asked is not None:
        table = predict(model, asked)
        print(table.to_string(index=False, float_format=lambda v: f"{v:.4g}"))
        for metric in (FID, CLIP):
            if f"{metric.name}_inside" in table:
                inside = table[f"{metric.name}_inside"].dropna()
                found[f"{metric.name}_inside"] = {"rows": len(inside), "inside": int(inside.sum())}
    else:
        found |= answer(model)
        for name in ("published", "by_median", "by_interval"):
            if point := found[name]:
                print(
                    f"{name:<12} text encoder {point['text_encoder']:.1%}, U-Net {point['unet']:.1%} of their Linear "
                    f"weights: {point['sparsity_components']:.1%} of both components' parameters"
                )
        for name, check in checks.items():
            raw = float((check.rows["off"].abs() <= 1).mean())
            print(
                f"{name}: {len(check.rows)} points predicted without their stretch of the table: {raw:.0%} inside the "
                f"model's own 95 % interval, {check.coverage:.0%} once it is widened by what the other stretches need "
                f"({check.widen:.2f} times in the end)"
            )
    found |= {"coverage_by_region": coverage, "widen": model.widen}
    holds, bar = all(share >= 0.9 for share in coverage.values()), {"coverage_by_region": 0.9}
    print(json.dumps({"benchmark": "sd2_table", "figures": found, "bar": bar, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
