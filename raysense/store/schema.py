"""The tables of a store, every column with one line that says what it holds.

All columns are plain (text, integer, float), so that pandas, polars, DuckDB and Spark read them without
unpacking. What varies in number is long: an evaluation's measures are rows of `measures`, its per-image
values rows of `samples`, an allocation's layers rows of `allocations`. A pivot gives the wide form::

    PIVOT measures ON metric USING first(value) GROUP BY key
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

import raysense
from raysense.errors import OtherVersion

SCHEMA_VERSION = 3
"""2: checksums in every file. 3: columns with the field's names."""

READ_BY = {1: "0.1.0", 2: "0.2.0"}
"""Older schema versions -> the raysense that reads them."""

_INT, _FLOAT, _TEXT = pa.int64(), pa.float64(), pa.string()


def _schema(about: str, *columns: tuple[str, pa.DataType, str]) -> pa.Schema:
    return pa.schema(
        [pa.field(name, kind, metadata={"description": text}) for name, kind, text in columns],
        metadata={"schema_version": str(SCHEMA_VERSION), "description": about},
    )


DENOMINATORS: dict[str, str] = {
    "zeros_before": "zeros among the selected layers' weights of the dense pipeline",
    "n_selected": "weights of the selected layers",
    "n_prunable": "Linear and Conv weights of the study's components",
    "n_components": "parameters of the study's components; zeros / n_components is the objective",
    "n_pipeline": "parameters of the whole pipeline",
}

STUDIES = _schema(
    "One row: what the study is.",
    ("signature", _TEXT, "identity of the study: same signature, same trials, same rows"),
    ("name", _TEXT, "the study's name, or an empty text"),
    ("definition", _TEXT, "the study's definition as JSON"),
    (
        "bounds",
        _TEXT,
        "the quality budget as a JSON list: field, metric, is_upper, bound; see the view bounds",
    ),
    (
        "look",
        _INT,
        "which look at its held-out prompts the study is, runs before it counted: 1 unless there were some; from the "
        "second on, finalists must clear the bounds with wider intervals",
    ),
    ("looked_before", _TEXT, "the runs that looked before it, as a JSON list: run, signature"),
    ("raysense_version", _TEXT, "version of raysense that began the study"),
    ("created", _TEXT, "when the store was created, UTC, ISO 8601"),
    *((name, _INT, text) for name, text in DENOMINATORS.items()),
)

LAYERS = _schema(
    "One row per prunable layer of the study.",
    ("layer", _TEXT, "address `component:module.path`"),
    ("component", _TEXT, "name of the pipeline's component"),
    ("block", _TEXT, "name of the block the layer belongs to"),
    ("kind", _TEXT, "type of module: Linear, Conv2d …"),
    ("weights", _INT, "number of weights"),
    ("step", _INT, "weights removed by one level"),
    ("levels", _INT, "highest level"),
    ("group", _TEXT, "name of the group that moves together"),
    (
        "order",
        _INT,
        "place in the order of the layers' first calls when an image is made, from 0; null for a layer that never "
        "runs, and for all where a dry run without weights was not possible",
    ),
)

ALLOCATIONS = _schema(
    "One row per allocation and layer that it prunes; layers at level 0 are left out.",
    ("allocation", _TEXT, "content hash of the allocation"),
    ("layer", _TEXT, "address `component:module.path`"),
    ("level", _INT, "the layer's level"),
    (
        "zeros",
        _INT,
        "weights that the level removes: level × the layer's step; null while layers are unknown",
    ),
)

EVALUATIONS = _schema(
    "One row per evaluation: one allocation measured on one rung; or, on the rung `shard`, some of its images sampled.",
    ("key", _TEXT, "name of the evaluation: hash of study signature, allocation, rung and replicate"),
    ("trial", _TEXT, "name of the trial that asked first, e.g. search/lamp/3"),
    ("stage", _TEXT, "baseline, sensitivity, search or validation; sweep"),
    ("allocation", _TEXT, "content hash of the allocation; see the table allocations"),
    ("rung", _TEXT, "name of the rung"),
    ("replicate", _INT, "which set of seeds, 0 first"),
    ("zeros", _INT, "counted zeros among the selected layers' weights after masking"),
    *((name, _INT, text) for name, text in DENOMINATORS.items()),
    ("images", _INT, "images sampled for this evaluation"),
    (
        "nfe",
        _INT,
        "number of function evaluations that measuring it took (evaluations of the denoiser, one image each, "
        "conditional and unconditional counted apart); spent here unless `taken_from` says where",
    ),
    ("seconds", _FLOAT, "wall time, seconds"),
    (
        "strategy",
        _TEXT,
        "which strategy proposed it; dense in the baseline, an empty text for sensitivity, sweep for a sweep",
    ),
    (
        "feasible",
        pa.bool_(),
        "whether the whole interval of every bounded measure clears its bound; null where no images were judged",
    ),
    (
        "constraint_utilisation",
        _FLOAT,
        "largest share of a bound's room, from dense to the bound, that the interval's worse end uses: above 1 is "
        "outside; null where nothing was judged",
    ),
    ("collapsed", _TEXT, "why the output is broken, or an empty text"),
    ("failed", _TEXT, "why it could not be measured, or an empty text"),
    ("notes", _TEXT, "what departed from the plan, or an empty text"),
    ("method", _TEXT, "what chose the weights that left: wanda, magnitude 2:4 …"),
    ("ray_trial", _TEXT, "Ray Tune's trial id, or in-process"),
    ("evaluator", _TEXT, "which evaluator life answered"),
    ("device", _TEXT, "what it ran on: cpu, cuda and the card's name"),
    ("versions", _TEXT, "of the software that decides what is measured"),
    (
        "taken_from",
        _TEXT,
        "the earlier run that measured it (`search --from`); an empty text if this one did",
    ),
)

MEASURES = _schema(
    "One row per evaluation and metric.",
    ("key", _TEXT, "the evaluation's key"),
    ("metric", _TEXT, "name of the metric"),
    ("value", _FLOAT, "point estimate in the metric's own unit"),
    ("ci_low", _FLOAT, "lower end of the two-sided 95 % interval"),
    ("ci_high", _FLOAT, "upper end of the two-sided 95 % interval"),
    ("n", _INT, "sample size"),
    ("extractor", _TEXT, "whose features"),
)

SAMPLES = _schema(
    "One row per evaluation, image and per-image metric.",
    ("key", _TEXT, "the evaluation's key"),
    ("allocation", _TEXT, "content hash of the allocation"),
    ("rung", _TEXT, "name of the rung"),
    ("prompt_id", _TEXT, "identity of the prompt, as text"),
    ("prompt", _TEXT, "the prompt"),
    ("seed", _INT, "seed of the starting noise"),
    ("metric", _TEXT, "name of the per-image metric"),
    ("value", _FLOAT, "its value for this image"),
)

_POINT: tuple[tuple[str, pa.DataType, str], ...] = (
    (
        "point_set",
        _TEXT,
        "the set of points, by its name or number in the study; screen for the screening design",
    ),
    (
        "granularity",
        _TEXT,
        "what the groups are: component, block, layer, kind; together or subset for several",
    ),
    ("groups", _TEXT, "what is pruned, everything else being dense"),
    ("rule", _TEXT, "how a group's total is shared out among its layers"),
    ("method", _TEXT, "what chooses the weights that leave"),
    ("steps_from", _FLOAT, "where pruning begins, as a share of the denoising steps; null for all of them"),
    ("steps_to", _FLOAT, "where pruning ends, as a share of the denoising steps; null for all of them"),
    ("rung", _TEXT, "where it was measured"),
)

POINTS = _schema(
    "One row per point of a sweep. Two points may share an evaluation.",
    ("key", _TEXT, "the evaluation's key"),
    *_POINT,
    ("shares", _TEXT, "group -> share of its weights that was asked for, as JSON"),
    ("weights", _INT, "weights of the groups"),
    ("sparsity", _FLOAT, "share of the groups' weights that left"),
    ("listed", pa.bool_(), "whether the study lists it; otherwise it was put between others to find a cliff"),
)

CLIFFS = _schema(
    "One row per curve of a sweep and place: its knee, where the loss accelerates, or its collapse.",
    *_POINT,
    ("measure", _TEXT, "the loss that tells"),
    (
        "place",
        _TEXT,
        "knee: where damage per removed weight accelerates; collapse: half of all there is to lose is lost",
    ),
    ("sparsity", _FLOAT, "share of the group's weights; null where the measured curve has no such place"),
    ("ci_low", _FLOAT, "lower end of its interval, see docs/guides/sensitivity.md"),
    ("ci_high", _FLOAT, "upper end of its interval"),
    ("whole", _FLOAT, "what there is to lose: the most that any point of the sweep lost on the rung"),
    ("points", _INT, "measured points of the curve"),
)

RANKING = _schema(
    "One row per block, layer or kind and set of a sweep that prunes several alone by the same share or zeros.",
    *_POINT,
    ("key", _TEXT, "the evaluation's key"),
    ("asked", _TEXT, "what all of them lost: a share of each one's weights, or zeros"),
    ("zeros", _INT, "weights that left"),
    ("measure", _TEXT, "the loss they are ranked by"),
    ("loss", _FLOAT, "its value"),
    ("ci_low", _FLOAT, "lower end of its 95 % interval"),
    ("ci_high", _FLOAT, "upper end"),
    ("all_ci_low", _FLOAT, "lower end of an interval that holds for all of the set at once (Bonferroni)"),
    ("all_ci_high", _FLOAT, "upper end"),
    ("p", _FLOAT, "probability of so large a loss by chance, corrected for looking at all (Holm)"),
    ("rank", _INT, "1 for the largest loss"),
    ("rank_low", _INT, "1 + how many surely lose more: their whole interval for all lies above"),
    ("rank_high", _INT, "how many do not surely lose less"),
)

PAIRS = _schema(
    "One row per pair of groups that a sweep's screening design found to damage more together than apart, or less.",
    ("first", _TEXT, "the one group"),
    ("second", _TEXT, "the other"),
    ("rung", _TEXT, "where it was measured"),
    ("measure", _TEXT, "the loss that tells"),
    ("effect", _FLOAT, "loss of both together beyond the sum of each alone"),
    ("ci_low", _FLOAT, "lower end of its interval, which holds for all pairs at once"),
    ("ci_high", _FLOAT, "upper end"),
    ("p", _FLOAT, "probability of so strong a pair anywhere, were there none (Westfall & Young)"),
    ("runs", _INT, "subsets that were measured"),
    ("pairs", _INT, "pairs that were looked at"),
)

AGREEMENT = _schema(
    "One row per set of a sweep whose points were also probed: how well the probe orders what images say.",
    ("point_set", _TEXT, "the set with images"),
    ("granularity", _TEXT, "what its groups are"),
    ("rung", _TEXT, "where the images were judged"),
    ("asked", _TEXT, "what all of them lost"),
    ("measure", _TEXT, "the loss"),
    ("n", _INT, "groups"),
    ("spearman", _FLOAT, "rank correlation of the probe error and the loss"),
    ("ci_low", _FLOAT, "lower end of its 95 % interval (Bonett & Wright 2000)"),
    ("ci_high", _FLOAT, "upper end"),
)

DERIVED = ("points", "cliffs", "ranking", "pairs", "agreement")
"""Tables that a sweep writes anew whenever it ends."""

LATER = {"method", "device", "versions", "order", "taken_from", "look", "looked_before"}
"""Columns that came after the first stores of this version: an empty text or null where missing."""

TABLES: dict[str, pa.Schema] = {
    "studies": STUDIES,
    "layers": LAYERS,
    "allocations": ALLOCATIONS,
    "evaluations": EVALUATIONS,
    "measures": MEASURES,
    "samples": SAMPLES,
    "points": POINTS,
    "cliffs": CLIFFS,
    "ranking": RANKING,
    "pairs": PAIRS,
    "agreement": AGREEMENT,
}


def check_version(found: Any, where: str, wrote: str = "") -> None:
    """Refuses what this raysense does not read.

    Args:
        found: The schema version that a file states.
        where: What states it, for the message.
        wrote: Version of raysense that wrote it, if known.

    Raises:
        ValueError: `found` is no version at all.
        OtherVersion: It is another one than this raysense reads.
    """
    if type(found) is not int or found < 1:
        raise ValueError(f"schema version {found!r}")
    if found != SCHEMA_VERSION:
        kind = "a newer" if found > SCHEMA_VERSION else "an older"
        wrote = wrote or READ_BY.get(found, "")
        remedy = f"Use raysense {wrote}" if wrote else f"Use {kind} raysense"
        raise OtherVersion(
            f"{where}: schema version {found}, written by {kind} raysense; this one ({raysense.__version__}) reads "
            f"version {SCHEMA_VERSION}. {remedy}, or another folder."
        )
