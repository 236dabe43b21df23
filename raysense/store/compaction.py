"""Objects become rows of Parquet files: new files, then the manifest, then what is no longer needed goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from raysense.store import rows
from raysense.store.compacted import Compacted
from raysense.store.derived import budget_of, new_allocations, studies_of, with_zeros
from raysense.store.lock import DriverLock
from raysense.store.objects import Entry, Objects, is_failed, key_of
from raysense.store.table_files import Manifest, TableFiles

MANY_FILES = 12
"""Above this, a compaction rewrites a table's files as one."""


def take_in(
    files: TableFiles,
    objects: Objects,
    study: Mapping[str, Any] | None,
    manifest: Manifest,
    compacted: Compacted,
    lock: DriverLock,
) -> int:
    """Takes the measured objects that are there into the tables.

    Args:
        files: The store's tables.
        objects: The store's objects.
        study: Its record.
        manifest: What counts now.
        compacted: The rows of that manifest.
        lock: Held by the caller.

    Returns:
        Number of evaluations taken in.

    Raises:
        LockLost: Another driver has written to the store meanwhile; then this one's files count for nothing.
    """
    names, orphans = objects.names(), files.orphans(manifest)
    new = objects.read([n for n in names if not is_failed(n) and key_of(n) not in compacted])
    tables = _with(new, files, study, manifest) if new else manifest.tables
    if new or orphans:
        # Whatever is not named by the manifest that this replaces has no writer who could still name it.
        switched = files.switch(tables, manifest, lock)
        replaced = [file for names in manifest.tables.values() for file in names]
        kept = {file for names in switched.tables.values() for file in names}
        files.delete([file for file in [*orphans, *replaced] if file not in kept])
    # Rows in a table are there for good: their objects may go, whoever else compacts by now.
    taken = {entry.key for entry, _ in new}
    objects.delete([n for n in names if key_of(n) in taken or key_of(n) in compacted])
    return len(new)


def _with(
    new: Sequence[Entry], files: TableFiles, study: Mapping[str, Any] | None, manifest: Manifest
) -> dict[str, Sequence[str]]:
    """The manifest's files and those with the new rows, which are written."""
    tables: dict[str, Sequence[str]] = dict(manifest.tables)
    for name, added in rows.to_tables(new, budget_of(study)).items():
        if name == "allocations":
            unknown = new_allocations(added, files.held(name, manifest))
            added = with_zeros(unknown, files.held("layers", manifest))
        if name == "evaluations" and study is not None:
            added = rows.denominated(added, study["denominators"])
        before = manifest.files(name)
        if len(before) >= MANY_FILES:
            added, before = pa.concat_tables([files.held(name, manifest), added]), ()
        tables[name] = [*before, files.write(name, added)] if len(added) else before
    if not files.held("studies", manifest).equals(studies_of(study)):
        tables["studies"] = [files.write("studies", studies_of(study))]
    return tables
