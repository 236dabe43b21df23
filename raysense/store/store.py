"""The store of a study: append, read, compact.

Layout, below the store's address::

    study.json               what the study is: signature, definition, denominators
    objects/<key>.json       one evaluation each, immutable, written by whoever measured it
    tables/<name>/*.parquet  compacted rows; a file's name is the SHA-256 of its content
    manifest.json            which files below tables/ count; switching it is what makes a compaction happen
    driver.lock              see `raysense.store.lock`
    partial/                 files being written on a local disk; nobody reads here

An evaluation is visible from the moment its object is there. Compaction writes new Parquet files, then
replaces the manifest, then deletes the objects it has taken in; a reader passes over objects whose key
is already in a table. Stopped between any two of these steps, the store still reads the same rows.

Every file is checked when it is read: JSON carries its own checksum (`raysense.store.sealed`), Parquet is named by it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import raysense
from raysense.errors import RaysenseError
from raysense.feasibility import Budget
from raysense.records import Evaluation
from raysense.store import parquet, rows
from raysense.store.disk import Disk, read_sealed
from raysense.store.lock import DriverLock
from raysense.store.schema import DENOMINATORS, LATER, TABLES
from raysense.store.sealed import seal

CONTENTS = {
    "prompts": "the prompts' texts or ids",
    "pipeline": "the pipeline's files",
    "judges": "the networks that judge",
    "reference": "the reference's images",
    "plugins": "a plug-in's code",
    "versions": "the software",
    "device": "the kind of device that measures",
}
"""What a study's `inputs` are, in words."""

_FROM_OBJECTS = ("evaluations", "measures", "samples", "allocations")
_MANY_FILES = 12  # above this, a compaction rewrites a table's files as one
_ORPHAN_SECONDS = 600.0  # a partial file this old has no writer any more


class Store:
    """A study's rows, on a local disk or an object store. Make one with `Store.open`.

    Any number of processes may `put` and read at once; the methods that say so belong to the driver,
    which holds `lock()`.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._compacted = _Compacted.nothing()
        self._study: dict[str, Any] | None = None

    @classmethod
    def open(cls, uri: str, *, create: bool = False) -> Store:
        """Opens the store at a local path or an address such as ``s3://bucket/folder``.

        Args:
            uri: Where the store is.
            create: Whether there may be nothing yet.

        Raises:
            RaysenseError: There is no store, it cannot be read, or a newer raysense wrote it.
        """
        store = cls(Disk(uri))
        study = store._read_study()
        if study is None and not create:
            raise RaysenseError(
                f"store `{store._disk.shown}`: there is no study (no `{store._disk.path('study.json')}`). "
                "Give the folder that a study was written to."
            )
        return store

    @property
    def uri(self) -> str:
        """The address the store was opened with."""
        return self._disk.uri

    @property
    def study(self) -> dict[str, Any] | None:
        """What `begin` recorded: ``signature``, ``definition``, ``denominators`` … or None before it."""
        return self._read_study()

    def lock(self) -> DriverLock:
        """The lock that a driver holds while it runs, a context manager; what only a driver may do takes it."""
        return DriverLock(self._disk)

    # --- the study's identity -------------------------------------------------------------------------

    def begin(
        self,
        definition: Mapping[str, Any],
        *,
        signature: str,
        denominators: Mapping[str, int] | None = None,
        extensions: Sequence[str] = ("budget",),
        inputs: Mapping[str, Any] | None = None,
        budget: Budget | None = None,
    ) -> None:
        """Records what the study is, or checks that it is still the same. For the driver.

        Args:
            definition: The study's definition, JSON-able; its ``name``, if any, goes into `studies`.
            signature: Its identity: whatever changes an evaluation's value changes the signature.
            denominators: The integers that every row of `evaluations` carries beside its zeros, by the
                names in `raysense.store.schema.DENOMINATORS`. May be given later, once they are counted.
            extensions: Fields of the definition, dotted if nested, that may change without changing
                the study, such as a larger budget.
            inputs: What the rows depend on beside the definition, by content, JSON-able; part of the identity.
            budget: What decides which rows are feasible; without one, that column is null.

        Raises:
            RaysenseError: The store holds another study; shows each differing field.
        """
        unknown = sorted(set(denominators or {}) - set(DENOMINATORS))
        if unknown:
            raise RaysenseError(f"denominators: unknown {unknown}; known are {sorted(DENOMINATORS)}.")
        plain: dict[str, Any] = json.loads(json.dumps(definition))
        with self.lock():
            self._begin(plain, signature, denominators or {}, extensions, inputs or {}, budget)

    def _begin(
        self,
        plain: dict[str, Any],
        signature: str,
        denominators: Mapping[str, int],
        extensions: Sequence[str],
        inputs: Mapping[str, Any],
        budget: Budget | None,
    ) -> None:
        study = self._read_study()
        if study is None:
            study = {
                "signature": signature,
                "raysense_version": raysense.__version__,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "denominators": {},
            }
        elif study["signature"] != signature:
            raise RaysenseError(_refusal(self._disk.shown, study, plain, extensions, inputs))
        new = {
            **study,
            "definition": plain,
            "inputs": json.loads(json.dumps(inputs)),
            "budget": budget.to_fields() if budget else None,
            "denominators": {**study["denominators"], **{k: int(v) for k, v in denominators.items()}},
        }
        if new != study:
            if self._read_study() is None and self._disk.read("manifest.json") is None:
                # From now on there is one, so that a lost one is not taken for a study without rows.
                self._write_manifest(0, {}, signature)
            self._disk.write("study.json", seal(new, indent=1))
            self._study = new

    def _read_study(self) -> dict[str, Any] | None:
        if self._study is None:
            remedy = "Restore it from a copy, or start the study in another folder."
            study = read_sealed(self._disk, "study.json", remedy)
            if study is not None:
                missing = {"signature", "definition", "denominators", "inputs"} - set(study)
                if missing:
                    raise RaysenseError(
                        f"`{self._disk.path('study.json')}` is not a study of raysense "
                        f"(no {sorted(missing)}). {remedy}"
                    )
            self._study = study
        return self._study

    # --- evaluations ----------------------------------------------------------------------------------

    def put(self, evaluation: Evaluation, levels: Mapping[str, int] | None = None) -> None:
        """Makes an evaluation visible, at once and whole.

        Args:
            evaluation: What was measured. Its key names the object, so that storing it again is harmless.
            levels: The allocation, layer -> level, for the table `allocations`.
        """
        self._disk.write(f"objects/{evaluation.key}.json", rows.to_object(evaluation, levels))

    def get(self, key: str) -> Evaluation | None:
        """The evaluation with this key (without `samples`), or None."""
        return self.get_object(key) or self._load_compacted().get(key)

    def get_object(self, key: str) -> Evaluation | None:
        """The evaluation with this key (without `samples`) if no compaction has taken it in yet, or None.

        One small read, however large the store is: for who measures, to see whether somebody just did.
        """
        name = f"{key}.json"
        content = self._disk.read(f"objects/{name}")
        return None if content is None else rows.without_samples(self._parse(name, content)[0])

    def evaluations(self) -> list[Evaluation]:
        """All evaluations (without `samples`), each once."""
        compacted, objects = self._everything()
        return [*compacted.all(), *(rows.without_samples(evaluation) for evaluation, _ in objects)]

    def known(self) -> Mapping[str, Evaluation]:
        """All evaluations by key, as they are now; made into objects only when looked up."""
        compacted, objects = self._everything()
        return _Known(compacted, {e.key: rows.without_samples(e) for e, _ in objects})

    # --- tables ---------------------------------------------------------------------------------------

    def table(self, name: str) -> pa.Table:
        """A table's rows, each evaluation once.

        Args:
            name: One of `raysense.store.schema.TABLES`.
        """
        _known_table(name)
        study = self._read_study()
        if name == "studies":
            return _studies(study)
        for attempt in range(5):
            manifest = self._read_manifest()
            try:
                table = self._read_parquet(name, manifest["tables"].get(name, ()))
                break
            except FileNotFoundError as error:
                self._wait_for_switch(attempt, error)
        if name in _FROM_OBJECTS:
            table = pa.concat_tables([table, rows.to_tables(self._everything()[1], _budget(study))[name]])
        if name == "evaluations" and study is not None:
            return rows.denominated(table, study["denominators"])
        if name == "allocations":
            return _allocations(table, self.table("layers"))
        return table

    def write_table(self, name: str, table: pa.Table) -> None:
        """Replaces the rows of `layers`. For the driver.

        Columns that the schema does not know are refused; missing ones become null.
        """
        _known_table(name)
        if name != "layers":
            raise RaysenseError(
                f"table `{name}` cannot be written directly: `begin` writes studies, `put` writes the others."
            )
        fields = {field.name for field in TABLES[name]}
        if unknown := sorted(set(table.column_names) - fields):
            raise RaysenseError(f"table `{name}`: unknown columns {unknown}; known are {sorted(fields)}.")
        full = pa.table(
            [
                table[field.name].cast(field.type)
                if field.name in table.column_names
                else pa.nulls(len(table), field.type)
                for field in TABLES[name]
            ],
            schema=TABLES[name],
        )
        with self.lock():
            manifest = self._read_manifest()
            if not self._held(name, manifest["tables"]).equals(full):
                self._switch({**manifest["tables"], name: [self._write_parquet(name, full)]}, manifest)

    # --- compaction -----------------------------------------------------------------------------------

    def compact(self) -> int:
        """Takes the objects that are there into Parquet files. For the driver.

        New files first, then the manifest, then the objects are deleted, together with what an
        interrupted compaction left behind.

        Returns:
            Number of evaluations taken in.
        """
        with self.lock():
            taken = self._compact()
        pa.default_memory_pool().release_unused()  # what a compaction needs for a second need not stay taken
        return taken

    def forget_failed(self) -> int:
        """Takes out the evaluations that could not be measured, so that they are asked again. For the driver.

        A cause may have been mended since. Nothing is lost: such a row has no measures and no cost.

        Returns:
            How many there were.
        """
        with self.lock():
            compacted, objects = self._everything()
            failed = [entry.key for entry, _ in objects if entry.failed]
            again = compacted.failed()
            if again:
                manifest = self._read_manifest()
                rows = self._read_parquet("evaluations", manifest["tables"].get("evaluations", ()))
                kept = rows.filter(pc.invert(pc.is_in(rows["key"], pa.array(sorted(again), pa.string()))))
                file = self._write_parquet("evaluations", kept)
                self._switch({**manifest["tables"], "evaluations": [file]}, manifest)
            self._disk.delete([f"objects/{key}.json" for key in failed])
        return len(failed) + len(again)

    def _compact(self) -> int:
        manifest = self._read_manifest()
        names, objects = self._read_objects(self._load_compacted())
        tables: dict[str, list[str]] = {name: list(files) for name, files in manifest["tables"].items()}
        study = self._read_study()
        if objects:
            layers = self._held("layers", tables)
            for name, added in rows.to_tables(objects, _budget(study)).items():
                if name == "allocations":
                    new = _new_allocations(added, self._held(name, tables))
                    added = _allocations(new, layers)
                if name == "evaluations" and study is not None:
                    added = rows.denominated(added, study["denominators"])
                files = tables.get(name, [])
                if len(files) >= _MANY_FILES:
                    added, files = pa.concat_tables([self._held(name, tables), added]), []
                if len(added):
                    files = [*files, self._write_parquet(name, added)]
                tables[name] = files
            if not self._held("studies", tables).equals(_studies(study)):
                tables["studies"] = [self._write_parquet("studies", _studies(study))]
            self._switch(tables, manifest)
        self._disk.delete([f"objects/{name}" for name in names])
        self._sweep()
        return len(objects)

    def _switch(self, tables: Mapping[str, list[str]], manifest: Mapping[str, Any]) -> None:
        """Makes these files the ones that count.

        Raises:
            RaysenseError: Another driver has done so since `manifest` was read, or deleted a file, although it did
                not hold the lock.
        """
        there = {f"tables/{name}/{file}" for name in tables for file, _ in self._disk.names(f"tables/{name}")}
        missing = {file for files in tables.values() for file in files} - there
        if missing or self._read_manifest()["generation"] != manifest["generation"]:
            raise RaysenseError(
                f"store `{self._disk.shown}`: another driver has compacted this study meanwhile. Stop it, then start "
                "again; nothing is lost."
            )
        self._write_manifest(manifest["generation"] + 1, tables, (self._read_study() or {}).get("signature"))

    def _write_manifest(
        self, generation: int, tables: Mapping[str, Sequence[str]], signature: str | None
    ) -> None:
        fields = {"generation": generation, "signature": signature, "tables": dict(tables)}
        self._disk.write("manifest.json", seal(fields, indent=1))

    def _sweep(self) -> None:
        """Deletes Parquet files that the manifest does not name and partial files that have no writer.

        Read anew: on an object store, whose lease is no lock, another driver may have switched it. There a file must
        be old too, as its writer may be about to.
        """
        old = time.time() - _ORPHAN_SECONDS
        named = self._read_manifest()["tables"]
        for name in TABLES:
            kept = set(named.get(name, ()))
            there = [(f"tables/{name}/{file}", at) for file, at in self._disk.names(f"tables/{name}")]
            gone = [file for file, at in there if file not in kept and (self._disk.local or at < old)]
            self._disk.delete(gone)
        self._disk.delete(
            [f"partial/{name}" for name, modified in self._disk.names("partial") if modified < old]
        )

    def _write_parquet(self, name: str, table: pa.Table) -> str:
        content = parquet.encode(table)
        file = f"tables/{name}/{parquet.digest(content)}.parquet"
        self._disk.write(file, content)
        return file

    def _read_parquet(self, name: str, files: Sequence[str]) -> pa.Table:
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

    def _held(self, name: str, tables: Mapping[str, Sequence[str]]) -> pa.Table:
        """A table's compacted rows, read under the lock: nobody may have replaced a file meanwhile."""
        try:
            return self._read_parquet(name, tables.get(name, ()))
        except FileNotFoundError as error:
            raise _missing(error) from error

    def _read_manifest(self) -> dict[str, Any]:
        path, remedy = self._disk.path("manifest.json"), "Restore it from a copy of the store."
        manifest = read_sealed(self._disk, "manifest.json", remedy)
        study = self._read_study()
        if manifest is None:
            if study is not None:
                raise RaysenseError(f"`{path}` is missing; without it no stored row is found. {remedy}")
            return {"generation": 0, "tables": {}}
        if not isinstance(manifest.get("tables"), dict) or not isinstance(manifest.get("generation"), int):
            raise RaysenseError(f"`{path}` is damaged (no tables). {remedy}")
        if study is not None and manifest.get("signature") not in (None, study["signature"]):
            raise RaysenseError(f"`{path}` belongs to another study than `study.json` beside it. {remedy}")
        return manifest

    def _load_compacted(self) -> _Compacted:
        for attempt in range(5):
            manifest = self._read_manifest()
            if manifest["generation"] == self._compacted.generation:
                break
            try:
                self._compacted = _Compacted(
                    manifest["generation"],
                    self._read_parquet("evaluations", manifest["tables"].get("evaluations", ())),
                    self._read_parquet("measures", manifest["tables"].get("measures", ())),
                )
                break
            except FileNotFoundError as error:
                self._wait_for_switch(attempt, error)
        return self._compacted

    def _wait_for_switch(self, attempt: int, error: FileNotFoundError) -> None:
        """A file of the manifest is gone: a compaction has just replaced it, so a new manifest is there."""
        if attempt == 4:
            raise _missing(error) from error
        time.sleep(0.05 * 2**attempt)

    def _everything(self) -> tuple[_Compacted, list[tuple[Evaluation, dict[str, int]]]]:
        """Compacted rows and the objects beyond them.

        The objects are listed before the manifest is read: a compaction in between moves an evaluation
        from the first to the second, so it is found in both rather than in neither.
        """
        names = [name for name, _ in self._disk.names("objects")]
        contents = self._disk.read_all([f"objects/{name}" for name in names])
        compacted = self._load_compacted()
        parsed = [
            self._parse(name, content)
            for name, content in zip(names, contents, strict=True)
            if content is not None
        ]
        return compacted, [entry for entry in parsed if entry[0].key not in compacted]

    def _read_objects(
        self, compacted: _Compacted
    ) -> tuple[list[str], list[tuple[Evaluation, dict[str, int]]]]:
        """Names of all objects that are there, and the evaluations of those not yet in a table."""
        names = [name for name, _ in self._disk.names("objects")]
        new = [name for name in names if name.removesuffix(".json") not in compacted]
        contents = self._disk.read_all([f"objects/{name}" for name in new])
        return names, [
            self._parse(name, content)
            for name, content in zip(new, contents, strict=True)
            if content is not None
        ]

    def _parse(self, name: str, content: bytes) -> tuple[Evaluation, dict[str, int]]:
        path = self._disk.path(f"objects/{name}")
        try:
            evaluation, levels = rows.from_object(content, f"`{path}`")
        except ValueError as error:
            raise RaysenseError(
                f"`{path}` is damaged or not a file of raysense ({error}). "
                "Delete it; a study measures again what is missing."
            ) from error
        if f"{evaluation.key}.json" != name:
            raise RaysenseError(f"`{path}` holds the evaluation {evaluation.key}. Delete the file.")
        return evaluation, levels


class _Compacted:
    """The compacted evaluations of one manifest, found by key, made into objects only when asked for.

    Sorted keys rather than dictionaries: a million rows are indexed in a fraction of a second.
    """

    def __init__(self, generation: int, evaluations: pa.Table, measures: pa.Table) -> None:
        self.generation = generation
        self._evaluations = evaluations
        self._measures = measures
        keys = _plain(evaluations["key"])
        self._order = np.argsort(keys, kind="stable")  # of equal keys the first row counts
        self._sorted = keys[self._order]
        # A compaction writes the measures of one evaluation side by side: runs of one key, one after another.
        of = _plain(measures["key"])
        starts = np.flatnonzero(np.append(True, of[1:] != of[:-1])) if len(of) else np.empty(0, np.int64)
        ends = np.append(starts[1:], len(of))
        at = np.minimum(np.searchsorted(self._sorted, of[starts]), max(len(keys) - 1, 0))
        if len(keys) and len(starts):
            known = self._sorted[at] == of[starts]
            at, starts, ends = at[known], starts[known], ends[known]
        self._spans = np.zeros((len(keys), 2), np.int64)  # by sorted position: rows of `measures`
        if len(keys):
            self._spans[at[::-1], 0], self._spans[at[::-1], 1] = starts[::-1], ends[::-1]

    @staticmethod
    def nothing() -> _Compacted:
        return _Compacted(0, TABLES["evaluations"].empty_table(), TABLES["measures"].empty_table())

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._position(key) is not None

    def __len__(self) -> int:
        return len(self._sorted)

    def keys(self) -> Iterator[str]:
        return (key.decode() for key in self._sorted.tolist())

    def get(self, key: str) -> Evaluation | None:
        position = self._position(key)
        if position is None:
            return None
        start, end = self._spans[position].tolist()
        row = self._evaluations.slice(int(self._order[position]), 1).to_pylist()[0]
        return rows.from_row(row, self._measures.slice(start, end - start).to_pylist())

    def failed(self) -> set[str]:
        """Keys of what could not be measured."""
        rows = self._evaluations.filter(pc.not_equal(self._evaluations["failed"], ""))
        return set(rows["key"].to_pylist())

    def all(self) -> list[Evaluation]:
        """In the order they were taken in."""
        evaluations, measures = self._evaluations.to_pylist(), self._measures.to_pylist()
        spans = self._spans[np.argsort(self._order)].tolist()
        return [
            rows.from_row(row, measures[start:end])
            for row, (start, end) in zip(evaluations, spans, strict=True)
        ]

    def _position(self, key: str) -> int | None:
        """Of the key among the sorted ones."""
        wanted = key.encode()
        position = int(np.searchsorted(self._sorted, np.array(wanted)))
        found = position < len(self._sorted) and self._sorted[position] == wanted
        return position if found else None


def _plain(column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.bytes_]]:
    """A column of keys as one array of bytes."""
    if not len(column):
        return np.empty(0, "S16")
    keys: np.ndarray[Any, Any] = column.combine_chunks().cast(pa.binary()).to_numpy(zero_copy_only=False)
    return keys.astype(np.bytes_)


class _Known(Mapping[str, Evaluation]):
    """Compacted evaluations and objects as one mapping."""

    def __init__(self, compacted: _Compacted, objects: dict[str, Evaluation]) -> None:
        self._compacted = compacted
        self._objects = objects

    def __getitem__(self, key: str) -> Evaluation:
        evaluation = self._objects.get(key) or self._compacted.get(key)
        if evaluation is None:
            raise KeyError(key)
        return evaluation

    def __contains__(self, key: object) -> bool:
        return key in self._objects or key in self._compacted

    def __iter__(self) -> Iterator[str]:
        yield from self._compacted.keys()
        yield from self._objects

    def __len__(self) -> int:
        return len(self._compacted) + len(self._objects)


def _known_table(name: str) -> None:
    if name not in TABLES:
        raise RaysenseError(f"table `{name}`: there is none of this name; there are {sorted(TABLES)}.")


def _studies(study: Mapping[str, Any] | None) -> pa.Table:
    if study is None:
        return TABLES["studies"].empty_table()
    row = {
        **study,
        **study["denominators"],
        "name": str(study["definition"].get("name", "")),
        "definition": json.dumps(study["definition"], sort_keys=True),
        "bounds": json.dumps((study.get("budget") or {}).get("bounds", [])),
    }
    return pa.Table.from_pylist([row], schema=TABLES["studies"])


def _missing(error: FileNotFoundError) -> RaysenseError:
    return RaysenseError(
        f"`{error}` is missing although the manifest names it. Restore it from a copy of the store."
    )


def _budget(study: Mapping[str, Any] | None) -> Budget | None:
    fields = (study or {}).get("budget")
    return Budget.from_fields(fields) if fields else None


def _allocations(table: pa.Table, layers: pa.Table) -> pa.Table:
    """Each allocation's layers once, with the zeros that their levels stand for."""
    schema = TABLES["allocations"]
    once = table.group_by(["allocation", "layer"]).aggregate([("level", "min")])
    steps = pc.index_in(once["layer"], layers["layer"].combine_chunks())
    zeros = pc.multiply(once["level_min"], layers["step"].combine_chunks().take(steps.combine_chunks()))
    return pa.table([once["allocation"], once["layer"], once["level_min"], zeros], schema=schema)


def _new_allocations(added: pa.Table, stored: pa.Table) -> pa.Table:
    return added.filter(pc.invert(pc.is_in(added["allocation"], stored["allocation"].combine_chunks())))


def _refusal(
    uri: str,
    study: Mapping[str, Any],
    now: Mapping[str, Any],
    extensions: Sequence[str],
    inputs: Mapping[str, Any],
) -> str:
    lines = [
        f"  {field}: stored {was!r}, now {will!r}"
        for field, was, will in difference(study["definition"], now)
        if not any(field == free or field.startswith(f"{free}.") for free in extensions)
    ]
    lines += contents_differ(study["inputs"], inputs)
    shown = "\n".join(lines) or "  (its definition reads the same: weights or software differ)"
    return (
        f"store `{uri}` holds another study. What differs:\n{shown}\n"
        "Set it back, or give another folder for the changed study."
    )


def contents_differ(
    was: Mapping[str, Any], now: Mapping[str, Any], parts: Sequence[str] = tuple(CONTENTS)
) -> list[str]:
    """In what two `inputs` differ, a line each, in words."""
    return [
        f"  {CONTENTS[part]} (`{'.'.join(filter(None, (part, field)))}`): stored {_shown(old)}, now {_shown(new)}"
        for part in parts
        for field, old, new in difference(was.get(part), now.get(part))
    ]


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)


def difference(was: Any, now: Any, field: str = "") -> list[tuple[str, Any, Any]]:
    """The fields in which two JSON-able definitions differ, dotted, with both values; None for absent."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        return [
            found
            for name in sorted(set(was) | set(now))
            for found in difference(was.get(name), now.get(name), f"{field}.{name}" if field else name)
        ]
    return [] if was == now else [(field, was, now)]
