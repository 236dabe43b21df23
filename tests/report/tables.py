"""Changes to a stored study that only a test makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raysense.store.schema import TABLES
from raysense.store.store import Store


def rewrite(run: Path, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Replace the rows of a table."""
    table = change(Store.open(str(run)).table(name)).cast(TABLES[name])
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["tables"][name] = [f"tables/{name}/changed.parquet"]
    manifest["generation"] += 1
    pq.write_table(table, run / "tables" / name / "changed.parquet")
    (run / "manifest.json").write_text(json.dumps(manifest))


def column(table: pa.Table, name: str, values: list[str]) -> pa.Table:
    """The table with another text column."""
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))


def multiply(run: Path, least: int) -> int:
    """Give the study at least so many evaluations, the same ones over and over under new keys."""
    store = Store.open(str(run))
    times = -(-least // len(store.table("evaluations")))
    tables = {name: store.table(name) for name in ("evaluations", "measures", "samples")}

    def again(name: str) -> pa.Table:
        table = tables[name]
        parts = [
            column(table, "key", [f"{number:04d}{key[4:]}" for key in table["key"].to_pylist()])
            for number in range(times)
        ]
        return pa.concat_tables(parts)

    for name in tables:
        rewrite(run, name, lambda _, name=name: again(name))
    return times * len(tables["evaluations"])
