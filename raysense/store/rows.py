"""Between evaluations and their forms in the store: pure conversions."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from raysense.feasibility import Budget
from raysense.records import Evaluation, Measure
from raysense.store.checksummed_json import seal, unseal
from raysense.store.schema import EVALUATIONS, LATER, TABLES

_PLAIN = (
    "key",
    "trial",
    "stage",
    "allocation",
    "rung",
    "replicate",
    "zeros",
    "images",
    "nfe",
    "seconds",
    "collapsed",
    "failed",
    "notes",
    "method",
    "ray_trial",
    "evaluator",
    "device",
    "versions",
    "taken_from",
)
_OWN = ("key", "allocation")  # texts that hardly recur
_MEASURE = ("value", "ci_low", "ci_high", "n", "extractor")
_IMAGE = ("prompt_id", "prompt", "seed")

Rows = dict[str, list[dict[str, Any]]]


def to_fields(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as plain JSON-able fields, samples included."""
    return {
        **{name: getattr(evaluation, name) for name in _PLAIN},
        "measures": {
            metric: {name: getattr(measure, name) for name in _MEASURE}
            for metric, measure in evaluation.measures.items()
        },
        "samples": [dict(sample) for sample in evaluation.samples],
    }


def from_fields(fields: Mapping[str, Any]) -> Evaluation:
    """The evaluation that `to_fields` was given."""
    return Evaluation(
        **{
            name: fields[name] if name in _OWN else _shared(fields[name])
            for name in _PLAIN
            if name in fields or name not in LATER
        },
        measures={
            sys.intern(metric): Measure(**{name: _shared(value) for name, value in values.items()})
            for metric, values in fields["measures"].items()
        },
        samples=tuple(fields["samples"]),
    )


def _shared(value: Any) -> Any:
    """One object for all equal texts: a driver keeps every row of a long study, and most of their texts recur."""
    return sys.intern(value) if type(value) is str else value


def without_samples(evaluation: Evaluation) -> Evaluation:
    """The evaluation as strategies see it."""
    return replace(evaluation, samples=()) if evaluation.samples else evaluation


def to_object(evaluation: Evaluation, levels: Mapping[str, int] | None) -> bytes:
    """The content of an evaluation's immutable object."""
    return seal({**to_fields(evaluation), "levels": dict(levels or {})}, default=_number)


def _number(value: Any) -> float | int:
    """A numpy scalar as a plain number."""
    if hasattr(value, "item"):
        number: float | int = value.item()
        return number
    raise TypeError(f"{type(value).__name__} cannot be stored; give text or a number")


def from_object(content: bytes, where: str) -> tuple[Evaluation, dict[str, int]]:
    """The evaluation and its allocation's levels.

    Raises:
        ValueError: The content is damaged.
        RaysenseError: Another raysense wrote it.
    """
    fields = unseal(content, where)
    try:
        levels = fields.pop("levels")
        return from_fields(fields), dict(levels)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"field {error} is missing or of the wrong type") from error


def levels_of(allocations: pa.Table) -> dict[str, dict[str, int]]:
    """The table `allocations` as mappings: allocation -> layer -> level."""
    found: dict[str, dict[str, int]] = {}
    for row in allocations.to_pylist():
        found.setdefault(row["allocation"], {})[row["layer"]] = row["level"]
    return found


def strategy_of(stage: str, trial: str) -> str:
    """Who proposed an allocation, by the name of the trial: ``search/lamp/3`` → lamp."""
    if stage == "baseline":
        return "dense"
    if stage == "sweep":
        return "sweep"
    return trial.split("/")[1] if stage in ("search", "validation") and "/" in trial else ""


def to_rows(evaluation: Evaluation, levels: Mapping[str, int], budget: Budget | None) -> Rows:
    """The rows that an evaluation adds to each table; denominators and zeros per layer are added on reading."""
    of_image = [
        {
            "key": evaluation.key,
            "allocation": evaluation.allocation,
            "rung": evaluation.rung,
            "prompt_id": str(sample["prompt_id"]),
            "prompt": str(sample["prompt"]),
            "seed": int(sample["seed"]),
            "metric": metric,
            "value": None if value is None else float(value),
        }
        for sample in evaluation.samples
        for metric, value in sample.items()
        if metric not in _IMAGE
    ]
    return {
        "evaluations": [
            {
                **{name: getattr(evaluation, name) for name in _PLAIN},
                "strategy": strategy_of(evaluation.stage, evaluation.trial),
                **(budget.judged(evaluation) if budget else {}),
            }
        ],
        "measures": [
            {"key": evaluation.key, "metric": metric, **{name: getattr(measure, name) for name in _MEASURE}}
            for metric, measure in evaluation.measures.items()
        ],
        "samples": of_image,
        "allocations": [
            {"allocation": evaluation.allocation, "layer": layer, "level": level}
            for layer, level in levels.items()
        ],
    }


def to_tables(
    evaluations: Sequence[tuple[Evaluation, Mapping[str, int]]], budget: Budget | None = None
) -> dict[str, pa.Table]:
    """The tables of many evaluations; each allocation's layers once.

    Args:
        evaluations: Each with its allocation's levels.
        budget: Decides which are feasible; without one, that is null.
    """
    collected: Rows = {"evaluations": [], "measures": [], "samples": [], "allocations": []}
    allocations: set[str] = set()
    for evaluation, levels in evaluations:
        rows = to_rows(evaluation, levels, budget)
        if evaluation.allocation in allocations:
            rows["allocations"] = []
        elif levels:
            allocations.add(evaluation.allocation)
        for name, added in rows.items():
            collected[name].extend(added)
    return {name: pa.Table.from_pylist(rows, schema=TABLES[name]) for name, rows in collected.items()}


def from_row(row: Mapping[str, Any], measures: Sequence[Mapping[str, Any]]) -> Evaluation:
    """An evaluation without samples, from its row and its rows of `measures`."""
    return Evaluation(
        **{name: row[name] for name in _PLAIN},
        measures={m["metric"]: Measure(**{name: m[name] for name in _MEASURE}) for m in measures},
    )


def denominated(table: pa.Table, denominators: Mapping[str, int]) -> pa.Table:
    """Rows of `evaluations` with the study's denominators filled in."""
    for name, value in denominators.items():
        column = pa.repeat(pa.scalar(value, pa.int64()), len(table))
        table = table.set_column(EVALUATIONS.get_field_index(name), EVALUATIONS.field(name), column)
    return table
