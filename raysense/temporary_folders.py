"""Folders of this user's own below a temporary one, where other users of the machine may have put something first."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path


def own_folder(name: str, below: str | None = None) -> Path:
    """A folder to which nobody else may write, made if there is none.

    Args:
        name: What it is for.
        below: Where; the temporary folder by default.

    Raises:
        OSError: It cannot be made, or what has its name is a link, somebody else's, or open to others.
    """
    place = Path(below or tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        place.mkdir(mode=0o700, parents=True)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise OSError(f"{place} is a link or no folder; remove it")
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise OSError(f"{place} belongs to somebody else, or others may write to it; remove it or set TMPDIR")
    return place
