"""A small disk of its own, which really fills up and really is read-only: a tmpfs, where this process may mount one."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = 4096


class SmallDisk:
    """A mounted tmpfs.

    Attributes:
        path: Where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def remount(self, options: str) -> None:
        """Change its size (``size=8192``), its number of files (``nr_inodes=9``), or make it ``ro`` or ``rw``."""
        subprocess.run(["mount", "-o", f"remount,{options}", self.path], check=True, capture_output=True)

    @property
    def used(self) -> int:
        """Bytes."""
        found = os.statvfs(self.path)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    @property
    def files(self) -> int:
        """How many inodes are in use."""
        found = os.statvfs(self.path)
        return found.f_files - found.f_ffree

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Nothing more goes onto it while this is open; an earlier file may still be replaced by none."""
        filler = self.path / ".filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(16 * PAGE))
        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1))
        try:
            yield
        finally:
            filler.unlink()


@contextlib.contextmanager
def small_disk(path: Path, size: int = 1 << 24) -> Iterator[SmallDisk]:
    """A disk of so many bytes at `path`, while this is open."""
    path.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", path],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"no disk can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
