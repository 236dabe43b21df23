"""A full disk at every write, no more files, a read-only one: one line, what was stored is there, and it goes on."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from raysense.errors import RaysenseError
from raysense.evaluation.level_files import SMALLEST, LevelFiles
from raysense.evaluation.solved_weights import SolvedWeights
from raysense.pruning.layers import Layer
from raysense.pruning.masks import _keep
from raysense.records import Evaluation
from raysense.store import Store, compaction
from raysense.store.disk import Disk, write_file
from raysense.store.schema import TABLES
from tests.faults.disks import PAGE, SmallDisk, small_disk
from tests.store.drivers import Memory, evaluation

BATCHES, EACH = 3, 3


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are rewritten as one from the second compaction on; nothing here cuts the power."""
    monkeypatch.setattr(compaction, "MANY_FILES", 2)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as found:
        yield found


def entry(number: int) -> Evaluation:
    """With enough of everything for a page or two."""
    samples = [{"prompt_id": n, "prompt": "a cät " * 20, "seed": 7, "clip": 0.3} for n in range(40)]
    return replace(evaluation(number), samples=samples)


class Story:
    """A driver with its evaluator, in one process, that goes on from what is stored.

    Attributes:
        acknowledged: Numbers whose writing did not fail.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.acknowledged: set[int] = set()

    def tell(self) -> None:
        store = Store.open(self.uri, create=True)
        with store.lock():
            store.begin({"name": "s"}, signature="a", denominators={"n_selected": 9})
            store.write_table("layers", pa.table({"layer": ["unet:a"], "step": [5]}))
            for batch in range(BATCHES):
                for number in range(batch * EACH, batch * EACH + EACH):
                    if store.get(f"{number:016x}") is None:
                        store.put(entry(number), {"unet:a": 1 + number})
                    self.acknowledged.add(number)
                store.compact()

    def rows(self) -> dict[str, pa.Table]:
        store = Store.open(self.uri)
        columns = {name: [(column, "ascending") for column in TABLES[name].names] for name in TABLES}
        return {
            name: store.table(name)
            .sort_by(columns[name])
            .drop_columns(["created"] if name == "studies" else [])
            for name in TABLES
        }

    def check(self) -> None:
        """While the disk is still full: every row that was acknowledged, each once; no half a file."""
        found = [e.zeros for e in Store.open(self.uri, create=True).evaluations()]
        assert len(found) == len(set(found))
        assert self.acknowledged <= set(found), f"lost {self.acknowledged - set(found)}"
        partial = Path(self.uri, "partial")
        assert not partial.is_dir() or not list(partial.iterdir())

    def fails(self) -> bool:
        """Whether it is stopped, in one line that says what to do."""
        said = ""
        try:
            self.tell()
        except RaysenseError as error:
            said = str(error)
        assert not said or "No space left on device" in said
        assert not said or "not full" in said or "with room" in said, said
        assert len(said.splitlines()) < 2
        return bool(said)


def at_every_write(disk: SmallDisk, monkeypatch: pytest.MonkeyPatch, step: int) -> Counter[str]:
    """The disk is full from the n-th write on, for every n: what is written goes over the end of it."""
    counts: Counter[str] = Counter()
    write, writes = Disk.write, 0

    def told(folder: str, stop: int) -> tuple[Story, bool]:
        """Up to the write that fails, or to the end."""
        nonlocal writes
        story, writes = Story(str(disk.path / folder)), 0
        stack: list[object] = []

        def counted(self: Disk, name: str, content: bytes) -> None:
            nonlocal writes
            writes += 1
            if writes == stop:
                context = disk.full()
                context.__enter__()
                stack.append(context)
            write(self, name, content)

        monkeypatch.setattr(Disk, "write", counted)
        try:
            failed = story.fails()
            story.check()
        finally:
            monkeypatch.setattr(Disk, "write", write)
            for context in stack:
                context.__exit__(None, None, None)  # type: ignore[attr-defined]
        return story, failed

    whole, failed = told("whole", 0)
    assert not failed
    total, wanted = writes, whole.rows()
    assert total > 20
    for stop in range(1, total + 1, step):
        story, failed = told(f"full-{stop}", stop)
        assert failed, f"write {stop} of {total} went onto a full disk"
        story.tell()  # there is room again
        counts["full at a write"] += 1
        assert story.rows() == wanted, f"stopped at write {stop} of {total}"
    return counts


def at_every_size(disk: SmallDisk, what: str, step: int) -> Counter[str]:
    """Disks of every size (of bytes, or of files) up to one that is enough."""
    counts: Counter[str] = Counter()
    whole = Story(str(disk.path / "whole"))
    before = disk.files
    whole.tell()
    wanted, unit = whole.rows(), PAGE if what == "size" else 1
    most = 10**6
    for number in range(1, most, step):
        room = (disk.used if what == "size" else disk.files) + number * unit
        disk.remount(f"{what}={room}")
        story = Story(str(disk.path / f"{what}-{number}"))
        failed = story.fails()
        if failed:
            story.check()
        disk.remount("size=64m,nr_inodes=100k")
        story.tell()
        assert story.rows() == wanted, f"{what} {number}"
        counts[f"disks too small: {what}" if failed else "large enough"] += 1
        if not failed:
            break
    assert disk.files > before
    return counts


def test_a_full_disk_at_every_write(disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = at_every_write(disk, monkeypatch, 6)
    assert counts["full at a write"] >= 5


def test_disks_of_many_sizes(disk: SmallDisk) -> None:
    counts = at_every_size(disk, "size", 16) + at_every_size(disk, "nr_inodes", 12)
    assert counts["disks too small: size"] > 1
    assert counts["disks too small: nr_inodes"] > 1


@pytest.mark.long
def test_a_full_disk_at_every_write_and_of_every_size(
    disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = at_every_write(disk, monkeypatch, 1) + at_every_size(disk, "size", 1)
    counts += at_every_size(disk, "nr_inodes", 1)
    print(f"\nfull disks: {dict(counts)}, bad 0")


def test_a_read_only_disk_is_read_and_its_writers_say_so(disk: SmallDisk) -> None:
    uri = disk.path / "reference"
    Store.open(str(uri), create=True).begin({"name": "s"}, signature="a")
    store = Store.open(str(uri))
    store.put(entry(1), {"unet:a": 1})
    disk.remount("ro")
    assert [e.zeros for e in Store.open(str(uri)).evaluations()] == [1]
    for write in (lambda: store.put(entry(2)), store.compact, lambda: store.begin({}, signature="a")):
        with pytest.raises(RaysenseError, match="Read-only file system") as refused:
            write()
        assert len(str(refused.value).splitlines()) == 1
    disk.remount("rw")
    assert store.compact() == 1


def test_what_a_user_named_is_written_whole_or_not_at_all(disk: SmallDisk) -> None:
    out = disk.path / "out"
    out.mkdir()

    def refused(words: str) -> None:
        with pytest.raises(RaysenseError, match=f"`--json .*{words}; choose a place with room"):
            write_file(out / "found.json", bytes(5 * PAGE), "--json")
        assert list(out.iterdir()) == []

    with disk.full():
        refused("No space left on device")
    disk.remount("ro")
    refused("Read-only file system")
    disk.remount("rw")
    write_file(out / "found.json", bytes(5 * PAGE), "--json")
    assert [file.stat().st_size for file in out.iterdir()] == [5 * PAGE]


def test_temporary_files_on_a_full_disk(disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapping over a full disk would kill the process; level bytes stay in memory, solved weights say what to do."""
    monkeypatch.setattr(tempfile, "tempdir", str(disk.path))
    weight = torch.arange(4 * PAGE, dtype=torch.float32)
    layer = Layer("unet:a", "unet", "a", "linear", (256, SMALLEST // 256), "unet:a")
    levels = torch.zeros(layer.shape, dtype=torch.uint8)
    store = Disk("s3://studies/x", Memory())
    SolvedWeights(store, {"unet:a": "a" * 16}).put("unet:a", {1: torch.ones(64, 64)}, "")
    with disk.full():
        with pytest.raises(RaysenseError, match=r"No space left on device.*set TMPDIR"):
            _keep(weight, "mapped")
        kept = LevelFiles(lambda layer: layer.path).of(layer, torch.zeros(layer.shape), lambda: levels)
        assert kept is levels
        with pytest.raises(RaysenseError, match=r"No space left on device.*set TMPDIR"):
            SolvedWeights(store, {"unet:a": "a" * 16}).load("unet:a", 1)
    assert torch.equal(_keep(weight, "mapped"), weight)
    assert torch.equal(SolvedWeights(store, {"unet:a": "a" * 16}).load("unet:a", 1), torch.ones(64, 64))
