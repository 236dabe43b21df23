"""The bytes of the masks, made once a machine and mapped from then on.

The prune level of each weight follows from the weights, the method and what it knows, so the bytes of a layer are a
file of the machine's temporary folder, named by that: the next evaluator's life, and every other evaluator beside this
one, maps what the first has made, and all of them share its pages. Pages are given back after each switch; the system's
file cache keeps them as long as there is room.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from raysense.pruning.layers import Layer
from raysense.temporary_folders import own_folder

logger = logging.getLogger(__name__)

FOLDER = "RAYSENSE_LEVELS"
"""Environment variable: another folder for these files."""

UNUSED = 24 * 3600.0
"""Seconds without use, after which a file may go."""

SMALLEST = 1 << 16
"""Weights of the smallest layer that is worth a file."""

SPARE = 0.1
"""Share of the disk that is left free."""

_ENDING = ".levels"
_DIGEST = 32
_DONTNEED = 4
"""``MADV_DONTNEED`` of Linux: for a shared mapping of a file the content stays in the system's cache."""


class LevelFiles:
    """Files of level bytes, one a layer.

    Args:
        key: Layer -> the name of its file: whatever changes its bytes changes it.
        folder: Where; a folder of this user below the temporary one by default.
    """

    def __init__(self, key: Callable[[Layer], str], folder: Path | None = None) -> None:
        self._key = key
        self._areas: dict[int, Tensor] = {}  # where a layer's bytes begin -> the mapped file
        self._usable = True
        try:
            named = folder or os.environ.get(FOLDER)
            self._folder = Path(named) if named else own_folder("raysense-levels")
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._sweep()
        except OSError as error:
            self._give_up(error)

    def of(self, layer: Layer, like: Tensor, make: Callable[[], Tensor]) -> Tensor:
        """The bytes of a layer, in the shape and the memory layout of its weight; made if they are not there.

        Args:
            layer: The layer.
            like: Its weight.
            make: Makes them.
        """
        if not self._usable or layer.n < SMALLEST:
            return make()
        path = self._folder / f"{self._key(layer)}{_ENDING}"
        found = self._mapped(path, like)
        if found is None:
            made = make()
            if not self._write(path, made):
                return made
            found = self._mapped(path, like)
            if found is None:
                return made
        return found if like.device.type == "cpu" else found.to(like.device)

    def give_back(self, levels: Tensor) -> None:
        """Drop a layer's pages from this process; they come again from the file when they are read."""
        area = self._areas.get(levels.data_ptr())
        if area is not None:
            _drop_pages(area)

    def _mapped(self, path: Path, like: Tensor) -> Tensor | None:
        count = like.numel()
        try:
            if path.stat().st_size != count + _DIGEST:
                return None
            os.utime(path)
            area = torch.from_file(str(path), shared=True, size=count + _DIGEST, dtype=torch.uint8)
        except (OSError, RuntimeError):
            return None
        content = area.numpy()
        if hashlib.sha256(content[:count].data).digest() != content[count:].tobytes():
            logger.warning("%s is damaged; it is made again", path)
            return None
        _drop_pages(area)
        self._areas[area.data_ptr()] = area
        return area[:count].as_strided(like.shape, like.stride())

    def _write(self, path: Path, levels: Tensor) -> bool:
        """Whole or not at all."""
        data = levels.cpu().as_strided((levels.numel(),), (1,)).numpy().data
        partial = self._folder / f".{uuid.uuid4().hex}{_ENDING}"
        try:
            usage = shutil.disk_usage(self._folder)
            if usage.free - len(data) < SPARE * usage.total:
                raise OSError(f"{self._folder} is nearly full")
            with partial.open("wb") as file:
                file.write(data)
                file.write(hashlib.sha256(data).digest())
            os.replace(partial, path)
        except OSError as error:  # a full disk is no reason to stop: the bytes are in memory
            with suppress(OSError):
                partial.unlink()
            self._give_up(error)
            return False
        return True

    def _sweep(self) -> None:
        """Remove what nobody has used for a day; of these files only, whatever else the folder holds."""
        for file in self._folder.glob(f"*{_ENDING}"):
            with suppress(OSError):
                if time.time() - file.stat().st_mtime > UNUSED:
                    file.unlink()

    def _give_up(self, error: OSError) -> None:
        self._usable = False
        logger.info("level bytes are kept in memory only: %s", error)


def _drop_pages(area: Tensor) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise(ctypes.c_void_p(area.data_ptr()), ctypes.c_size_t(area.numel()), _DONTNEED)
