"""The store of a study: append, read, compact.

Layout, below the store's address::

    study.json               what the study is: signature, definition, denominators
    objects/<key>.json       one evaluation each, immutable, written by whoever measured it
    tables/<name>/*.parquet  compacted rows; a file's name begins with the SHA-256 of its content
    manifest.json            which files below tables/ count; switching it is what makes a compaction happen
    driver.lock              see `raysense.store.lock`
    partial/                 files being written on a local disk; nobody reads here

An evaluation is visible from the moment its object is there. Compaction writes new Parquet files, then
replaces the manifest, then deletes the objects it has taken in; a reader passes over objects whose key
is already in a table. Stopped between any two of these steps, the store still reads the same rows. What could not be
measured stays an object, so that a row in a table is there for good.

Every file is checked when read: JSON has its own checksum (`raysense.store.checksummed_json`), Parquet is named by it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from raysense.errors import RaysenseError
from raysense.feasibility import Budget
from raysense.records import Evaluation
from raysense.store import rows
from raysense.store.compacted import Compacted, StoredEvaluations
from raysense.store.compaction import take_in
from raysense.store.derived import budget_of, completed, studies_of, with_zeros
from raysense.store.disk import Disk
from raysense.store.lock import PROCESS, DriverLock, Holders
from raysense.store.objects import Entry, Objects, is_failed
from raysense.store.schema import DENOMINATORS, DERIVED, TABLES
from raysense.store.study_record import StudyRecord
from raysense.store.table_files import Manifest, TableFiles

_FROM_OBJECTS = ("evaluations", "measures", "samples", "allocations")


class Store:
    """A study's rows, on a local disk or an object store. Make one with `Store.open`.

    Any number of processes may `put` and read at once; what says so belongs to the driver, which holds `lock()`.
    """

    def __init__(self, disk: Disk, holders: Holders = PROCESS) -> None:
        self._disk = disk
        self._holders = holders
        self._compacted = Compacted.nothing()
        self._record = StudyRecord(disk)
        self._files = TableFiles(disk, self._record)
        self._objects = Objects(disk)

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
        if store.study is None and not create:
            raise RaysenseError(
                f"store `{store._disk.uri}`: there is no study (no `{store._disk.path('study.json')}`). "
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
        return self._record.read()

    def lock(self) -> DriverLock:
        """The lock that a driver holds while it runs, a context manager; what only a driver may do takes it."""
        return DriverLock(self._disk, self._files.fence, self._holders)

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
        looks: Sequence[Mapping[str, str]] = (),
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
            looks: Earlier runs that looked at the same held-out prompts: ``run`` and ``signature`` of each.

        Raises:
            RaysenseError: The store holds another study; shows each differing field.
        """
        unknown = sorted(set(denominators or {}) - set(DENOMINATORS))
        if unknown:
            raise RaysenseError(f"denominators: unknown {unknown}; known are {sorted(DENOMINATORS)}.")
        plain: dict[str, Any] = json.loads(json.dumps(definition))
        with self.lock() as lock:

            def before(stored: str) -> None:
                lock.renew()
                # From now on there is a manifest, so that a lost one is not taken for a study without rows.
                manifest = self._files.manifest(of_begun=False)
                if manifest.signature != stored and not manifest.tables:
                    self._files.sign(manifest, lock, stored)

            self._record.begin(
                plain, signature, denominators or {}, extensions, inputs or {}, budget, looks, before
            )

    # --- evaluations ----------------------------------------------------------------------------------

    def put(self, evaluation: Evaluation, levels: Mapping[str, int] | None = None) -> None:
        """Makes an evaluation visible, at once and whole.

        Args:
            evaluation: What was measured. Its key names the object, so that storing it again is harmless.
            levels: The allocation, layer -> level, for the table `allocations`.
        """
        self._objects.put(evaluation, levels)

    def get(self, key: str) -> Evaluation | None:
        """The measured evaluation with this key (without `samples`), or None."""
        return self._objects.get(key) or self._load_compacted().get(key)

    def get_object(self, key: str) -> Evaluation | None:
        """The measured evaluation with this key (without `samples`) if no compaction has taken it in yet, or None.

        One small read, however large the store is: for who measures, to see whether somebody just did.
        """
        return self._objects.get(key)

    def evaluations(self) -> list[Evaluation]:
        """All evaluations (without `samples`), each once."""
        _, compacted, objects = self._everything()
        return [*compacted.all(), *(rows.without_samples(evaluation) for evaluation, _ in objects)]

    def known(self) -> Mapping[str, Evaluation]:
        """All evaluations by key, as they are now; made into objects only when looked up."""
        _, compacted, objects = self._everything()
        return StoredEvaluations(compacted, {e.key: rows.without_samples(e) for e, _ in objects})

    # --- tables ---------------------------------------------------------------------------------------

    def table(self, name: str) -> pa.Table:
        """A table's rows, each evaluation once.

        Args:
            name: One of `raysense.store.schema.TABLES`.
        """
        _known_table(name)
        study = self._record.read()
        if name == "studies":
            return studies_of(study)
        manifest: Manifest = self._files.manifest()
        entries: list[Entry] = []
        if name in _FROM_OBJECTS:
            manifest, _, entries = self._everything()
        for attempt in range(5):
            try:
                table = self._files.read(name, manifest.files(name))
                break
            except FileNotFoundError as error:
                self._files.wait_for_switch(attempt, error)
                manifest, _, entries = self._everything()
        if name in _FROM_OBJECTS:
            table = pa.concat_tables([table, rows.to_tables(entries, budget_of(study))[name]])
        if name == "evaluations" and study is not None:
            return rows.denominated(table, study["denominators"])
        if name == "allocations":
            return with_zeros(table, self.table("layers"))
        return table

    def write_table(self, name: str, table: pa.Table) -> None:
        """Replaces the rows of `layers`, or of a table of `DERIVED`. For the driver.

        Columns that the schema does not know are refused; missing ones become null.
        """
        _known_table(name)
        if name not in ("layers", *DERIVED):
            raise RaysenseError(
                f"table `{name}` cannot be written directly: `begin` writes studies, `put` writes the others."
            )
        full = completed(name, table)
        with self.lock() as lock:
            manifest = self._files.manifest()
            if not self._files.held(name, manifest).equals(full):
                new = {**manifest.tables, name: [self._files.write(name, full)]}
                self._files.switch(new, manifest, lock)

    # --- compaction -----------------------------------------------------------------------------------

    def compact(self) -> int:
        """Takes the objects that are there into Parquet files. For the driver.

        New files first, then the manifest, then the objects are deleted, together with what an
        interrupted compaction left behind. What could not be measured stays an object.

        Returns:
            Number of evaluations taken in.
        """
        with self.lock() as lock:
            lock.renew()
            taken = self._compact(lock)
        pa.default_memory_pool().release_unused()  # what a compaction needs for a second need not stay taken
        return taken

    def forget_failed(self) -> int:
        """Takes out the evaluations that could not be measured, so that they are asked again. For the driver.

        A cause may have been mended since. Nothing is lost: such a row has no measures and no cost.

        Returns:
            How many there were.
        """
        with self.lock():
            failed = [name for name in self._objects.names() if is_failed(name)]
            self._objects.delete(failed)
        return len(failed)

    def _compact(self, lock: DriverLock) -> int:
        manifest = self._files.manifest()
        compacted = self._load_compacted(manifest)
        return take_in(self._files, self._objects, self._record.read(), manifest, compacted, lock)

    def _load_compacted(self, manifest: Manifest | None = None) -> Compacted:
        for attempt in range(5):
            manifest = manifest or self._files.manifest()
            if manifest.generation == self._compacted.generation:
                break
            try:
                self._compacted = Compacted(
                    manifest.generation,
                    self._files.read("evaluations", manifest.files("evaluations")),
                    self._files.read("measures", manifest.files("measures")),
                )
                break
            except FileNotFoundError as error:
                self._files.wait_for_switch(attempt, error)
                manifest = None
        return self._compacted

    def _everything(self) -> tuple[Manifest, Compacted, list[Entry]]:
        """A manifest, its compacted rows and the objects beyond them.

        The objects are listed before the manifest is read: a compaction in between moves an evaluation
        from the first to the second, so it is found in both rather than in neither.
        """
        entries = self._objects.read(self._objects.names())
        measured = {entry.key for entry, _ in entries if not entry.failed}
        for _ in range(5):
            manifest = self._files.manifest()
            compacted = self._load_compacted(manifest)
            if compacted.generation == manifest.generation:
                break
        beyond = [
            (entry, levels)
            for entry, levels in entries
            if entry.key not in compacted and not (entry.failed and entry.key in measured)
        ]
        return manifest, compacted, beyond


def _known_table(name: str) -> None:
    if name not in TABLES:
        raise RaysenseError(f"table `{name}`: there is none of this name; there are {sorted(TABLES)}.")
