"""The store on an object store: a real S3-speaking server on loopback."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator

import pytest

from raysense.errors import RaysenseError
from raysense.records import Evaluation
from raysense.store import Store, lock
from raysense.store.disk import Disk
from raysense.store.lock import PROCESS, STALE_SECONDS, Holders, Lease, LockLost
from tests.s3 import s3_server
from tests.store.drivers import evaluation

Make = Callable[..., Evaluation]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as found:
        yield found


class Ticks:
    """A clock that only waiting moves on."""

    def __init__(self) -> None:
        self.seconds, self.then = 1e9, lambda: None

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.then()


def another(uri: str) -> tuple[Store, Holders, Ticks]:
    """A driver as another process has it: with locks and a clock of its own."""
    clock = Ticks()
    holders = Holders(clock, renews=False)
    return Store(Disk(uri), holders), holders, clock


def test_put_read_compact_resume(bucket: str, make: Make) -> None:
    uri = bucket.format("one/store")
    store = Store.open(uri, create=True)
    store.begin({"name": "s"}, signature="a", denominators={"n_selected": 7})
    for n in range(12):
        store.put(make(n), {"unet:a": n + 1})
    assert len(store.evaluations()) == 12
    assert store.compact() == 12
    store.put(make(3))
    store.put(make(12))
    again = Store.open(uri)
    assert sorted(e.zeros for e in again.evaluations()) == list(range(13))
    assert again.compact() == 1
    assert len(again.table("measures")) == 26
    assert set(again.table("evaluations")["n_selected"].to_pylist()) == {7}
    assert again.get(f"{5:016x}") == again.known()[f"{5:016x}"]
    with pytest.raises(RaysenseError, match="another study"):
        again.begin({"name": "t"}, signature="b")


def lease_of(holders: Holders) -> Lease:
    (lease,) = holders.locks.values()
    assert isinstance(lease, Lease)
    return lease


def test_a_renewed_lease_is_refused_and_a_silent_one_taken_after_90_seconds(bucket: str) -> None:
    uri = bucket.format("two")
    first, held, _ = another(uri)
    second, _, clock = another(uri)
    with first.lock():
        first.begin({"name": "s"}, signature="a")
        clock.then = lambda: lease_of(held).renew()  # while the second one looks
        with pytest.raises(RaysenseError, match=f"process {os.getpid()} on .* is running this study"):
            second.compact()
        clock.then = lambda: None  # from now on it is suspended
        began = clock.seconds
        with second.lock():
            assert STALE_SECONDS <= clock.seconds - began < STALE_SECONDS + 5
            second.put(evaluation(1))
            assert second.compact() == 1
            with pytest.raises(LockLost, match="another driver"):
                first.compact()  # now it goes on
            with pytest.raises(LockLost, match="another driver"):
                first.begin({"name": "s"}, signature="a", denominators={"n_pipeline": 9})
            with pytest.raises(LockLost):
                first.lock().refuse_if_lost()
    assert json.loads(Disk(uri).read(lock.NAME) or b"")["free"]
    began = clock.seconds
    with second.lock():  # given back: free at once
        assert clock.seconds == began


def test_a_switch_that_was_under_way_when_the_lease_was_taken_over_does_not_count(bucket: str) -> None:
    """Its holder has just been told that the lease is its own, and is suspended for longer than a lease lives."""
    uri = bucket.format("three")
    first, _, _ = another(uri)
    second, _, _ = another(uri)
    with first.lock() as lock_:
        first.begin({"name": "s"}, signature="a")
        first.put(evaluation(1))
        manifest, token = first._files.manifest(), lock_.renew()
        with second.lock(), pytest.raises(LockLost, match="another driver has written"):
            first._files._replace({}, manifest, token, "a")


def test_a_deleted_lease_stops_its_holder(bucket: str) -> None:
    store, _, _ = another(bucket.format("four"))
    with store.lock():
        store.begin({"name": "s"}, signature="a")
        Disk(store.uri).delete([lock.NAME])
        with pytest.raises(LockLost):
            store.compact()


def test_the_thread_that_renews_finds_out(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.05)
    store = Store.open(bucket.format("renewed"), create=True)
    disk = Disk(store.uri)
    with store.lock() as held:
        first = disk.read(lock.NAME)
        deadline = time.monotonic() + 20
        while disk.read(lock.NAME) == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert disk.read(lock.NAME) != first
        disk.delete([lock.NAME])
        (lease,) = PROCESS.locks.values()
        while not lease.lost and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(LockLost):
            held.refuse_if_lost()


def test_storage_that_is_not_there_is_named(bucket: str, make: Make) -> None:
    with pytest.raises(RaysenseError, match=r"nobucket.*Check that the storage is there"):
        Store.open(bucket.replace("studies", "nobucket").format("x"), create=True).put(make(1))


def test_wrong_credentials_are_one_clear_error_that_does_not_show_them(
    bucket: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)  # now the server checks who asks
    with pytest.raises(RaysenseError, match=r"store `s3://studies/five.*credentials allow it") as refused:
        Store.open(bucket.format("five"), create=True).put(make(1))
    assert "secret-of" not in str(refused.value)


def test_an_endpoint_that_is_not_there_is_one_clear_error() -> None:
    with pytest.raises(RaysenseError, match=r"cannot read .*Check that the storage is there"):
        Store.open("s3://studies/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1", create=True)
