"""The store on an object store: a real S3-speaking server on loopback."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from raysense.errors import RaysenseError
from raysense.records import Evaluation
from raysense.store import Store, lock
from tests.s3 import s3_server

Make = Callable[..., Evaluation]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as found:
        yield found


@pytest.fixture(autouse=True)
def quick_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.05)


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


def test_a_live_lease_is_refused_and_a_stale_one_taken(bucket: str) -> None:
    store = Store.open(bucket.format("two"), create=True)
    held = {"host": "elsewhere", "pid": 1, "token": "x", "renewed": time.time()}
    store._disk.write(lock.NAME, json.dumps(held).encode())
    with pytest.raises(RaysenseError, match="process 1 on elsewhere"):
        store.begin({}, signature="a")
    stale = {**held, "renewed": time.time() - 2 * lock.STALE_SECONDS}
    store._disk.write(lock.NAME, json.dumps(stale).encode())
    with store.lock():
        held_now = json.loads(store._disk.read(lock.NAME) or b"")
        assert held_now["token"] != "x"
    assert store._disk.read(lock.NAME) is None


def test_a_dead_process_of_this_host_holds_no_lease(bucket: str) -> None:
    import socket

    store = Store.open(bucket.format("three"), create=True)
    held = {"host": socket.gethostname(), "pid": 2**22 + 5, "token": "x", "renewed": time.time()}
    store._disk.write(lock.NAME, json.dumps(held).encode())
    with store.lock():
        pass


def test_storage_that_is_not_there_is_named(bucket: str, make: Make) -> None:
    with pytest.raises(RaysenseError, match=r"nobucket.*Check that the storage is there"):
        Store.open(bucket.replace("studies", "nobucket").format("x"), create=True).put(make(1))


def test_wrong_credentials_are_one_clear_error_that_does_not_show_them(
    bucket: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)  # now the server checks who asks
    with pytest.raises(RaysenseError, match=r"store `s3://studies/five.*credentials allow it") as refused:
        Store.open(bucket.format("five"), create=True).put(make(1))
    assert "secret" not in str(refused.value)


def test_an_endpoint_that_is_not_there_is_one_clear_error() -> None:
    with pytest.raises(RaysenseError, match=r"cannot read .*Check that the storage is there"):
        Store.open(
            "s3://a:b@studies/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1", create=True
        )
