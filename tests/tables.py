"""Changes to a stored study that only a test makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysense.store import parquet
from raysense.store.checksummed_json import seal, unseal
from raysense.store.schema import TABLES
from raysense.store.store import Store


def rewrite(run: Path, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Replace the rows of a table."""
    table = change(Store.open(str(run), create=True).table(name))
    table = table.cast(pa.schema([TABLES[name].field(column) for column in table.column_names]))
    content = parquet.encode(table)
    file = f"tables/{name}/{parquet.digest(content)}.parquet"
    (run / file).write_bytes(content)

    def switch(manifest: dict[str, Any]) -> None:
        manifest["tables"][name] = [file]
        manifest["generation"] += 1

    edit(run / "manifest.json", switch)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the fields of a file that carries its own checksum."""
    fields = unseal(path.read_bytes(), path.name)
    change(fields)
    path.write_bytes(seal(fields, indent=1))


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
