"""The Parquet files of a store and the manifest that says which of them count."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from raysense.errors import RaysenseError
from raysense.store import parquet
from raysense.store.bucket import Moved, Version
from raysense.store.checksummed_json import seal
from raysense.store.disk import Disk, read_sealed_version
from raysense.store.lock import DriverLock, LockLost
from raysense.store.schema import LATER, TABLES
from raysense.store.study_record import StudyRecord

_ORPHAN_SECONDS = 600.0
"""A partial file on a local disk that is this old has no writer any more."""

_REMEDY = "Restore it from a copy of the store."


@dataclass(frozen=True)
class Manifest:
    """Which files count.

    Attributes:
        generation: How often it was switched.
        tables: Names of files by table.
        signature: The study's; None before it began.
        version: What `Disk.write_if` replaces.
    """

    generation: int = 0
    tables: Mapping[str, Sequence[str]] = field(default_factory=dict)
    signature: str | None = None
    version: Version = field(default_factory=dict)

    def files(self, name: str) -> Sequence[str]:
        """Of one table."""
        return self.tables.get(name, ())


class TableFiles:
    """Files of tables; switching the manifest is what makes them count.

    A switch names the manifest that it replaces, so that of two drivers one succeeds, and the other one's files never
    count. No two files have the same name, even with the same content: what is found beside a manifest that is then
    replaced belongs to nobody whose switch could still succeed, and may be deleted however slow its writer is.

    Args:
        disk: The store's.
        record: Its study.
    """

    def __init__(self, disk: Disk, record: StudyRecord) -> None:
        self._disk, self._record = disk, record

    def switch(self, tables: Mapping[str, Sequence[str]], manifest: Manifest, lock: DriverLock) -> Manifest:
        """Makes these files the ones that count, in place of the ones of `manifest`.

        Raises:
            LockLost: Another driver has switched it since `manifest` was read, or has taken over.
        """
        return self._replace(tables, manifest, lock.renew(), (self._record.read() or {}).get("signature"))

    def sign(self, manifest: Manifest, lock: DriverLock, signature: str) -> None:
        """Says whose study it is, before there are any files."""
        self._replace(manifest.tables, manifest, lock.renew(), signature)

    def fence(self, renew: Callable[[], str]) -> None:
        """Switches to the same files, so that no switch that an earlier holder has under way can succeed.

        Args:
            renew: Renews the new holder's lease and gives its token; after the manifest is read, as for any switch.

        Raises:
            LockLost: Yet another driver has taken over.
        """
        for _ in range(20):
            manifest = self.manifest(of_begun=False)
            token = renew()
            with contextlib.suppress(Moved):  # else the earlier holder's last switch has just arrived
                self._write(manifest.tables, manifest, token, manifest.signature)
                return
        raise RaysenseError(
            f"store `{self._disk.uri}`: another driver goes on writing. Stop it, then start again."
        )

    def _replace(
        self, tables: Mapping[str, Sequence[str]], manifest: Manifest, token: str, signature: str | None
    ) -> Manifest:
        try:
            return self._write(tables, manifest, token, signature)
        except Moved:
            raise LockLost(
                f"store `{self._disk.uri}`: another driver has written to this study meanwhile. This one stops; "
                "nothing is lost."
            ) from None

    def _write(
        self, tables: Mapping[str, Sequence[str]], manifest: Manifest, token: str, signature: str | None
    ) -> Manifest:
        fields = {
            "generation": manifest.generation + 1,
            "signature": signature,
            "tables": {name: list(files) for name, files in tables.items()},
            "driver": token,  # no two drivers write the same content
        }
        version = self._disk.write_if("manifest.json", seal(fields, indent=1), manifest.version)
        return Manifest(manifest.generation + 1, dict(tables), signature, version)

    def orphans(self, manifest: Manifest) -> list[str]:
        """Files of tables that it does not name; to be deleted once it is replaced, not before."""
        return [
            f"tables/{name}/{file}"
            for name in TABLES
            for file, _ in self._disk.names(f"tables/{name}")
            if f"tables/{name}/{file}" not in manifest.files(name)
        ]

    def delete(self, files: Sequence[str]) -> None:
        """Deletes files of tables, and partial files of a local disk that have no writer any more."""
        self._disk.delete(files)
        partial = self._disk.names("partial") if self._disk.local else []
        if partial:
            old = self._disk.now() - _ORPHAN_SECONDS
            self._disk.delete([f"partial/{name}" for name, modified in partial if modified < old])

    def write(self, name: str, table: pa.Table) -> str:
        """Writes a file of a table, which does not count yet; gives its name."""
        content = parquet.encode(table)
        file = f"tables/{name}/{parquet.digest(content)}-{uuid.uuid4().hex[:8]}.parquet"
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
                if not file.startswith(f"tables/{name}/{parquet.digest(content)}"):
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

    def held(self, name: str, manifest: Manifest) -> pa.Table:
        """A table's compacted rows, read under the lock: nobody may have replaced a file meanwhile.

        Raises:
            LockLost: Somebody has.
        """
        try:
            return self.read(name, manifest.files(name))
        except FileNotFoundError as error:
            if self.manifest().generation != manifest.generation:
                raise LockLost(
                    f"store `{self._disk.uri}`: another driver has compacted this study meanwhile. This one stops; "
                    "nothing is lost."
                ) from error
            raise _missing(error) from error

    def manifest(self, *, of_begun: bool = True) -> Manifest:
        """Which files count.

        Args:
            of_begun: Whether there must be one if the study has begun, and it must be that study's.

        Raises:
            RaysenseError: It is lost, damaged or another study's.
        """
        path = self._disk.path("manifest.json")
        fields, version = read_sealed_version(self._disk, "manifest.json", _REMEDY)
        study = self._record.read() if of_begun else None
        if fields is None:
            if study is not None:
                raise RaysenseError(f"`{path}` is missing; without it no stored row is found. {_REMEDY}")
            return Manifest()
        if not isinstance(fields.get("tables"), dict) or not isinstance(fields.get("generation"), int):
            raise RaysenseError(f"`{path}` is damaged (no tables). {_REMEDY}")
        signature = fields.get("signature")
        if study is not None and signature not in (None, study["signature"]):
            raise RaysenseError(f"`{path}` belongs to another study than `study.json` beside it. {_REMEDY}")
        return Manifest(fields["generation"], fields["tables"], signature, version)

    def wait_for_switch(self, attempt: int, error: FileNotFoundError) -> None:
        """A file of the manifest is gone: a compaction has just replaced it, so a new manifest is there."""
        if attempt == 4:
            raise _missing(error) from error
        time.sleep(0.05 * 2**attempt)


def _missing(error: FileNotFoundError) -> RaysenseError:
    return RaysenseError(
        f"`{error}` is missing although the manifest names it. Restore it from a copy of the store."
    )
