"""Rows that follow from others: the table `studies`, an allocation's zeros."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysense.errors import RaysenseError
from raysense.feasibility import Budget
from raysense.store.schema import TABLES


def studies_of(study: Mapping[str, Any] | None) -> pa.Table:
    """The table `studies`: a row, or none before the study began."""
    if study is None:
        return TABLES["studies"].empty_table()
    row = {
        **study,
        **study["denominators"],
        "name": str(study["definition"].get("name", "")),
        "definition": json.dumps(study["definition"], sort_keys=True),
        "bounds": json.dumps((study.get("budget") or {}).get("bounds", [])),
        "look": 1 + study["definition"].get("search", {}).get("earlier_looks", 0),
        "looked_before": json.dumps(study.get("looks", [])),
    }
    return pa.Table.from_pylist([row], schema=TABLES["studies"])


def budget_of(study: Mapping[str, Any] | None) -> Budget | None:
    """What decides which rows are feasible, if anything does."""
    fields = (study or {}).get("budget")
    return Budget.from_fields(fields) if fields else None


def completed(name: str, table: pa.Table) -> pa.Table:
    """Rows of a table in the schema's order and types; missing columns become null.

    Raises:
        RaysenseError: Columns that the schema does not know.
    """
    schema = TABLES[name]
    if unknown := sorted(set(table.column_names) - set(schema.names)):
        raise RaysenseError(f"table `{name}`: unknown columns {unknown}; known are {sorted(schema.names)}.")
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def with_zeros(table: pa.Table, layers: pa.Table) -> pa.Table:
    """Each allocation's layers once, with the zeros that their levels stand for."""
    schema = TABLES["allocations"]
    once = table.group_by(["allocation", "layer"]).aggregate([("level", "min")])
    steps = pc.index_in(once["layer"], layers["layer"].combine_chunks())
    zeros = pc.multiply(once["level_min"], layers["step"].combine_chunks().take(steps.combine_chunks()))
    return pa.table([once["allocation"], once["layer"], once["level_min"], zeros], schema=schema)


def new_allocations(added: pa.Table, stored: pa.Table) -> pa.Table:
    """The rows of allocations that are not stored yet."""
    return added.filter(pc.invert(pc.is_in(added["allocation"], stored["allocation"].combine_chunks())))
