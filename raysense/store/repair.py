"""What of a store is whole, and how what is not is made whole again without making anything up.

Rows come from files whose checksum holds; an evaluation of which any part is lost is taken out whole, so that a resumed
study measures it again. Rows of objects that no compaction has taken in are in no table, and stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.feasibility import IMAGE_RUNGS
from raysense.records import SHARD
from raysense.store.disk import Disk
from raysense.store.objects import Objects
from raysense.store.schema import DERIVED, TABLES
from raysense.store.store import Store
from raysense.store.table_files import Manifest, TableFiles

_KEYS = {
    "evaluations": ["key"],
    "measures": ["key", "metric"],
    "samples": ["key", "prompt_id", "seed", "metric"],
    "allocations": ["allocation", "layer"],
    "layers": ["layer"],
    "studies": ["signature"],
}
"""What makes two rows of a table the same row."""


@dataclass(frozen=True)
class Broken:
    """A file that is not what it was written as.

    Attributes:
        file: Its name in the store.
        why: What is wrong.
        remedy: What `raysense check --repair` does, or what is left to the user.
        mendable: Whether `--repair` does it.
    """

    file: str
    why: str
    remedy: str
    mendable: bool = True


def broken_objects(disk: Disk) -> list[Broken]:
    """Objects that cannot be read."""
    objects, found = Objects(disk), []
    for name in objects.names():
        try:
            objects.read([name])
        except RaysenseError as error:
            found.append(Broken(f"objects/{name}", str(error), "deleted; it is measured again"))
    return found


def broken_tables(store: Store) -> list[Broken]:
    """The manifest, or files that it names, if they cannot be read."""
    remedy = "the tables are written anew from the files that are whole; what is lost is measured again"
    try:
        manifest = store._files.manifest()
    except RaysenseError as error:
        return [Broken("manifest.json", str(error), remedy)]
    return [
        Broken(file, why, remedy)
        for name, named in manifest.tables.items()
        for file in named
        if (why := _damage(store._files, name, file))
    ]


def rebuild_tables(disk: Disk, store: Store) -> int:
    """Writes the tables and the manifest anew from what is whole. For the driver.

    Returns:
        How many evaluations of those in whole files had to be taken out, because some other part of them is lost.

    Raises:
        RaysenseError: Another driver runs on the store, or it cannot be written.
    """
    files = store._files
    with store.lock() as lock:
        try:
            manifest = files.manifest()
            named: Mapping[str, Sequence[str]] = manifest.tables
            lost: set[str] = set()
        except RaysenseError:
            _, version = disk.read_version("manifest.json")
            generation = max(1, int(disk.now()) if disk.local else 1 << 30)
            manifest = Manifest(generation, {}, None, version)
            named = {n: [f"tables/{n}/{f}" for f, _ in disk.names(f"tables/{n}")] for n in TABLES}
            lost = set(TABLES)  # nothing tells whether there were more files than are found
        whole = {name: [f for f in named.get(name, ()) if not _damage(files, name, f)] for name in TABLES}
        lost |= {name for name in TABLES if len(whole[name]) < len(named.get(name, ()))}
        tables = {name: _rows(files, name, whole[name]) for name in TABLES if name not in DERIVED}
        before = len(tables["evaluations"])
        tables = _consistent(tables, lost)
        # Written as one, and anew when the sweep is resumed: all of it or nothing.
        tables |= {name: files.read(name, whole[name]) for name in DERIVED if name not in lost}
        new = {name: [files.write(name, rows)] for name, rows in tables.items() if len(rows)}
        switched = files.switch(new, manifest, lock)
        files.delete(files.orphans(switched))
    return before - len(tables["evaluations"])


def _damage(files: TableFiles, name: str, file: str) -> str:
    """Why a file of a table cannot be read, or an empty text."""
    try:
        files.read(name, [file])
    except FileNotFoundError as error:
        return f"`{error}` is missing"
    except RaysenseError as error:
        return str(error)
    return ""


def _rows(files: TableFiles, name: str, of: Sequence[str]) -> pa.Table:
    """The rows of some files, each once."""
    rows = files.read(name, of)
    place = pa.array(range(len(rows)), pa.int64())
    first = rows.append_column("_place", place).group_by(_KEYS[name]).aggregate([("_place", "min")])
    return rows.take(first["_place_min"].combine_chunks().sort())


def _consistent(tables: Mapping[str, pa.Table], lost: set[str]) -> dict[str, pa.Table]:
    """The tables without evaluations of which a part was in a file that is lost."""
    evaluations = tables["evaluations"]
    for name in ("measures", "samples"):
        if name in lost:
            kept = pc.is_in(evaluations["key"], tables[name]["key"].combine_chunks())
            rungs = evaluations["rung"]
            if name == "measures":
                has_none = pc.equal(rungs, SHARD)
            else:  # an evaluation on an image rung has them even if its shards painted all its images
                has_none = pc.invert(pc.is_in(rungs, pa.array(IMAGE_RUNGS)))
            kept = pc.or_(kept, has_none)
            evaluations = evaluations.filter(kept)
    if "allocations" in lost:
        known = pa.concat_arrays(
            [tables["allocations"]["allocation"].combine_chunks(), pa.array([Allocation().key], pa.string())]
        )
        evaluations = evaluations.filter(pc.is_in(evaluations["allocation"], known))
    keys = evaluations["key"].combine_chunks()
    parts = {
        name: tables[name].filter(pc.is_in(tables[name]["key"], keys)) for name in ("measures", "samples")
    }
    return {**tables, "evaluations": evaluations, **parts}
