"""One content hash for everything: plain data, files, folders. Loads neither torch nor Ray.

A file is read once in a process, however often it is asked for, as long as its size, times and inode stay; what one
process has read, those that it starts need not read again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raysense.errors import RaysenseError

log = logging.getLogger("raysense")

DIGITS = 16
QUIET_SECONDS = 1.0
_CHUNK = 1 << 22

_known: dict[tuple[str, int, int, int, int], str] = {}

KnownFile = tuple[str, int, int, int, int, str]
"""Path, size, times of change of content and of inode in ns, inode, hash; another machine's file differs in one."""


def content_key(*parts: Any) -> str:
    """A 16-character hexadecimal hash of JSON-able parts; the same parts give the same key anywhere."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def file_hash(path: Path) -> str:
    """16 hexadecimal digits of the SHA-256 of a file's content.

    Raises:
        RaysenseError: The file cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a device or a pipe may never end
            raise OSError(0, "it is no plain file")
        seen = (str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        if seen not in _known:
            _known[seen] = _read(path, status.st_size)
    except OSError as error:
        raise RaysenseError(f"cannot read `{path}`: {error.strerror or error}") from None
    return _known[seen]


def known_files() -> list[KnownFile]:
    """What this process has read, for one that it starts to `know`."""
    return [(*seen, found) for seen, found in _known.items()]


def know(files: Iterable[KnownFile]) -> None:
    """Take over what another process has read; a file that has changed, or is another machine's, is read anyway."""
    for path, size, changed, touched, inode, found in files:
        _known[path, size, changed, touched, inode] = found


def files_hash(folder: Path, files: Iterable[Path]) -> str:
    """A hash of some files of a folder: of their names below it and of their contents."""
    return content_key(sorted((file.relative_to(folder).as_posix(), file_hash(file)) for file in files))


def visible_files(folder: Path) -> list[Path]:
    """All files below a folder, those behind links too; hidden ones and what Python compiles left out."""
    found: list[Path] = []
    been: set[str] = set()  # links may lead round in a circle
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__"))]
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(parent, name)) not in been]
        been.update(os.path.realpath(os.path.join(parent, name)) for name in folders)
        found += [Path(parent) / name for name in names if not name.startswith(".")]
    return sorted(found)


def refuse_odd_files(folder: Path) -> None:
    """Refuse a folder in which a pipe, a device or a link that leads nowhere stands for a file: loading may never end.

    Raises:
        RaysenseError: Which one, and what it is.
    """
    for file in visible_files(folder):
        try:
            mode = file.stat().st_mode
        except OSError as error:
            raise RaysenseError(f"`{file}` cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(mode):
            kind = (
                "a pipe"
                if stat.S_ISFIFO(mode)
                else "a device"
                if stat.S_ISCHR(mode)
                else "a socket or a disk"
            )
            raise RaysenseError(f"`{file}` is no plain file, but {kind}; put the file itself there")


def _read(path: Path, size: int) -> str:
    digest, done, began, told = hashlib.sha256(), 0, time.monotonic(), False
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if not told and time.monotonic() - began > QUIET_SECONDS:
                told = True
                log.warning("reading %s (%.1f GB) once, to know it again", path, size / 1e9)
    return digest.hexdigest()[:DIGITS]
