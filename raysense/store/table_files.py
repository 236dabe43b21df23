"""The Parquet files of a store and the manifest that says which of them count."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from raysense.errors import RaysenseError
from raysense.store import parquet
from raysense.store.disk import Disk, read_sealed
from raysense.store.schema import LATER, TABLES
from raysense.store.sealed import seal
from raysense.store.study_record import StudyRecord

_ORPHAN_SECONDS = 600.0  # a partial file this old has no writer any more


class TableFiles:
    """Files of tables; switching the manifest is what makes them count.

    Args:
        disk: The store's.
        record: Its study.
    """

    def __init__(self, disk: Disk, record: StudyRecord) -> None:
        self._disk, self._record = disk, record

    def switch(self, tables: Mapping[str, list[str]], manifest: Mapping[str, Any]) -> None:
        """Makes these files the ones that count.

        Raises:
            RaysenseError: Another driver has done so since `manifest` was read, or deleted a file, although it did
                not hold the lock.
        """
        there = {f"tables/{name}/{file}" for name in tables for file, _ in self._disk.names(f"tables/{name}")}
        missing = {file for files in tables.values() for file in files} - there
        if missing or self.manifest()["generation"] != manifest["generation"]:
            raise RaysenseError(
                f"store `{self._disk.shown}`: another driver has compacted this study meanwhile. Stop it, then start "
                "again; nothing is lost."
            )
        self.write_manifest(manifest["generation"] + 1, tables, (self._record.read() or {}).get("signature"))

    def write_manifest(
        self, generation: int, tables: Mapping[str, Sequence[str]], signature: str | None
    ) -> None:
        """Says which files count from now on."""
        fields = {"generation": generation, "signature": signature, "tables": dict(tables)}
        self._disk.write("manifest.json", seal(fields, indent=1))

    def sweep(self) -> None:
        """Deletes Parquet files that the manifest does not name and partial files that have no writer.

        Read anew: on an object store, whose lease is no lock, another driver may have switched it. There a file must
        be old too, as its writer may be about to.
        """
        old = time.time() - _ORPHAN_SECONDS
        named = self.manifest()["tables"]
        for name in TABLES:
            kept = set(named.get(name, ()))
            there = [(f"tables/{name}/{file}", at) for file, at in self._disk.names(f"tables/{name}")]
            gone = [file for file, at in there if file not in kept and (self._disk.local or at < old)]
            self._disk.delete(gone)
        self._disk.delete(
            [f"partial/{name}" for name, modified in self._disk.names("partial") if modified < old]
        )

    def write(self, name: str, table: pa.Table) -> str:
        """Writes a file of a table, which does not count yet; gives its name."""
        content = parquet.encode(table)
        file = f"tables/{name}/{parquet.digest(content)}.parquet"
        self._disk.write(file, content)
        return file

    def read(self, name: str, files: Sequence[str]) -> pa.Table:
        """The rows of some files of a table.

        Raises:
            FileNotFoundError: One is gone.
            RaysenseError: One is damaged.
        """
        schema = TABLES[name]
        parts = [schema.empty_table()]
        for file, content in zip(files, self._disk.read_all(files), strict=True):
            if content is None:
                raise FileNotFoundError(self._disk.path(file))
            try:
                if file != f"tables/{name}/{parquet.digest(content)}.parquet":
                    raise ValueError("its content does not match the checksum in its name")
                part = parquet.decode(content)
                for column in LATER.intersection(schema.names).difference(part.column_names):
                    kind = schema.field(column).type
                    unknown = [""] * len(part) if kind == pa.string() else [None] * len(part)
                    part = part.append_column(column, pa.array(unknown, kind))
                parts.append(part.select(schema.names).cast(schema))
            except (pa.ArrowException, KeyError, ValueError) as error:
                raise RaysenseError(
                    f"`{self._disk.path(file)}` is damaged or not a file of raysense ({error}). "
                    "Restore it from a copy; without one, delete the store and run the study again."
                ) from error
        return pa.concat_tables(parts).replace_schema_metadata(schema.metadata)

    def held(self, name: str, tables: Mapping[str, Sequence[str]]) -> pa.Table:
        """A table's compacted rows, read under the lock: nobody may have replaced a file meanwhile."""
        try:
            return self.read(name, tables.get(name, ()))
        except FileNotFoundError as error:
            raise _missing(error) from error

    def manifest(self) -> dict[str, Any]:
        """Which files count: ``generation`` and ``tables``.

        Raises:
            RaysenseError: It is lost, damaged or another study's.
        """
        path, remedy = self._disk.path("manifest.json"), "Restore it from a copy of the store."
        manifest = read_sealed(self._disk, "manifest.json", remedy)
        study = self._record.read()
        if manifest is None:
            if study is not None:
                raise RaysenseError(f"`{path}` is missing; without it no stored row is found. {remedy}")
            return {"generation": 0, "tables": {}}
        if not isinstance(manifest.get("tables"), dict) or not isinstance(manifest.get("generation"), int):
            raise RaysenseError(f"`{path}` is damaged (no tables). {remedy}")
        if study is not None and manifest.get("signature") not in (None, study["signature"]):
            raise RaysenseError(f"`{path}` belongs to another study than `study.json` beside it. {remedy}")
        return manifest

    def wait_for_switch(self, attempt: int, error: FileNotFoundError) -> None:
        """A file of the manifest is gone: a compaction has just replaced it, so a new manifest is there."""
        if attempt == 4:
            raise _missing(error) from error
        time.sleep(0.05 * 2**attempt)


def _missing(error: FileNotFoundError) -> RaysenseError:
    return RaysenseError(
        f"`{error}` is missing although the manifest names it. Restore it from a copy of the store."
    )
