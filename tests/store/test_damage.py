"""Damage, full disks, file systems without locks: refused in one line with the file's name, never other rows."""

from __future__ import annotations

import errno
import fcntl
import importlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysense.cli import main
from raysense.errors import RaysenseError
from raysense.evaluation.inputs import use_code
from raysense.records import Evaluation
from raysense.results.run import Run
from raysense.store import Store
from raysense.store.checksummed_json import seal, unseal
from raysense.store.disk import Disk, write_file
from raysense.store.lock import LockLost
from raysense.store.table_files import TableFiles
from tests.conftest import REFERENCE
from tests.tables import edit

Make = Callable[..., Evaluation]


@pytest.fixture
def store(tmp_path: Path, make: Make) -> Store:
    """Compacted rows and objects beyond them."""
    store = Store.open(str(tmp_path / "store"), create=True)
    store.begin({"name": "s"}, signature="a", denominators={"n_selected": 9})
    store.write_table("layers", pa.table({"layer": ["unet:a"], "step": [5]}))
    for n in range(4):
        store.put(make(n), {"unet:a": n})
        if n == 2:
            store.compact()
    return store


def test_every_page_carries_a_checksum_that_a_flipped_bit_breaks(store: Store) -> None:
    (file,) = Path(store.uri).glob("tables/measures/*.parquet")
    column = pq.ParquetFile(file).metadata.row_group(0).column(2)
    content = bytearray(file.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    with pytest.raises(OSError, match=r"(?i)crc|checksum"):
        pq.read_table(pa.BufferReader(bytes(content)), page_checksum_verification=True)


READS = """
import os, pyarrow as pa
from raysense.prompts.files import rows_of_parquet
from raysense.store.parquet import decode, encode
content = encode(pa.table({"a": list(range(1000)), "prompt": ["x"] * 1000}))

def threads():  # without that of the allocator, which comes with the first allocation and touches no Python
    names = {task: open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")}
    return {task for task, name in names.items() if not name.startswith("jemalloc")}

before = threads()
assert len(decode(content)) == len(rows_of_parquet(content)) == 1000
print("threads begun:", len(threads() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_no_thread_of_arrow_is_left_that_could_want_the_interpreter_when_it_has_ended() -> None:
    """Those of `pq.read_table` did: 3 of 40 processes that read a table last died of SIGABRT on a busy machine."""
    said = subprocess.run([sys.executable, "-c", READS], capture_output=True, text=True, check=True)
    assert said.stdout == "threads begun: 0\n"


def test_any_flipped_bit_of_a_sealed_file_is_seen() -> None:
    fields = {"a": 1.5, "text": "cät", "inner": {"b": [1, 2, None, True]}}
    content = seal(fields)
    whole = unseal(content, "`x`")
    assert {name: whole[name] for name in fields} == fields
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            read = unseal(bytes(flipped), "`x`")
        except (ValueError, RaysenseError):
            continue
        assert read == whole  # 1e5 and 1E5, say


def test_the_order_of_the_fields_and_the_layout_do_not_matter() -> None:
    fields = json.loads(seal({"b": 1, "a": 2}))
    assert unseal(json.dumps(dict(reversed(fields.items())), indent=3).encode(), "`x`") == unseal(
        seal({"a": 2, "b": 1}, indent=1), "`x`"
    )


def test_a_table_in_another_ones_place_is_named(store: Store) -> None:
    one, two = (next(Path(store.uri, "tables", name).iterdir()) for name in ("measures", "samples"))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    for table in ("measures", "samples"):
        with pytest.raises(RaysenseError, match=r"tables/.*does not match the checksum in its name"):
            Store.open(store.uri).table(table)


def test_damaged_code_of_plug_ins_is_not_imported(tmp_path: Path) -> None:
    disk = Disk(str(tmp_path))
    content = seal({"folders": [], "files": {"damaged_plug_in.py": "LEVEL = 1\n"}}, indent=1)
    disk.write("plugins.json", content.replace(b"LEVEL = 1", b"LEVEL = 3"))
    with pytest.raises(RaysenseError, match=r"plugins\.json.*checksum"):
        use_code(disk)
    disk.write("plugins.json", content)
    use_code(disk)
    assert importlib.import_module("damaged_plug_in").LEVEL == 1


def test_a_lost_manifest_is_not_a_study_without_rows(store: Store) -> None:
    Path(store.uri, "manifest.json").unlink()
    for read in (lambda s: s.evaluations(), lambda s: s.table("samples"), lambda s: s.compact()):
        with pytest.raises(RaysenseError, match=r"manifest\.json.*is missing"):
            read(Store.open(store.uri))
    assert list(Path(store.uri).glob("tables/*/*.parquet"))


def test_a_manifest_of_another_study_is_named(store: Store, tmp_path: Path) -> None:
    other = Store.open(str(tmp_path / "other"), create=True)
    other.begin({"name": "s"}, signature="b")
    Path(store.uri, "manifest.json").write_bytes(Path(other.uri, "manifest.json").read_bytes())
    with pytest.raises(RaysenseError, match=r"manifest\.json` belongs to another study"):
        Store.open(store.uri).evaluations()


def test_two_compactions_that_no_lock_kept_apart_lose_no_row(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first driver is stopped before any of its writes while the second one compacts all there is."""
    for n in range(4, 8):
        store.put(make(n), {"unet:a": n})
    rows = sorted(e.zeros for e in store.evaluations())
    write, writes = TableFiles.write, 0
    for moment in range(4):
        uri = f"{store.uri}-{moment}"
        subprocess.run(["cp", "-r", store.uri, uri], check=True)
        first, second = Store.open(uri), Store.open(uri)
        writes = 0

        def interleaved(self: TableFiles, name: str, table: pa.Table) -> str:
            nonlocal writes
            if self is first._files:  # noqa: B023
                writes += 1
                if writes == moment + 1:  # noqa: B023
                    second._compact(lock)  # noqa: B023
            return write(self, name, table)

        monkeypatch.setattr(TableFiles, "write", interleaved)
        with first.lock() as lock, pytest.raises(LockLost, match=r"another driver has (compacted|written)"):
            first._compact(lock)
        assert sorted(e.zeros for e in Store.open(uri).evaluations()) == rows
        Store.open(uri).compact()
        assert sorted(e.zeros for e in Store.open(uri).evaluations()) == rows


# --- what a disk refuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def none(file: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", none)
    for attempt in (store.compact, lambda: store.begin({}, signature="a")):
        with pytest.raises(RaysenseError, match=r"the file system below it has no locks.*s3://"):
            attempt()


def test_a_lock_never_follows_a_link(store: Store, tmp_path: Path) -> None:
    for name in ("driver.lock", "driver.json"):
        thesis = tmp_path / "thesis.tex"
        thesis.write_text("years of work")
        there = Path(store.uri, name)
        there.unlink(missing_ok=True)
        there.symlink_to(thesis)
        if name == "driver.lock":
            with pytest.raises(RaysenseError, match=r"cannot be written.*symbolic link"):
                store.compact()
            there.unlink()
        assert store.compact() >= 0  # and the lock that could not be had holds nobody up
        assert thesis.read_text() == "years of work"


def test_a_driver_whose_lock_file_was_deleted_writes_nothing_more(store: Store) -> None:
    """On a disk a deleted lock file is no lock any more: another driver may hold a new one."""
    with store.lock() as lock:
        lock.renew()
        Path(store.uri, "driver.lock").unlink()
        with pytest.raises(LockLost, match="another driver has taken this study over"):
            store.compact()
        with pytest.raises(LockLost):
            lock.refuse_if_lost()


def test_a_disk_that_fills_up_during_a_compaction_loses_nothing(store: Store, make: Make) -> None:
    for n in range(4, 60):
        store.put(make(n), {"unet:a": n})
    rows = sorted(e.zeros for e in store.evaluations())
    files = sorted(Path(store.uri).rglob("*.parquet"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (1, 100, 2500, 4000):  # the kernel refuses longer files: the lock, the manifest, the tables
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        try:
            with pytest.raises(RaysenseError, match=r"(cannot write|cannot be written).*File too large"):
                Store.open(store.uri).compact()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert sorted(e.zeros for e in Store.open(store.uri).evaluations()) == rows
        assert not list(Path(store.uri, "partial").iterdir())
    assert set(files) <= set(Path(store.uri).rglob("*.parquet"))
    assert store.compact() == 57


@pytest.mark.parametrize("content", ["", "[]", '{"pid": "x"}', "[" * 100_000])
def test_a_damaged_lock_holds_nobody_up(store: Store, content: str) -> None:
    Path(store.uri, "driver.lock").write_text(content)
    assert store.compact() == 1


def test_what_a_user_names_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "page.html"
    write_file(target, b"first")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(RaysenseError, match=r"--out .*page\.html` cannot be written: File too large"):
            write_file(target, bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert target.read_bytes() == b"first"
    assert list(target.parent.iterdir()) == [target]
    with pytest.raises(RaysenseError, match="No space left"):
        write_file(Path("/dev/full"), b"x")
    assert Path("/dev/full").is_char_device()
    with pytest.raises(RaysenseError, match="cannot be written"):
        write_file(target / "below", b"x")


# --- the command line -------------------------------------------------------------------------------------


def _error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_damaged_or_changed_summary_is_one_line(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = reference / "summary.json"
    whole = json.loads(summary.read_text())
    contents = [json.dumps({k: v for k, v in whole.items() if k != name}) for name in whole]
    contents += ["", "{", "[]", "null", "[" * 100_000, json.dumps({**whole, "zeros": whole["zeros"] + 1})]
    for content in contents:
        summary.write_text(content)
        with pytest.raises(RaysenseError, match=r"summary\.json"):
            Run(str(reference)).summary  # noqa: B018
    for command in (
        ["report", str(reference), "--images", "0"],
        ["show", str(reference)],
        ["export", str(reference), "--out", str(tmp_path / "out")],
        ["compare", str(reference), str(REFERENCE)],
    ):
        assert "summary.json" in _error(command, capsys)


def test_a_summary_of_another_study_is_one_line(reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(reference / "summary.json", lambda summary: summary.update(signature="0" * 16))
    assert "belongs to another study" in _error(["report", str(reference)], capsys)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["validate"], ["compare", str(REFERENCE), str(REFERENCE)]])
def test_a_full_device_as_standard_output(arguments: list[str], unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "raysense.cli", *arguments],
            stdout=full, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("raysense: error: the output cannot be written: No space")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
