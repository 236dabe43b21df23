"""The tabulated Stable Diffusion 2: where does the search land beside the published 47.5 % / 35 %?

    python -m benchmarks.sd2_table

The points are public measurements of the study that raysense starts from (`data/sd2_pruning_runs.csv`, source in its
first line): magnitude pruning of the Linear layers, one ratio for the text encoder and one for the U-Net. Between them
FID and CLIP score are interpolated by a Gaussian process on the removed energy of both components: one smooth function
of each, one of both together, and an offset for the early batch of runs, which sits 2-4 FID above later neighbours.
Nothing new is measured; what it says is a prediction with its leave-one-out error.

The question: FID at most dense + 0.5 and CLIP score at least dense - 0.003; which pair of ratios removes most weights?
The last line of the output is one JSON object.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import minimize

from raysense.search.curves import removed_energy

Floats = npt.NDArray[np.float64]

DATA = Path(__file__).parent / "data" / "sd2_pruning_runs.csv"
LINEAR = {"text_encoder": 289.4e6, "unet": 301.2e6}
"""Linear weights, which the original recipe prunes; the two components have 1,206.3 M parameters."""

PARAMETERS = 340.4e6 + 865.9e6
PUBLISHED = (0.475, 0.35)
FID_RISE, CLIP_DROP = 0.5, 0.003
BROKEN_FID = 100.0
"""Broken models saturate and are not ordered: points beyond are left out, and so is what lies near them."""

REPEAT_SD = {"fid": 0.3, "clip": 2.3e-4}
"""What unseeded noise does to two runs of one model at 10,000 images (derived from the table's near neighbours)."""


def points() -> pd.DataFrame:
    """The magnitude-pruned models that are not broken, dense included."""
    table = pd.read_csv(DATA, comment="#")
    methods = table[["text_encoder_method", "unet_method"]]
    kept = table[methods.isin(["none", "magnitude"]).all(axis=1) & (table["fid_10k"] < BROKEN_FID)]
    return kept.reset_index(drop=True)


def _inputs(text: Floats, unet: Floats) -> Floats:
    """(n, 2): square roots of the removed energies, smooth where little is removed and wide where cliffs are."""
    return np.sqrt(np.column_stack([removed_energy(text), removed_energy(unet)]))


@dataclass
class Surface:
    """A Gaussian process over both sparsities.

    Attributes:
        inputs: (n, 2), see `_inputs`.
        early: (n,) 1 for the early batch.
        values: (n,) transformed metric.
        repeat: Standard deviation of a repeated run in the transformed unit, (n,).
        hyper: Logarithms of scales, reaches and the batch's offset.
        widen: Factor on standard deviations, from the left-out points.
    """

    inputs: Floats
    early: Floats
    values: Floats
    repeat: Floats
    hyper: Floats
    widen: float = 1.0

    def covariance(self, a: Floats, b: Floats, early_a: Floats, early_b: Floats) -> Floats:
        own_t, own_u, both, reach_t, reach_u, batch = np.exp(self.hyper)
        t = np.abs(a[:, None, 0] - b[None, :, 0]) / reach_t
        u = np.abs(a[:, None, 1] - b[None, :, 1]) / reach_u

        def matern(r: Floats) -> Floats:
            return np.asarray((1 + math.sqrt(5) * r + 5 * r * r / 3) * np.exp(-math.sqrt(5) * r))

        smooth = own_t**2 * matern(t) + own_u**2 * matern(u) + both**2 * matern(t) * matern(u)
        return np.asarray(smooth + batch**2 * early_a[:, None] * early_b[None, :] + 1.0)

    def gram(self) -> Floats:
        return self.covariance(self.inputs, self.inputs, self.early, self.early) + np.diag(self.repeat**2)

    def misfit(self, hyper: Floats) -> float:
        self.hyper = hyper
        gram = self.gram()
        centred = self.values - self.values.mean()
        # A weak prior keeps reaches and scales near one: there are thirty points.
        prior = 0.5 * float(((hyper - _START) ** 2).sum()) / 4
        return 0.5 * float(np.linalg.slogdet(gram)[1] + centred @ np.linalg.solve(gram, centred)) + prior

    def fit(self) -> Surface:
        self.hyper = np.asarray(
            minimize(self.misfit, _START, method="Nelder-Mead", options={"maxiter": 600}).x
        )
        # Intervals as wide as the left-out points ask for (Dubrule 1983), never narrower than the model's own.
        mean, sd = self.left_out()
        self.widen = max(1.0, float(np.sqrt((((self.values - mean) / sd) ** 2).mean())))
        return self

    def predict(self, inputs: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the transformed metric, for a run of the later batch."""
        later = np.zeros(len(inputs))
        across = self.covariance(inputs, self.inputs, later, self.early)
        weights = np.linalg.solve(self.gram(), across.T).T
        mean = self.values.mean() + weights @ (self.values - self.values.mean())
        alone = float(np.exp(2 * self.hyper[:3]).sum() + 1.0)  # a point's covariance with itself
        variance = alone - (weights * across).sum(axis=1)
        return mean, self.widen * np.sqrt(np.maximum(variance, 0.0) + np.median(self.repeat) ** 2)

    def left_out(self) -> tuple[Floats, Floats]:
        """Each point predicted from all others, with its standard deviation (closed form)."""
        inverse = np.linalg.inv(self.gram())
        centred = self.values - self.values.mean()
        sd = 1 / np.sqrt(np.diag(inverse))
        return self.values - (inverse @ centred) * sd**2, self.widen * sd


_START = np.log(np.array([1.0, 1.0, 1.0, 0.5, 0.5, 0.2]))


class Metric:
    """A metric's surface: transformed so that the cliff is a slope, back-transformed for reading.

    Args:
        table: See `points`.
        column: The metric's column.
        forth: Metric -> transformed.
        back: Transformed -> metric.
        repeat: Standard deviation of a repeated run.
    """

    def __init__(self, table: pd.DataFrame, column: str, forth: Any, back: Any, repeat: float) -> None:
        self.back, self.measured = back, table[column].to_numpy(dtype=np.float64)
        text, unet = (table[f"{c}_sparsity"].to_numpy(dtype=np.float64) for c in ("text_encoder", "unet"))
        values = np.asarray(forth(self.measured))
        slope = np.abs(np.asarray(forth(self.measured + 1e-6)) - values) / 1e-6
        early = np.where(table["batch"] == "early", 1.0, 0.0)
        self.surface = Surface(
            _inputs(text, unet), early, values, np.maximum(slope * repeat, 1e-3), _START
        ).fit()

    def interval(self, text: Floats, unet: Floats, z: float) -> tuple[Floats, Floats, Floats]:
        """Median, and the two values that are z standard deviations off, lower first."""
        mean, sd = self.surface.predict(_inputs(text, unet))
        ends = np.sort(np.stack([self.back(mean - z * sd), self.back(mean + z * sd)]), axis=0)
        return self.back(mean), ends[0], ends[1]

    def check(self) -> dict[str, float]:
        """Leave-one-out: median and largest absolute error in the metric's unit, coverage of 95 % intervals."""
        mean, sd = self.surface.left_out()
        errors = np.abs(self.back(mean) - self.measured)
        inside = np.abs(mean - self.surface.values) <= 1.96 * sd
        return {
            "points": len(errors),
            "median_error": float(np.median(errors)),
            "largest_error": float(errors.max()),
            "coverage_95": float(inside.mean()),
        }


def answer(step: float = 0.005) -> dict[str, Any]:
    """The sparsest pair of ratios by the predicted medians, and by one-sided 95 % intervals."""
    table = points()
    dense = table[table["scope"] == "dense"].iloc[0]
    fid = Metric(table, "fid_10k", np.log, np.exp, REPEAT_SD["fid"])
    clip = Metric(
        table,
        "clip_vit_b32_cosine",
        lambda v: np.log(0.325 - v),
        lambda y: 0.325 - np.exp(y),
        REPEAT_SD["clip"],
    )
    text, unet = (g.ravel() for g in np.meshgrid(np.arange(0, 0.65, step), np.arange(0, 0.55, step)))
    zeros = LINEAR["text_encoder"] * text + LINEAR["unet"] * unet
    fid_mid, _, fid_high = fid.interval(text, unet, 1.645)
    clip_mid, clip_low, _ = clip.interval(text, unet, 1.645)
    fid_most, clip_least = dense["fid_10k"] + FID_RISE, dense["clip_vit_b32_cosine"] - CLIP_DROP

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
        "leave_one_out": {"fid": fid.check(), "clip": clip.check()},
    }  # fmt: skip


def main() -> int:
    """Prints the answer in words, and as JSON on the last line."""
    found = answer()
    shown = {
        "published": found["published"],
        **{k: found[k] for k in ("by_median", "by_interval") if found[k]},
    }
    for name, point in shown.items():
        print(
            f"{name:<12} text encoder {point['text_encoder']:.1%}, U-Net {point['unet']:.1%} of their Linear weights: "
            f"{point['sparsity_components']:.1%} of both components' parameters"
        )
    for metric, check in found["leave_one_out"].items():
        print(
            f"{metric}: left-out points off by {check['median_error']:.2g} (median), "
            f"{check['largest_error']:.2g} at most; "
            f"{check['coverage_95']:.0%} of {check['points']} inside their 95 % interval"
        )
    covered = all(check["coverage_95"] >= 0.9 for check in found["leave_one_out"].values())
    print(json.dumps({"benchmark": "sd2_table", **found, "holds": covered}))
    return 0 if covered else 1


if __name__ == "__main__":
    sys.exit(main())
