"""Append, read, compact; identity; what is damaged or foreign."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raysense.errors import RaysenseError
from raysense.records import Evaluation, Measure
from raysense.store import SCHEMA_VERSION, TABLES, DriverLock, Store, compaction
from raysense.store import store as store_module
from raysense.store.disk import Disk
from raysense.store.table_files import TableFiles
from tests.tables import edit, rewrite

Make = Callable[..., Evaluation]


def bare(evaluation: Evaluation) -> Evaluation:
    return dataclasses.replace(evaluation, samples=())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"), create=True)


def test_what_is_put_is_read_back_exactly(store: Store, make: Make) -> None:
    put = [make(n) for n in range(10)]
    for evaluation in put:
        store.put(evaluation, {"unet:a": 1})
    assert store.evaluations() == [bare(e) for e in put]
    assert store.get(put[3].key) == bare(put[3])
    assert store.compact() == 10
    for reader in (store, Store.open(store.uri, create=True)):
        assert reader.evaluations() == [bare(e) for e in put]
        assert reader.get(put[3].key) == bare(put[3])
        assert reader.get("0" * 15 + "f") is None
        assert dict(reader.known()) == {e.key: bare(e) for e in put}


def test_a_store_from_before_a_column_came_is_read(store: Store, make: Make) -> None:
    store.put(make(0), {"unet:a": 1})
    store.compact()
    rewrite(Path(store.uri), "evaluations", lambda table: table.drop_columns(["method"]))
    later = dataclasses.replace(make(1), method="wanda")
    store.put(later, {"unet:a": 2})
    (stored,) = Path(store.uri).glob("objects/*.json")
    fresh = Store.open(store.uri, create=True)
    assert [e.method for e in fresh.evaluations()] == ["", "wanda"]
    edit(stored, lambda fields: fields.pop("method"))
    assert [e.method for e in Store.open(store.uri, create=True).evaluations()] == ["", ""]


def test_nothing_is_duplicated_by_putting_or_compacting_again(store: Store, make: Make) -> None:
    for _ in range(3):
        for n in range(6):
            store.put(make(n), {"unet:a": 2})
        assert len(store.evaluations()) == 6
        assert len(store.table("measures")) == 12
        store.compact()
    assert len(store.evaluations()) == 6
    assert len(store.table("samples")) == 12
    assert len(store.table("allocations")) == 6
    assert not list(Path(store.uri, "objects").iterdir())


def test_many_compactions_leave_few_files(store: Store, make: Make) -> None:
    for n in range(30):
        store.put(make(n))
        store.compact()
    assert len(list(Path(store.uri, "tables/evaluations").iterdir())) <= 13
    assert sorted(e.zeros for e in store.evaluations()) == list(range(30))
    assert {k: e.measures["kid"].value for k, e in store.known().items()} == {
        f"{n:016x}": 1e-9 * n for n in range(30)
    }


def test_numbers_that_are_not_finite_and_numpy_scalars(store: Store, make: Make) -> None:
    odd = {"m": Measure(np.float32(0.5), float("nan"), float("inf"), np.int64(4), "x")}  # type: ignore[arg-type]
    store.put(make(1, measures=odd, samples=()))
    for _ in range(2):
        (read,) = store.evaluations()
        assert read.measures["m"].value == 0.5
        assert read.measures["m"].n == 4
        assert math.isnan(read.measures["m"].ci_low)
        assert read.measures["m"].ci_high == math.inf
        store.compact()


def test_every_column_is_described_and_every_table_versioned(store: Store, make: Make) -> None:
    store.put(make(1), {"unet:a": 2})
    for name, schema in TABLES.items():
        assert all(field.metadata[b"description"] for field in schema)
        table = store.table(name)
        assert table.schema.equals(schema)
        assert table.schema.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()
    store.compact()
    for name, schema in TABLES.items():
        assert store.table(name).schema.equals(schema)


def test_rows_carry_the_denominators(store: Store, make: Make) -> None:
    store.put(make(1))
    store.compact()
    counts = {"zeros_before": 3, "n_selected": 10, "n_prunable": 20, "n_components": 40, "n_pipeline": 80}
    store.begin({"name": "s"}, signature="a", denominators=counts)
    store.put(make(2))
    for row in store.table("evaluations").to_pylist():
        assert {name: row[name] for name in counts} == counts
    assert store.table("studies").to_pylist()[0]["n_pipeline"] == 80
    with pytest.raises(RaysenseError, match="n_weights"):
        store.begin({"name": "s"}, signature="a", denominators={"n_weights": 1})


def test_allocations_know_their_zeros(store: Store, make: Make) -> None:
    store.write_table("layers", pa.table({"layer": ["unet:a", "unet:b"], "step": [16, 64]}))
    store.put(make(1), {"unet:a": 2, "unet:b": 3})
    store.put(make(2), {"unet:c": 1})
    zeros = {row["layer"]: row["zeros"] for row in store.table("allocations").to_pylist()}
    assert zeros == {"unet:a": 32, "unet:b": 192, "unet:c": None}


def test_layers_are_replaced_and_checked(store: Store) -> None:
    for step in (1, 2):
        store.write_table("layers", pa.table({"layer": ["unet:a"], "step": [step]}))
    assert store.table("layers")["step"].to_pylist() == [2]
    with pytest.raises(RaysenseError, match="colour"):
        store.write_table("layers", pa.table({"colour": ["red"]}))
    with pytest.raises(RaysenseError, match="written directly"):
        store.write_table("evaluations", TABLES["evaluations"].empty_table())
    with pytest.raises(RaysenseError, match="`rows`"):
        store.table("rows")


# --- identity ---------------------------------------------------------------------------------------------


def test_another_study_is_refused_with_the_difference(store: Store) -> None:
    study = {"name": "s", "budget": {"max_nfe": 10}, "rungs": {"probe": {"prompts": 4}}}
    store.begin(study, signature="a")
    other = {"name": "s", "budget": {"max_nfe": 10}, "rungs": {"probe": {"prompts": 8}}}
    with pytest.raises(RaysenseError, match=r"rungs\.probe\.prompts: stored 4, now 8"):
        Store.open(store.uri).begin(other, signature="b")
    with pytest.raises(RaysenseError, match="weights or software differ"):
        Store.open(store.uri).begin(study, signature="b")


def test_what_failed_is_forgotten_and_measured_again(store: Store, make: Make) -> None:
    compacted, waiting = make(1), make(2)
    store.put(dataclasses.replace(compacted, failed="no such file", measures={}))
    store.put(make(3))
    store.compact()
    store.put(dataclasses.replace(waiting, failed="no such file", measures={}))
    store.put(make(4))
    assert store.forget_failed() == 2
    kept = {make(3).key, make(4).key}
    for reader in (store, Store.open(store.uri, create=True)):
        assert {entry.key for entry in reader.evaluations()} == set(reader.known()) == kept
        assert set(reader.table("evaluations")["key"].to_pylist()) == kept
    assert store.forget_failed() == 0
    store.put(compacted)
    store.put(waiting)
    store.compact()
    assert store.get(compacted.key) == bare(compacted)
    keys = store.table("evaluations")["key"].to_pylist()
    assert sorted(keys) == sorted({*kept, compacted.key, waiting.key})
    assert not [entry for entry in store.evaluations() if entry.failed]


def test_a_larger_budget_is_the_same_study(store: Store) -> None:
    store.begin({"budget": {"max_nfe": 10}}, signature="a")
    again = Store.open(store.uri)
    again.begin({"budget": {"max_nfe": 20}}, signature="a")
    study = Store.open(store.uri).study
    assert study is not None
    assert study["definition"] == {"budget": {"max_nfe": 20}}


def test_there_must_be_a_study_to_open(tmp_path: Path) -> None:
    with pytest.raises(RaysenseError, match=r"study\.json"):
        Store.open(str(tmp_path))
    with pytest.raises(RaysenseError, match="Give a local path"):
        Store.open("ftq://somewhere/else", create=True)


# --- damaged and foreign files ----------------------------------------------------------------------------


def test_a_damaged_object_is_named(store: Store, make: Make) -> None:
    store.put(make(1))
    path = Path(store.uri, "objects", f"{1:016x}.json")
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"[]", b"{}", b'{"schema_version": "one"}'):
        path.write_bytes(content)
        with pytest.raises(RaysenseError, match=r"0001\.json.*Delete it"):
            store.evaluations()
    path.rename(path.with_name(f"{2:016x}.json"))
    path.with_name(f"{2:016x}.json").write_bytes(whole)
    with pytest.raises(RaysenseError, match="holds the evaluation 0000000000000001"):
        store.evaluations()


def test_a_foreign_object_is_named(store: Store, make: Make) -> None:
    store.put(make(1))
    Path(store.uri, "objects", "notes.txt").write_text("hello")
    with pytest.raises(RaysenseError, match=r"notes\.txt"):
        store.evaluations()


def test_a_damaged_table_is_named(store: Store, make: Make) -> None:
    store.put(make(1))
    store.compact()
    (path,) = Path(store.uri, "tables/evaluations").iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RaysenseError, match=path.name):
        Store.open(store.uri, create=True).evaluations()
    path.unlink()
    with pytest.raises(RaysenseError, match="is missing although the manifest names it"):
        Store.open(store.uri, create=True).evaluations()


@pytest.mark.parametrize("name", ["study.json", "manifest.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_description_is_named(store: Store, make: Make, name: str, content: str) -> None:
    store.begin({"name": "s"}, signature="a")
    store.put(make(1))
    store.compact()
    Path(store.uri, name).write_text(content)
    with pytest.raises(RaysenseError, match=name):
        Store.open(store.uri).evaluations()


def test_a_newer_schema_is_refused(store: Store) -> None:
    store.begin({}, signature="a")
    path = Path(store.uri, "study.json")
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "schema_version": 99, "raysense_version": "9.9"})
    )
    with pytest.raises(
        RaysenseError, match=r"study\.json.*schema version 99.*a newer raysense.*Use raysense 9\.9"
    ):
        Store.open(store.uri)


def test_a_newer_schema_of_what_a_newer_worker_wrote_is_refused_not_called_damaged(
    store: Store, make: Make
) -> None:
    """Whoever follows the advice for a damaged file would delete good evaluations."""
    store.put(make(1))
    path = Path(store.uri, "objects", f"{1:016x}.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    with pytest.raises(RaysenseError, match="schema version 99, written by a newer raysense") as refused:
        store.evaluations()
    assert "Delete" not in str(refused.value)
    path.unlink()
    store.put(make(1))
    store.compact()
    manifest = Path(store.uri, "manifest.json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema_version": 99}))
    with pytest.raises(
        RaysenseError, match=r"manifest\.json.*schema version 99, written by a newer raysense"
    ):
        Store.open(store.uri, create=True).evaluations()


def test_many_rows_are_indexed_right(store: Store, make: Make) -> None:
    """Keys in no order, evaluations without a measure, several files: each finds its own measures."""
    numbers = [(n * 7919) % 1009 for n in range(300)]
    for batch in range(3):
        for n in numbers[batch * 100 : batch * 100 + 100]:
            store.put(make(n, measures={}) if n % 5 == 0 else make(n))
        store.compact()
    known = Store.open(store.uri, create=True).known()
    assert set(known) == {f"{n:016x}" for n in numbers}
    for n in numbers:
        assert known[f"{n:016x}"] == bare(make(n, measures={}) if n % 5 == 0 else make(n))
    assert "nobody" not in known
    assert [e.zeros for e in store.evaluations()[:3]] == [e.zeros for e in store.evaluations()][:3]


def test_storage_that_cannot_be_written(tmp_path: Path, make: Make) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RaysenseError, match=r"cannot read .*file/store/study\.json"):
        Store.open(str(tmp_path / "file" / "store"), create=True)
    store = Store.open(str(tmp_path / "store"), create=True)
    (tmp_path / "store").write_text("")  # a file has taken the folder's place
    with pytest.raises(RaysenseError, match="cannot write"):
        store.put(make(1))
    with pytest.raises(RaysenseError, match="cannot be written"):
        DriverLock(Disk(store.uri)).__enter__()


# --- lock -------------------------------------------------------------------------------------------------


def _hold(uri: str, ready: object, release: object) -> None:
    with Store.open(uri, create=True).lock():
        ready.set()  # type: ignore[attr-defined]
        release.wait(60)  # type: ignore[attr-defined]


def test_the_lock_refuses_a_second_driver_and_ends_with_the_first(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    driver = context.Process(target=_hold, args=(store.uri, ready, release))
    driver.start()
    try:
        assert ready.wait(120)
        for attempt in (store.compact, lambda: store.begin({}, signature="a"), store.lock().__enter__):
            with pytest.raises(RaysenseError, match=f"process {driver.pid} on"):
                attempt()
    finally:
        driver.kill()
        driver.join()
    with store.lock(), store.lock():  # the crash left no lock; whoever holds it may enter again
        store.compact()


# --- stopped between any two steps ------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL between two operations on the disk."""


def stopped_at_every_step(folder: Path, make: Make, patch: pytest.MonkeyPatch, every: int = 1) -> int:
    """Every write and delete of put, begin, write_table and compact is, once, the last one; how many there were."""
    patch.setattr(compaction, "MANY_FILES", 2)
    write, delete = store_module.Disk.write, store_module.Disk.delete
    steps = 0
    limit = 10**9

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps > limit:
            raise Killed

    def counted_write(self: object, name: str, content: bytes) -> None:
        step()
        write(self, name, content)  # type: ignore[arg-type]

    def counted_delete(self: object, names: list[str]) -> None:
        for name in names:
            step()
            delete(self, [name])  # type: ignore[arg-type]

    patch.setattr(store_module.Disk, "write", counted_write)
    patch.setattr(store_module.Disk, "delete", counted_delete)
    wanted = set(_story(str(folder / "undisturbed"), make))
    whole = Store.open(str(folder / "undisturbed"))
    total = steps
    assert total > 40
    for killed_after in range(0, total, every):
        uri = str(folder / f"killed-{killed_after}")
        steps, limit = 0, killed_after
        with pytest.raises(Killed):
            _story(uri, make)
        steps, limit = 0, 10**9
        seen = [e.zeros for e in Store.open(uri, create=True).evaluations()]
        assert len(seen) == len(set(seen))
        assert set(seen) <= wanted
        _story(uri, make)
        _same(Store.open(uri), whole)
    return len(range(0, total, every))


def _story(uri: str, make: Make) -> list[int]:
    """A driver's life; the rows that are then there."""
    store, stored = Store.open(uri, create=True), []
    with store.lock():
        store.begin({"name": "s"}, signature="a", denominators={"n_selected": 9})
        store.write_table("layers", pa.table({"layer": ["unet:a"], "step": [5]}))
        for batch in range(4):
            for n in range(batch * 3, batch * 3 + 3):
                if store.get(f"{n:016x}") is None:
                    store.put(make(n), {"unet:a": 1 + n})
                stored.append(n)
            store.compact()
    return stored


def _same(resumed: Store, whole: Store) -> None:
    """The same rows, and no file that does not count."""
    for name in ("evaluations", "measures", "samples", "allocations", "layers"):
        columns = [(column, "ascending") for column in TABLES[name].names]
        assert resumed.table(name).sort_by(columns).equals(whole.table(name).sort_by(columns)), name
    manifest = json.loads(Path(resumed.uri, "manifest.json").read_text())
    there = {str(p.relative_to(resumed.uri)) for p in Path(resumed.uri, "tables").rglob("*.parquet")}
    assert there == {file for files in manifest["tables"].values() for file in files}


def test_stopped_between_any_two_steps_nothing_is_lost_or_doubled(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stopped_at_every_step(tmp_path, make, monkeypatch) > 40


def test_a_reader_survives_a_compaction_under_way(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files may go between reading the manifest and reading them; objects between listing and reading."""
    for n in range(4):
        store.put(make(n))
    store.compact()
    store.put(make(4))
    monkeypatch.setattr(compaction, "MANY_FILES", 1)
    reader = Store.open(store.uri, create=True)
    read_parquet = TableFiles.read
    compacted = False

    def late(self: TableFiles, name: str, files: list[str]) -> pa.Table:
        nonlocal compacted
        if self is reader._files and not compacted:
            compacted = True
            store.compact()
        return read_parquet(self, name, files)

    monkeypatch.setattr(TableFiles, "read", late)
    assert sorted(e.zeros for e in reader.evaluations()) == [0, 1, 2, 3, 4]
    assert compacted
