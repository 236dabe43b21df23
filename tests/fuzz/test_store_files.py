"""Every file of a store damaged in every way: refused in one line that names it, never read as other rows."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from raysense.errors import RaysenseError
from raysense.evaluation.cache import TensorCache
from raysense.evaluation.solved_weights import SolvedWeights
from raysense.records import Evaluation, Measure
from raysense.results.run import Run
from raysense.store import TABLES, Store
from raysense.store.disk import Disk
from tests.conftest import REFERENCE
from tests.fuzz.harness import Case, Changed, run

Damage = Callable[[random.Random, Path, Path], None]


def evaluation(number: int) -> Evaluation:
    sample = {"prompt_id": number, "prompt": "a cät", "seed": 7, "clip_score": 0.3, "lpips": None}
    return Evaluation(
        key=f"{number:016x}",
        trial=f"search/solver/{number}",
        stage="search",
        allocation=f"{number:016x}",
        rung="score",
        measures={
            "clip_score_drop": Measure(number / 7, number / 7 - 0.1, number / 7 + 0.1, 16, "open_clip")
        },
        zeros=number,
        images=16,
        nfe=32,
        seconds=0.1,
        samples=[sample],
    )


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_store(tmp_path_factory.mktemp("fuzz") / "store")


def whole_store(folder: Path) -> Path:
    """A real study with objects that no compaction has taken in yet."""
    shutil.copytree(REFERENCE, folder)
    store = Store.open(str(folder))
    layer = store.table("layers")["layer"][0].as_py()
    for number in range(3):
        store.put(evaluation(number), {layer: number})
    return folder


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "driver.lock")


def _contents(folder: Path) -> dict[str, Any]:
    """Everything that a reader is given."""
    read = Run(str(folder))
    tables = {name: sorted(map(repr, read.store.table(name).to_pylist())) for name in TABLES}
    evaluations = {e.key: e for e in read.store.evaluations()}
    assert dict(read.store.known()) == evaluations
    return {
        "study": read.store.study,
        "definition": read.study,
        "summary": read.summary,
        "objects": evaluations,
        **tables,
    }


# --- ways to damage ---------------------------------------------------------------------------------------


def flipped(rng: random.Random, file: Path, _other: Path) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def truncated(rng: random.Random, file: Path, _other: Path) -> None:
    os.truncate(file, rng.randrange(file.stat().st_size))


def zeroed(rng: random.Random, file: Path, _other: Path) -> None:
    content = bytearray(file.read_bytes())
    start = rng.randrange(len(content))
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    file.write_bytes(content)


def repeated(rng: random.Random, file: Path, _other: Path) -> None:
    content = bytearray(file.read_bytes())
    start = rng.randrange(len(content))
    content[start:start] = content[start : start + rng.randint(1, 64)]
    file.write_bytes(content)


def replaced(rng: random.Random, file: Path, _other: Path) -> None:
    contents = [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b"1" * 5_000,
        b"PAR1",
        b"\xff\xfe",
        rng.randbytes(300),
    ]
    file.write_bytes(rng.choice(contents))


def swapped(_rng: random.Random, file: Path, other: Path) -> None:
    one, two = file.read_bytes(), other.read_bytes()
    file.write_bytes(two)
    other.write_bytes(one)


def deleted(_rng: random.Random, file: Path, _other: Path) -> None:
    file.unlink()


WAYS: Sequence[Damage] = (flipped, truncated, zeroed, repeated, replaced, swapped, deleted)


@cache
def _wanted(folder: Path) -> dict[str, Any]:
    return _contents(folder)


def _read_damaged(original: Path, scratch: Path, way: Damage, file: str, other: str, seed: int) -> None:
    """One case: damage a copy, read it, then let a compaction try."""
    copy = Path(shutil.copytree(original, scratch / f"{os.getpid()}-{seed}"))
    try:
        way(random.Random(seed), copy / file, copy / other)
        wanted = _wanted(original)
        try:
            found = _contents(copy)
        except RaysenseError as error:
            if not any(Path(name).name in str(error) for name in (file, other)):
                raise Changed(f"does not name the file: {error}") from error
            _nothing_is_lost(original, copy, {file, other})
            raise
        if way is deleted and file == "summary.json":
            wanted = {**wanted, "summary": None}
        if way is deleted and file.startswith("objects/"):  # measured again
            assert set(found["objects"]) == set(wanted["objects"]) - {Path(file).stem}
            return
        for part, value in wanted.items():
            if found[part] != value:
                raise Changed(f"{part} differs")
    finally:
        shutil.rmtree(copy)


def _nothing_is_lost(original: Path, copy: Path, files: set[str]) -> None:
    """A driver that comes upon the damage leaves everything as it is: once that is mended, all rows are there."""
    try:
        Store.open(str(copy)).compact()
    except RaysenseError:
        for name in files:
            (copy / name).write_bytes((original / name).read_bytes())
        if _contents(copy)["objects"] != _wanted(original)["objects"]:
            raise Changed("a compaction has lost rows") from None


def _cases(original: Path, scratch: Path, ways: Sequence[Damage], count: int, seed: int) -> Iterator[Case]:
    rng = random.Random(seed)
    names = [str(path.relative_to(original)) for path in _files(original)]
    _wanted(original)  # once, before the children are forked
    for number, (name, way) in zip(
        range(count), itertools.cycle(itertools.product(names, ways)), strict=False
    ):
        other = rng.choice([n for n in names if n != name])
        case = partial(
            _read_damaged, original, scratch, way, name, other if way is swapped else name, seed + number
        )
        yield f"{way.__name__} {name} {seed + number}", case


def test_damaged_files(original: Path, tmp_path: Path) -> None:
    run("store: files damaged", list(_cases(original, tmp_path, WAYS, 84, 0))).check()


def test_flipped_bits(original: Path, tmp_path: Path) -> None:
    run("store: single bits flipped", list(_cases(original, tmp_path, [flipped], 60, 10_000))).check()


@pytest.mark.long
def test_many_damaged_files(original: Path, tmp_path: Path) -> None:
    run("store: files damaged", list(_cases(original, tmp_path, WAYS, 2_500, 20_000))).check()


@pytest.mark.long
def test_many_flipped_bits(original: Path, tmp_path: Path) -> None:
    run("store: single bits flipped", list(_cases(original, tmp_path, [flipped], 3_000, 30_000))).check()


# --- the cache --------------------------------------------------------------------------------------------

TENSORS = {"values/clip_score": torch.arange(6.0), "images": torch.arange(8, dtype=torch.uint8)}
LEVELS = {1: torch.arange(12.0).view(3, 4), 2: torch.ones(3, 4)}
KEYS = {"unet:a": "a" * 16, "unet:b": "b" * 16}


def _cache(folder: Path) -> None:
    disk = Disk(str(folder))
    for number, key in enumerate(("0" * 16, "1" * 16)):
        TensorCache(disk).put(key, {name: tensor + number for name, tensor in TENSORS.items()})
    for number, address in enumerate(KEYS):
        SolvedWeights(disk, KEYS).put(
            address, {n: weight + number for n, weight in LEVELS.items()}, f"damping {number}"
        )


def _read_cache(scratch: Path, way: Damage, seed: int) -> None:
    folder = scratch / f"{os.getpid()}-{seed}"
    _cache(folder)
    try:
        files = _files(folder / "cache")
        rng = random.Random(seed)
        way(rng, *rng.sample(files, 2))
        disk = Disk(str(folder))
        for number, key in enumerate(("0" * 16, "1" * 16)):
            found = TensorCache(disk).get(key)  # None: it is made again
            if found is not None and not all(torch.equal(found[n], t + number) for n, t in TENSORS.items()):
                raise Changed(f"entry {key} differs")
        slices, refused = SolvedWeights(disk, KEYS), None
        for number, address in enumerate(KEYS):
            if not slices.has(address):
                continue  # it is solved again
            try:
                assert slices.note(address) == f"damping {number}"
                for level, weight in LEVELS.items():
                    if not torch.equal(slices.load(address, level), weight + number):
                        raise Changed(f"slice {address} at {level} differs")
            except RaysenseError as error:
                refused = error
        if refused is not None:
            raise refused
    finally:
        shutil.rmtree(folder)


def _cache_cases(scratch: Path, count: int, seed: int) -> list[Case]:
    pairs = zip(range(count), itertools.cycle(WAYS), strict=False)
    return [(f"{way.__name__} {n}", partial(_read_cache, scratch, way, seed + n)) for n, way in pairs]


def test_damaged_cache_entries(tmp_path: Path) -> None:
    run("cache: entries damaged", _cache_cases(tmp_path, 140, 0)).check()


@pytest.mark.long
def test_many_damaged_cache_entries(tmp_path: Path) -> None:
    run("cache: entries damaged", _cache_cases(tmp_path, 2_000, 10_000)).check()
