"""The tabulated Stable Diffusion 2: FID and CLIP score of component sparsities that nobody measured.

    python -m benchmarks.sd2_table                      # the answer, and how far it can be believed
    python -m benchmarks.sd2_table --predict FILE.csv   # median and 95 % interval of each row of a file

The points are public measurements of the study that raysense starts from (`data/sd2_pruning_runs.csv`, source in its
first line): pruning of the Linear layers, one ratio for the text encoder and one for the U-Net. Nothing new is
measured; what this says is a prediction, of the model that `sd2_surface.py` states.

How far it can be believed: whole regions of the component-sparsity plane are left out, one after the other, and
predicted from the rest: every two neighbouring sparsities of the text encoder alone, of the U-Net alone and of the
joint diagonal, the whole diagonal, parts of the early batch, each corner of the plane. Broken models are predicted like
all others. A region's intervals are widened by what covers the regions that share no point with it, so no region helps
to cover itself.

The question answered: FID at most dense + 0.5 and CLIP score at least dense - 0.003; which pair of ratios removes most
weights? The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
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

from benchmarks.sd2_surface import CLIP, FID, METHODS, Floats, Metric, Places, Surface

Mask = npt.NDArray[np.bool_]

DATA = Path(__file__).parent / "data" / "sd2_pruning_runs.csv"
LINEAR = {"text_encoder": 289.4e6, "unet": 301.2e6}
"""Linear weights, which the original recipe prunes; the two components have 1,206.3 M parameters."""

PARAMETERS = 340.4e6 + 865.9e6
PUBLISHED = (0.475, 0.35)
FID_RISE, CLIP_DROP = 0.5, 0.003
COMPONENTS = ("text_encoder", "unet")
COVERAGE_BAR = 0.9


class BadTableError(ValueError):
    """A file to be predicted that cannot be read; the message is for its owner."""


@dataclass(frozen=True)
class Effort:
    """How long Markov chains are, and how many."""

    steps: int
    chains: int


FULL, QUICK = Effort(400, 64), Effort(150, 24)


def read(path: Path) -> pd.DataFrame:
    """A file with the table's columns; `run`, `batch`, `scope` and the metrics may be missing.

    Raises:
        BadTableError: It is no such file: a column is missing, a method is unknown, a sparsity is no share, a metric no
            number.
    """
    try:
        table = pd.read_csv(path, comment="#", skipinitialspace=True)
    except (OSError, ValueError) as error:
        raise BadTableError(f"cannot read `{path}`: {' '.join(str(error).split())[:200]}") from None
    needed = [f"{component}_{what}" for component in COMPONENTS for what in ("method", "sparsity")]
    if missing := [column for column in needed if column not in table]:
        raise BadTableError(f"`{path}` lacks the columns {', '.join(missing)}; it needs {', '.join(needed)}")
    if not isinstance(table.index, pd.RangeIndex):
        raise BadTableError(f"`{path}` has rows of more fields than its header names")
    if table.empty:
        raise BadTableError(f"`{path}` has no rows")
    for component in COMPONENTS:
        method, column = f"{component}_method", f"{component}_sparsity"
        table[method] = _words(path, table, method, ("none", *METHODS), "none")
        share = pd.to_numeric(table[column], errors="coerce")
        _refuse(path, table, column, ~share.between(0, 1), "must be a share from 0 to 1")
        unnamed = (table[method] == "none") & (share > 0)
        _refuse(path, table, column, unnamed, f"must be 0 where `{method}` is none")
        table[column] = share.astype(float)
    if "batch" in table:
        table["batch"] = _words(path, table, "batch", ("early", "main"), "main")
    for metric in (FID, CLIP):
        if metric.column in table:
            value = pd.to_numeric(table[metric.column], errors="coerce")
            given = table[metric.column].notna()
            wrong = given & ~(np.isfinite(value) & value.between(*metric.possible))
            low, high = metric.possible
            _refuse(path, table, metric.column, wrong, f"must be empty or a number from {low:g} to {high:g}")
            table[metric.column] = value
    return table


def _refuse(path: Path, table: pd.DataFrame, column: str, wrong: pd.Series, must: str) -> None:
    """Raises BadTableError on the first row that is wrong."""
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise BadTableError(
            f"`{path}`, row {row + 1}: `{column}` {must}, but is {str(table[column].iloc[row])!r}"
        )


def _words(path: Path, table: pd.DataFrame, column: str, known: Sequence[str], empty: str) -> pd.Series:
    """A column of known words."""
    words = table[column].fillna(empty).astype(str).str.strip()
    _refuse(
        path,
        table,
        column,
        ~words.isin(known),
        f"must be one of {', '.join(known)} (nothing else is tabulated)",
    )
    return words


def points() -> pd.DataFrame:
    """The published table."""
    return read(DATA)


def regions(table: pd.DataFrame) -> dict[str, Mask]:
    """Which rows lie in each region of the plane; they are left out together. The dense row is in none."""
    text, unet = (table[f"{component}_sparsity"].to_numpy() for component in COMPONENTS)
    early = np.asarray(table["batch"] == "early") if "batch" in table else np.zeros(len(table), dtype=bool)
    pruned = (text > 0) | (unet > 0)
    lines = {
        "text encoder": (text, pruned & ~early & (unet == 0)),
        "U-Net": (unet, pruned & ~early & (text == 0)),
        "joint diagonal": (text, ~early & (text > 0) & (unet > 0)),
    }
    found: dict[str, Mask] = {}
    for name, (sparsity, along) in lines.items():
        steps = sorted(set(sparsity[along]))
        for low, high in itertools.pairwise(steps):
            found[f"{name} {low:g} to {high:g}"] = along & (sparsity >= low) & (sparsity <= high)
    found["joint diagonal"] = lines["joint diagonal"][1]
    parts = np.digitize(text, [0.4, 0.6]), np.digitize(unet, [0.175, 0.4])
    for part in sorted({(int(i), int(j)) for i, j in zip(*(p[early & pruned] for p in parts), strict=True)}):
        found[f"early batch {part}"] = early & pruned & (parts[0] == part[0]) & (parts[1] == part[1])
    found["corner: both light"] = pruned & (text < 0.35) & (unet < 0.35)
    found["corner: text encoder heavy"] = (text >= 0.575) & (unet < 0.35)
    found["corner: U-Net heavy"] = (text < 0.475) & (unet >= 0.475)
    found["corner: both heavy"] = (text >= 0.475) & (unet >= 0.4)
    return {name: rows for name, rows in found.items() if rows.any()}


@dataclass(frozen=True)
class LeftOut:
    """Every region predicted without its points.

    Attributes:
        rows: One row a prediction: region, the point's number and place, measured, median, ends of the interval (not
            widened), how far off it is in half-widths, what its interval is widened by, whether the model is broken.
        widen: What covers 95 % of the broken ones, and of the others.
    """

    rows: pd.DataFrame
    widen: float

    @property
    def raw(self) -> float:
        """Share inside the model's own intervals."""
        return float((self.rows["off"] <= 1).mean())

    @property
    def coverage(self) -> float:
        """Share inside intervals that were widened by other regions' needs."""
        return float((self.rows["off"] <= self.rows["widen"]).mean())

    @property
    def coverage_whole(self) -> float:
        """The same, of models that are not broken."""
        rows = self.rows[~self.rows["broken"]]
        return float((rows["off"] <= rows["widen"]).mean())


def leave_regions_out(metric: Metric, table: pd.DataFrame, effort: Effort = FULL) -> LeftOut:
    """Cross-validation by region."""
    found = regions(table)
    frames = []
    for name, chosen in found.items():
        here = table[chosen]
        surface = Surface(metric, table[~chosen], effort.steps, effort.chains)
        measured = here[metric.column].to_numpy(dtype=np.float64)
        middle, low, high = surface.interval(Places.of(here))
        frame = here[["text_encoder_method", *(f"{component}_sparsity" for component in COMPONENTS)]]
        frames.append(frame.assign(
            region=name, point=np.flatnonzero(chosen), measured=measured, median=middle, low=low, high=high,
            off=_half_widths(metric, measured, middle, low, high), broken=metric.is_broken(measured),
        ))  # fmt: skip
    rows = pd.concat(frames, ignore_index=True)
    rows = rows[rows["measured"].notna()]  # what was never measured cannot be covered
    needed = {
        name: _needed(rows[~rows["point"].isin(np.flatnonzero(chosen))]) for name, chosen in found.items()
    }
    return LeftOut(rows.assign(widen=rows["region"].map(needed)), _needed(rows))


def _half_widths(metric: Metric, value: Floats, middle: Floats, low: Floats, high: Floats) -> Floats:
    """How far values are from the median, in units of the interval's half on their side, on the metric's scale."""
    value, middle, low, high = (metric.scale(v) for v in (value, middle, low, high))
    return np.asarray(np.abs(value - middle) / np.where(value > middle, high - middle, middle - low))


def _needed(rows: pd.DataFrame) -> float:
    """What intervals have to be widened by to cover 95 % of broken models and of the others; never less than 1."""
    needed = rows["off"].groupby(rows["broken"]).quantile(0.95, interpolation="higher")
    return max(1.0, float(needed.max()))


@dataclass(frozen=True)
class Model:
    """Both metrics' surfaces and what their intervals are widened by."""

    surfaces: dict[str, Surface]
    widen: dict[str, float]

    def interval(self, metric: str, at: Places, level: float = 0.95) -> tuple[Floats, Floats, Floats]:
        """See `Surface.interval`."""
        return self.surfaces[metric].interval(at, self.widen[metric], level)


def learn(effort: Effort = FULL) -> tuple[Model, dict[str, LeftOut]]:
    """The model of the whole table, and what leaving regions out says of it."""
    table = points()
    checks = {metric.name: leave_regions_out(metric, table, effort) for metric in (FID, CLIP)}
    surfaces = {metric.name: Surface(metric, table, FULL.steps, FULL.chains) for metric in (FID, CLIP)}
    return Model(surfaces, {name: check.widen for name, check in checks.items()}), checks


def summary(metric: Metric, model: Model, check: LeftOut) -> dict[str, Any]:
    """How far a metric's intervals can be believed, and how wide they are.

    Widths are medians over predictions of points that are not broken, of FID as a share of the predicted median;
    outside: their region was left out, inside: it was not.
    """
    table = points()
    outside = check.rows[~check.rows["broken"]]
    middle, low, high = (outside[end].to_numpy(dtype=np.float64) for end in ("median", "low", "high"))
    known = model.interval(metric.name, Places.of(table.iloc[outside["point"]]))
    return {
        "points": len(table),
        "broken_points": int(metric.is_broken(table[metric.column].to_numpy(dtype=np.float64)).sum()),
        "regions": int(check.rows["region"].nunique()),
        "predictions": len(check.rows),
        "coverage_own": check.raw,
        "coverage": check.coverage,
        "coverage_not_broken": check.coverage_whole,
        "widen": check.widen,
        "width_inside": _width(metric, *known),
        "width_outside": _width(metric, *metric.widened(middle, low, high, outside["widen"].to_numpy())),
    }


def _width(metric: Metric, middle: Floats, low: Floats, high: Floats) -> float:
    width = (high - low) / middle if metric is FID else high - low
    return float(np.median(width))


def answer(model: Model, step: float = 0.005) -> dict[str, Any]:
    """The sparsest pair of ratios by the predicted medians, and by one-sided 95 % intervals."""
    table = points()
    dense = table[table["scope"] == "dense"].iloc[0]
    text, unet = (g.ravel() for g in np.meshgrid(np.arange(0, 0.65, step), np.arange(0, 0.55, step)))
    at = Places.by_magnitude(text, unet)
    zeros = LINEAR["text_encoder"] * text + LINEAR["unet"] * unet
    fid_mid, _, fid_high = model.interval("fid", at, 0.90)
    clip_mid, clip_low, _ = model.interval("clip", at, 0.90)
    fid_most, clip_least = dense[FID.column] + FID_RISE, dense[CLIP.column] - CLIP_DROP

    def best(inside: Mask) -> dict[str, float] | None:
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
    names = [f"{component}_{what}" for component in COMPONENTS for what in ("method", "sparsity")]
    return pd.concat([table[names].reset_index(drop=True), pd.DataFrame(columns)], axis=1)


def show_predictions(table: pd.DataFrame) -> dict[str, Any]:
    """Prints them; the same as figures."""
    print(table.to_string(index=False, float_format=lambda v: f"{v:.4g}"))
    rows = json.loads(table.to_json(orient="records"))
    found: dict[str, Any] = {"predicted": rows}
    for metric in (FID, CLIP):
        if f"{metric.name}_inside" in table:
            inside = table[f"{metric.name}_inside"].dropna()
            found[f"{metric.name}_inside"] = {"rows": len(inside), "inside": int(inside.sum())}
            print(f"{metric.name}: {int(inside.sum())} of {len(inside)} measured values inside")
    return found


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
    model, checks = learn(QUICK if given.quick else FULL)
    regional = {metric.name: summary(metric, model, checks[metric.name]) for metric in (FID, CLIP)}
    found: dict[str, Any] = {"quick": given.quick, "by_region": regional}
    if asked is not None:
        found |= show_predictions(predict(model, asked))
    else:
        found |= answer(model)
        for name in ("published", "by_median", "by_interval"):
            if point := found[name]:
                print(
                    f"{name:<12} text encoder {point['text_encoder']:.1%}, U-Net {point['unet']:.1%} of their Linear "
                    f"weights: {point['sparsity_components']:.1%} of both components' parameters"
                )
        for name, told in regional.items():
            print(
                f"{name}: {told['points']} points, {told['broken_points']} of them broken; {told['regions']} regions "
                f"left out, {told['predictions']} predictions: {told['coverage_own']:.0%} inside the model's own 95 % "
                f"interval; {told['coverage']:.0%} ({told['coverage_not_broken']:.0%} of those not broken) once it is "
                f"widened by what other regions need ({told['widen']:.2f} times in the end); median width "
                f"{told['width_inside']:.3g} inside the table, {told['width_outside']:.3g} outside"
            )
    holds = all(
        min(told["coverage"], told["coverage_not_broken"]) >= COVERAGE_BAR for told in regional.values()
    )
    bar = {"coverage_by_region": COVERAGE_BAR}
    print(json.dumps({"benchmark": "sd2_table", "figures": found, "bar": bar, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
