"""A content-addressed cache of tensors beside the store: what is the same for every worker is made once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable

from safetensors.torch import load, save
from torch import Tensor

from raysense.store.disk import Disk

logger = logging.getLogger(__name__)
_DIGEST = 32


class TensorCache:
    """Named sets of tensors on a disk.

    An entry is written whole, led by the SHA-256 of its key and its content. Concurrent writers of one key write the
    same content, so whoever comes last does no harm; a damaged entry, or another key's, counts as missing.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors stored under `key`, or None."""
        data = self._disk.read(f"cache/{key}")
        if data is None:
            return None
        content = _content(key, data)
        if content is None:
            logger.warning("cache entry %s is damaged; it is made again", self._disk.path(f"cache/{key}"))
            return None
        return dict(load(content))

    def is_whole(self, key: str) -> bool:
        """Whether the entry is what was written under `key`."""
        return _content(key, self._disk.read(f"cache/{key}") or b"") is not None

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Store `tensors`, moved to the CPU, under `key`."""
        content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        self._disk.write(f"cache/{key}", _digest(key, content) + content)


class TensorMemory:
    """Named sets of tensors from memory, from the cache, or made now, whichever comes first."""

    def __init__(self, cache: TensorCache) -> None:
        self._cache = cache
        self._known: dict[str, dict[str, Tensor]] = {}

    def remembered(self, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of this name."""
        if key not in self._known:
            stored = self._cache.get(key)
            if stored is None:
                stored = make()
                self._cache.put(key, stored)
            self._known[key] = stored
        return self._known[key]


def _content(key: str, data: bytes) -> bytes | None:
    """What an entry holds, or None if it is damaged or another key's."""
    digest, content = data[:_DIGEST], data[_DIGEST:]
    return content if _digest(key, content) == digest else None


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + content).digest()
