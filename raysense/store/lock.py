"""One driver per store, however the last one ended."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from types import TracebackType
from typing import IO, Any, NoReturn

from raysense.errors import RaysenseError
from raysense.store.disk import Disk, read_json

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
        self._file: IO[str] | None = None

    def take(self) -> None:
        import fcntl

        path = self._disk.path(NAME)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  # held open: it is the lock
        except OSError as error:
            raise RaysenseError(
                f"store `{self._disk.shown}`: cannot be written ({error}). Choose a folder you may write to."
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            content = file.read()
            file.close()
            held: dict[str, Any] = {}
            with contextlib.suppress(ValueError):  # the holder has not written it yet
                held = json.loads(content)
            _refuse(self._disk, held)
        file.truncate(0)
        file.write(json.dumps(_holder("")))
        file.flush()
        self._file = file

    def give(self) -> None:
        assert self._file is not None  # given back by who took it
        self._file.truncate(0)
        self._file.close()


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
        self._disk.delete([NAME])

    def _keep_renewing(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            with contextlib.suppress(RaysenseError):  # the lease outlives several failed renewals
                self._renew()

    def _renew(self) -> None:
        self._disk.write(NAME, json.dumps(_holder(self._token)).encode())


def _holder(token: str) -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "token": token, "renewed": time.time()}


def _alive(held: dict[str, Any]) -> bool:
    """Whether the lease's holder still renews it, or at least still runs."""
    if time.time() - float(held.get("renewed", 0)) > STALE_SECONDS:
        return False
    if held.get("host") != socket.gethostname():
        return True
    try:
        os.kill(int(held.get("pid", 0)), 0)
    except ProcessLookupError:
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
