"""S3 by a slow and faulty way, and a network that is gone for a while: rows as without, or one clear line."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest

from raysense.errors import RaysenseError
from raysense.evaluation.cache import TensorCache
from raysense.store import Store, bucket
from raysense.store.disk import Disk
from tests.faults.proxy import Weather, faulty_way
from tests.faults.test_disks import Story
from tests.s3 import s3_server


@pytest.fixture(scope="module")
def way() -> Iterator[tuple[str, Weather]]:
    """Addresses behind a proxy, and what it does."""
    weather = Weather(random.Random(0))
    with s3_server() as pattern, faulty_way(pattern, weather) as found:
        yield found, weather


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long before trying again."""
    monkeypatch.setattr(bucket, "FIRST_WAIT_SECONDS", 0.02)


def stories(way: tuple[str, Weather], seeds: range, share: float) -> Counter[str]:
    """Studies by a faulty way: each has the rows of one by a good way, in as many lives as it takes."""
    pattern, weather = way
    counts: Counter[str] = Counter()
    weather.share = 0.0
    whole = Story(pattern.format(f"whole-{seeds.start}"))
    whole.tell()
    wanted = whole.rows()
    for seed in seeds:
        weather.rng, weather.counts = random.Random(seed), Counter()
        story = Story(pattern.format(f"faulty-{seed}"))
        for _ in range(20):
            weather.share, said = share, ""
            try:
                story.tell()
            except RaysenseError as error:
                said = str(error)
            finally:
                weather.share = 0.0
            assert len(said.splitlines()) < 2
            assert not said or "Check that the storage is there" in said
            counts["lives that gave up"] += bool(said)
            if not said:
                break
        story.check()
        assert story.rows() == wanted, seed
        counts += weather.counts
        counts["studies"] += 1
    print(f"\nS3 by a faulty way: {dict(counts)}")
    return counts


@pytest.mark.usefixtures("quick")
def test_studies_by_a_faulty_way(way: tuple[str, Weather]) -> None:
    counts = stories(way, range(2), 0.15)
    assert counts["studies"] == 2
    assert counts["lost answer"] + counts["lost request"] + counts["cut answer"] > 2


@pytest.mark.long
@pytest.mark.usefixtures("quick")
@pytest.mark.timeout(0)
def test_many_studies_by_a_faulty_way(way: tuple[str, Weather]) -> None:
    counts = stories(way, range(100, 200), 0.3)
    assert counts["studies"] == 100


def lost_for(way: tuple[str, Weather], seconds: float, name: str) -> None:
    """The network goes while rows are written, and comes back."""
    pattern, weather = way
    story = Story(pattern.format(name))
    Story(pattern.format(name)).tell()  # it has answered before
    again = Store.open(story.uri)
    weather.away = True
    back = Timer(seconds, lambda: setattr(weather, "away", False))
    back.start()
    began = time.monotonic()
    try:
        assert again.compact() == 0
        assert time.monotonic() - began > seconds * 0.9
    finally:
        back.join()
        weather.away = False
    story.check()


def test_a_network_that_is_lost_for_a_moment(way: tuple[str, Weather]) -> None:
    lost_for(way, 1.5, "moment")


@pytest.mark.long
@pytest.mark.timeout(0)
def test_a_network_that_is_lost_for_a_minute(way: tuple[str, Weather]) -> None:
    lost_for(way, 60.0, "minute")
    print("\nnetwork lost for a minute: 1 study, bad 0")


def test_a_network_that_stays_lost_is_one_line_and_a_cache_entry_cut_short_is_none(
    way: tuple[str, Weather], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "PATIENCE_SECONDS", 0.5)
    pattern, weather = way
    story = Story(pattern.format("gone"))
    story.tell()
    store, cache = Store.open(story.uri), TensorCache(Disk(story.uri))
    cache.put("a", {})
    weather.away = True
    try:
        for what in (
            store.compact,
            store.evaluations,
            lambda: store.begin({}, signature="a"),
            lambda: cache.get("a"),
        ):
            with pytest.raises(RaysenseError, match="Check that the storage is there") as refused:
                what()
            assert len(str(refused.value).splitlines()) == 1
    finally:
        weather.away = False
    assert len(store.evaluations()) == 9
    assert cache.get("a") == {}


# --- a machine that goes while it compacts -----------------------------------------------------------------

COMPACTS = """
import sys
from raysense.store import Store, compaction
from tests.store.drivers import evaluation
compaction.MANY_FILES = 2
store = Store.open(sys.argv[1], create=True)
with store.lock():
    store.begin({"name": "s"}, signature="a")
    print("begun", flush=True)
    for number in range(int(sys.argv[2]), 10_000):
        store.put(evaluation(number), {"unet:a": number})
        print(number, flush=True)
        store.compact()
"""


def killed_while_compacting(uri: str, times: int, seed: int) -> Counter[str]:
    """A machine is taken away while it compacts; the next one takes over and finds every row that was acknowledged."""
    rng, counts, acknowledged = random.Random(seed), Counter[str](), -1
    for _ in range(times):
        command = [sys.executable, "-c", COMPACTS, uri, str(acknowledged + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
            assert driver.stdout is not None
            lines = iter(driver.stdout)
            assert next(lines) == "begun\n"
            for _ in range(rng.randint(1, 4)):
                acknowledged = int(next(lines))
            time.sleep(rng.random() * 0.1)
            os.kill(driver.pid, signal.SIGKILL)
            for line in lines:  # what it had said before it went
                acknowledged = int(line)
        counts["killed while compacting"] += 1
        found = [e.zeros for e in Store.open(uri).evaluations()]
        assert len(found) == len(set(found))
        assert set(range(acknowledged + 1)) <= set(found)
        rows = Store.open(uri).table("measures")["key"].to_pylist()
        assert len(rows) == len(set(rows))
        acknowledged = max(found)
    counts["rows"] += acknowledged + 1
    return counts


def test_a_machine_that_goes_while_it_compacts(tmp_path: Path) -> None:
    assert killed_while_compacting(str(tmp_path / "store"), 2, 0)["rows"] > 1


@pytest.mark.long
@pytest.mark.timeout(0)
def test_machines_that_go_while_they_compact(tmp_path: Path) -> None:
    counts = killed_while_compacting(str(tmp_path / "store"), 50, 1)
    print(f"\n{dict(counts)}, bad 0")
