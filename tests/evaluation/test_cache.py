from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from raysense.evaluation.cache import TensorCache
from raysense.store.disk import Disk


@pytest.fixture
def cache(tmp_path: Path) -> TensorCache:
    return TensorCache(Disk(str(tmp_path)))


def test_what_is_put_comes_back_and_what_is_not_there_is_none(cache: TensorCache) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.tensor(2.0, dtype=torch.float64)}
    cache.put("key", tensors)
    found = cache.get("key")
    assert found is not None
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
    assert cache.get("other") is None


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "digest only"])
def test_a_damaged_entry_counts_as_missing_and_can_be_made_again(
    cache: TensorCache, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = {"a": torch.randn(100)}
    cache.put("key", tensors)
    file = tmp_path / "cache" / "key"
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[-7] ^= 1
    length = {"empty": 0, "cut": len(data) // 2, "flipped": len(data), "digest only": 32}[damage]
    file.write_bytes(data[:length])
    assert cache.get("key") is None
    assert "damaged" in caplog.text
    cache.put("key", tensors)
    found = cache.get("key")
    assert found is not None
    assert torch.equal(found["a"], tensors["a"])


def test_readers_beside_many_writers_see_a_whole_entry_or_none(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(200_000, dtype=torch.float32)}
    bad: list[str] = []
    done = threading.Event()

    def write() -> None:
        mine = TensorCache(Disk(str(tmp_path)))
        for _ in range(8):
            mine.put("key", tensors)

    def read() -> None:
        mine = TensorCache(Disk(str(tmp_path)))
        while not done.is_set():
            raw = Disk(str(tmp_path)).read("cache/key")
            found = mine.get("key")
            if raw is not None and (found is None or not torch.equal(found["a"], tensors["a"])):
                bad.append("torn")

    writers = [threading.Thread(target=write) for _ in range(4)]
    reader = threading.Thread(target=read)
    for thread in [reader, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert not bad
    assert not list((tmp_path / "partial").iterdir())
