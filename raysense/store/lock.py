"""One driver per store, however the last one ended."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NoReturn

from raysense.errors import RaysenseError
from raysense.store.disk import Disk, read_json

logger = logging.getLogger(__name__)

NAME = "driver.lock"
RENEW_SECONDS = 20.0
STALE_SECONDS = 90.0
SETTLE_SECONDS = 0.5


class DriverLock:
    """Held by the driver of a study while it writes what only a driver may write; a context manager.

    Whoever holds it may enter it again; it is given back when the outermost `with` ends. All locks that one
    process makes for one store are one lock.

    On a local disk it is the kernel's file lock: it ends with the process, whatever ended it, so a lock
    left by a crash is no lock. An object store has no locks: there the holder renews a lease every 20 s, and
    a lease is void once it is 90 s old, or its process on this host is gone. Two drivers that take a void
    lease within the same half second both check who wrote last, and one gives way.

    Args:
        disk: The store's disk.
    """

    _mutex = threading.RLock()
    _depths: dict[str, int] = {}  # noqa: RUF012  # one for the process, on purpose
    _locks: dict[str, _FileLock | _Lease] = {}  # noqa: RUF012

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __enter__(self) -> DriverLock:
        """Takes the lock.

        Raises:
            RaysenseError: Another driver holds it; says which host and process.
        """
        name = self._disk.path(NAME)
        with self._mutex:
            if not self._depths.get(name):
                lock = _FileLock(self._disk) if self._disk.local else _Lease(self._disk)
                lock.take()
                self._locks[name] = lock
            self._depths[name] = self._depths.get(name, 0) + 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        name = self._disk.path(NAME)
        with self._mutex:
            self._depths[name] -= 1
            if not self._depths[name]:
                del self._depths[name]
                self._locks.pop(name).give()


class _FileLock:
    """The kernel's lock on a local file; the file's content only says who holds it."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._file: int | None = None

    def take(self) -> None:
        import fcntl

        path = self._disk.path(NAME)
        with self._explained(
            "cannot be written", "Choose a folder that you may write to, on a disk with room."
        ):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with self._explained(
                "the file system below it has no locks",
                "Without one, two drivers could write at once: choose a folder on a local disk, a network file system "
                "mounted with locks, or an s3:// address.",
            ):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    _refuse(self._disk, _held(os.read(file, 4096)))
            with self._explained("cannot be written", "Make room on the disk, then start again."):
                content = json.dumps(_holder("")).encode()
                os.pwrite(file, content, 0)
                os.truncate(file, len(content))
        except BaseException:
            os.close(file)
            raise
        self._file = file

    @contextlib.contextmanager
    def _explained(self, what: str, remedy: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RaysenseError(f"store `{self._disk.shown}`: {what} ({error}). {remedy}") from error

    def give(self) -> None:
        assert self._file is not None  # given back by who took it
        with contextlib.suppress(OSError):  # what stands in the file does no harm: the lock ends with `close`
            os.truncate(self._file, 0)
        os.close(self._file)


class _Lease:
    """A renewed file on an object store."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._token = uuid.uuid4().hex
        self._ended = threading.Event()
        self._renewal = threading.Thread(target=self._keep_renewing, name="raysense-lease", daemon=True)

    def take(self) -> None:
        held = read_json(self._disk, NAME, f"Delete it if no driver runs on `{self._disk.shown}`.")
        if held is not None and _alive(held):
            _refuse(self._disk, held)
        self._renew()
        time.sleep(SETTLE_SECONDS)
        won = read_json(self._disk, NAME, "Start again.") or {}
        if won.get("token") != self._token:
            _refuse(self._disk, won)
        self._renewal.start()

    def give(self) -> None:
        self._ended.set()
        self._renewal.join()
        try:
            self._disk.delete([NAME])
        except RaysenseError as error:  # what was to be written is: no reason to call it failed
            logger.warning("the lease runs out by itself after %g s: %s", STALE_SECONDS, error)

    def _keep_renewing(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            with contextlib.suppress(RaysenseError):  # the lease outlives several failed renewals
                self._renew()

    def _renew(self) -> None:
        self._disk.write(NAME, json.dumps(_holder(self._token)).encode())


def _holder(token: str) -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "token": token, "renewed": time.time()}


def _held(content: bytes) -> dict[str, Any]:
    """Who wrote a lock's file; empty while the holder has not written it yet."""
    with contextlib.suppress(ValueError, RecursionError):
        held = json.loads(content)
        if isinstance(held, dict):
            return held
    return {}


def _alive(held: dict[str, Any]) -> bool:
    """Whether the lease's holder still renews it, or at least still runs; not if the lease is damaged."""
    renewed, process = held.get("renewed"), held.get("pid")
    if not isinstance(renewed, int | float) or not isinstance(process, int) or process < 1:
        return False
    if time.time() - renewed > STALE_SECONDS:
        return False
    if held.get("host") != socket.gethostname():
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _refuse(disk: Disk, held: dict[str, Any]) -> NoReturn:
    who = f"process {held.get('pid', '?')} on {held.get('host', '?')}"
    raise RaysenseError(
        f"store `{disk.shown}`: {who} is running this study. "
        "Wait for it or stop it (Ctrl-C once), then start again."
    )
