"""Two drivers on one bucket: whatever is interleaved, suspended, killed or lost, no row is, and only one writes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache

import pyarrow as pa
import pytest

from raysense.store import parquet
from raysense.store.bucket import ABSENT, Bucket, Moved
from tests.s3 import s3_server
from tests.store.drivers import Memory, World


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as found:
        yield found


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread decodes a few rows; a content that was decoded before is not decoded again."""
    threads = pa.cpu_count()
    pa.set_cpu_count(1)
    monkeypatch.setattr(parquet, "decode", lru_cache(512)(parquet.decode))
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    pa.set_cpu_count(threads)


def interleavings(seeds: range, steps: int, make: Callable[[int], Bucket]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for seed in seeds:
        world = World(seed, make(seed))
        world.run(steps)
        counts.update(world.counts)
    print(f"\n{dict(counts)}")
    return counts


def test_stories_of_two_drivers() -> None:
    counts = interleavings(range(25), 200, lambda seed: Memory())
    assert counts["interleavings"] == 25
    assert counts["suspended"] > 10
    assert counts["drivers that held the lease"] > 25


def test_stories_over_http(bucket: str) -> None:
    counts = interleavings(range(1000, 1003), 120, lambda seed: Bucket.at(bucket.format(f"s{seed}")))
    assert counts["interleavings"] == 3


@pytest.mark.long
@pytest.mark.timeout(0)
def test_ten_thousand_stories_of_two_drivers() -> None:
    counts = interleavings(range(10_000), 160, lambda seed: Memory())
    assert counts["interleavings"] == 10_000


@pytest.mark.long
@pytest.mark.timeout(0)
def test_many_stories_over_http(bucket: str) -> None:
    counts = interleavings(range(100_000, 100_300), 400, lambda seed: Bucket.at(bucket.format(f"s{seed}")))
    assert counts["interleavings"] == 300


def test_memory_and_a_server_answer_conditional_writes_alike(bucket: str) -> None:
    """So that interleavings over the one hold for the other."""

    def answers(of: Bucket) -> list[object]:
        found: list[object] = [of.read("k")]
        first = of.write_if("k", b"1", ABSENT)
        for content, version in ((b"2", ABSENT), (b"2", {**first, "e_tag": '"ffff"'})):
            with pytest.raises(Moved):
                of.write_if("k", content, version)
            found.append(of.read("k")[0])  # type: ignore[index]
        second = of.write_if("k", b"2", first)
        assert second != first
        with pytest.raises(Moved):
            of.write_if("k", b"3", first)
        assert of.write_if("k", b"2", first) == second  # its answer was lost: it asks again
        of.write("k", b"4")
        with pytest.raises(Moved):
            of.write_if("k", b"5", second)
        with pytest.raises(Moved):
            of.write_if("gone", b"5", second)
        of.write("a/b/c", b"6")
        found += [of.read("k")[0], [name for f in ("", "a", "a/b") for name, _ in of.names(f)]]  # type: ignore[index]
        found += of.read_all(["k", "gone", "a/b/c"])
        of.delete(["k", "gone"])
        of.delete(["k"])
        return [*found, of.read("k"), of.names("")]

    assert answers(Memory()) == answers(Bucket.at(bucket.format("alike")))


def test_of_many_at_once_one_wins(bucket: str) -> None:
    """Threads, not turns: eight writers each add to a number a few times; no addition is lost."""
    from concurrent.futures import ThreadPoolExecutor

    for of in (Bucket.at(bucket.format("race")),):
        of.write("n", b"0 -")

        def add(who: int, of: Bucket = of) -> None:
            for turn in range(3):
                while True:
                    content, version = of.read("n") or (b"", ABSENT)
                    number = int(content.split()[0]) + 1
                    try:
                        of.write_if("n", f"{number} {who}-{turn}".encode(), version)
                        break
                    except Moved:
                        continue

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(add, range(8)))
        assert (of.read("n") or (b"",))[0].startswith(b"24 ")
