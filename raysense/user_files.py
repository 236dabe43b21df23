"""Reads the files that people give, whole: a device or a pipe may never end, and a file may be absurdly large."""

from __future__ import annotations

import stat
from pathlib import Path


def read(path: Path, largest: int) -> bytes:
    """The content of a plain file.

    Args:
        path: The file.
        largest: Bytes that it may have.

    Raises:
        OSError: It cannot be read, is no plain file, or is larger; `strerror` says which, in words.
    """
    try:
        found = path.stat()
    except ValueError as error:  # a NUL character in the path
        raise OSError(0, str(error)) from None
    if stat.S_ISDIR(found.st_mode):
        raise OSError(0, "it is a folder")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, "it is no plain file")
    if found.st_size > largest:
        raise OSError(0, f"it has {found.st_size:,} bytes; at most {largest:,} are read")
    with path.open("rb") as file:
        content = file.read(largest + 1)  # /proc says 0 of files that have content
    if len(content) > largest:
        raise OSError(0, f"it has more than {largest:,} bytes")
    return content
