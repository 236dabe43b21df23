"""One driver per store, whatever the store, and however the last one ended."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NoReturn, Protocol

from filelock import FileLock, Timeout

from raysense.errors import RaysenseError
from raysense.store.bucket import ABSENT, Moved, Version
from raysense.store.disk import Disk

logger = logging.getLogger(__name__)

NAME = "driver.lock"
HOLDER = "driver.json"
"""Who holds the lock of a local disk, for messages; a lease says so itself."""

RENEW_SECONDS = 20.0
STALE_SECONDS = 90.0
LOOK_SECONDS = 2.0

Fence = Callable[[Callable[[], str]], None]
"""Makes sure that no earlier holder's switch of the manifest can succeed from now on; is given the new `renew`."""


class LockLost(RaysenseError):
    """Another driver has taken the store over: nothing more may be written here."""


class Clock(Protocol):
    """The observer's own time. Nothing compares it with another machine's."""

    def monotonic(self) -> float:
        """Seconds since whenever."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let them pass."""
        ...


class Holders:
    """The locks that one process holds, by store: all locks that it makes for one store are one lock.

    Args:
        clock: Of the process.
        renews: Whether a thread renews leases; else whoever made this calls `Lease.renew`.
        alone: Makes what keeps a lease's two writers, its thread and its holder, apart.
    """

    def __init__(
        self,
        clock: Clock = time,
        renews: bool = True,
        alone: Callable[[], contextlib.AbstractContextManager[Any]] = threading.Lock,
    ) -> None:
        self.clock, self.renews, self.alone = clock, renews, alone
        self.mutex = threading.RLock()
        self.depths: dict[str, int] = {}
        self.locks: dict[str, _FileLock | Lease] = {}


PROCESS = Holders()


class DriverLock:
    """Held by the driver of a study while it writes what only a driver may write; a context manager.

    Whoever holds it may enter it again; it is given back when the outermost `with` ends.

    On a local disk it is the kernel's file lock: it ends with the process, whatever ended it, so a lock
    left by a crash is no lock. In a bucket it is a `Lease`.

    Args:
        disk: The store's disk.
        fence: Called when a lease is taken over from a holder that did not give it back.
        holders: The locks of this process.
    """

    def __init__(self, disk: Disk, fence: Fence = lambda renew: None, holders: Holders = PROCESS) -> None:
        self._disk, self._fence, self._holders = disk, fence, holders
        self._name = disk.path(NAME)

    def __enter__(self) -> DriverLock:
        """Takes the lock.

        Raises:
            RaysenseError: Another driver holds it; says which host and process.
        """
        holders = self._holders
        with holders.mutex:
            if not holders.depths.get(self._name):
                lock = _FileLock(self._disk) if self._disk.local else Lease(self._disk, self._fence, holders)
                lock.take()
                holders.locks[self._name] = lock
            holders.depths[self._name] = holders.depths.get(self._name, 0) + 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        holders = self._holders
        with holders.mutex:
            holders.depths[self._name] -= 1
            if holders.depths[self._name]:
                return
            del holders.depths[self._name]
            lock = holders.locks.pop(self._name)
        lock.give()

    def renew(self) -> str:
        """Asks the storage whether the lock is still this process's; gives the holder's token.

        Raises:
            LockLost: It is not.
        """
        return self._lock().renew()

    def refuse_if_lost(self) -> None:
        """Stop a driver that is known to have lost its lock; asks nobody.

        Raises:
            LockLost: See above.
        """
        lock = self._lock()
        if lock.lost:
            raise _lost(self._disk)

    def _lock(self) -> _FileLock | Lease:
        lock = self._holders.locks.get(self._name)
        assert lock is not None  # asked by who holds it
        return lock


class _FileLock:
    """The kernel's lock on a local file, which is never reached by a link."""

    lost = False

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._token = uuid.uuid4().hex
        # No softer lock in its place: one that outlives its holder, or that two can hold, is none.
        self._lock = FileLock(disk.path(NAME), blocking=False, thread_local=False, fallback_to_soft=False)
        self._inode: tuple[int, int] | None = None

    def take(self) -> None:
        path = self._disk.path(NAME)
        with self._explained(
            "cannot be written", "Choose a folder that you may write to, on a disk with room."
        ):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666))
        with self._explained(
            "the file system below it has no locks",
            "Without one, two drivers could write at once: choose a folder on a local disk, a network file system "
            "mounted with locks, or an s3:// address.",
        ):
            try:
                self._lock.acquire()
            except Timeout:
                _refuse(self._disk, _held(self._disk.read(HOLDER)))
        try:
            self._inode = _inode(path)
            self._disk.write(HOLDER, json.dumps(_holder(self._token)).encode())
        except BaseException:
            self._lock.release()
            raise

    @contextlib.contextmanager
    def _explained(self, what: str, remedy: str) -> Iterator[None]:
        try:
            yield
        except (OSError, NotImplementedError) as error:
            raise RaysenseError(f"store `{self._disk.uri}`: {what} ({error}). {remedy}") from error

    def renew(self) -> str:
        if (
            _inode(self._disk.path(NAME)) != self._inode
        ):  # deleted: another driver's lock may be a new file there
            self.lost = True
            raise _lost(self._disk)
        return self._token

    def give(self) -> None:
        try:
            with contextlib.suppress(
                RaysenseError
            ):  # what stands there does no harm: the lock ends by itself
                if _held(self._disk.read(HOLDER)).get("token") == self._token:
                    self._disk.delete([HOLDER])
        finally:
            self._lock.release()


class Lease:
    """An object that its holder renews every 20 s, each time on condition that nobody else has written it.

    A lease is taken over when whoever wants it has seen it unchanged for 90 s of its own time: no two
    machines' clocks are compared, nor host names, nor processes. After that the former holder's manifest is fenced
    off, so that nothing it still has on the way can count. A lease that is given back says so, and is free at once.

    Attributes:
        lost: Another driver has it, or it is gone.
    """

    def __init__(self, disk: Disk, fence: Fence, holders: Holders) -> None:
        self._disk, self._fence, self._holders = disk, fence, holders
        self._token = uuid.uuid4().hex
        self._version: Version = ABSENT
        self._renewals = 0
        self._mutex = holders.alone()
        self._ended = threading.Event()
        self._renewal = threading.Thread(target=self._keep_renewing, name="raysense-lease", daemon=True)
        self.lost = False

    def take(self) -> None:
        """Waits until it is free, given back or stale; refuses if somebody renews it."""
        clock = self._holders.clock
        first: Version | None = None
        since = clock.monotonic()
        while True:
            content, version = self._disk.read_version(NAME)
            held = _held(content)
            free = bool(held.get("free"))
            if content is None or free or (version == first and clock.monotonic() - since >= STALE_SECONDS):
                if not self._claim(version):
                    _refuse(self._disk, _held(self._disk.read(NAME)))  # somebody was faster
                break
            if first is None:
                first, since = version, clock.monotonic()
                logger.warning(
                    "store %s: waiting up to %.0f s to see whether %s still runs this study",
                    self._disk.uri,
                    STALE_SECONDS,
                    _named(held),
                )
            elif version != first:
                _refuse(self._disk, held)
            clock.sleep(LOOK_SECONDS)
        try:
            if not free:
                self._fence(self.renew)
        except BaseException:
            self.give()
            raise
        if self._holders.renews:
            self._renewal.start()

    def renew(self) -> str:
        """Writes the lease anew if it is still this holder's; gives the token.

        Raises:
            LockLost: It is another's.
            RaysenseError: The storage is out of reach.
        """
        with self._mutex:
            if self.lost or not self._claim(self._version):
                self.lost = True
                raise _lost(self._disk)
        return self._token

    def give(self) -> None:
        """Says that it is free, unless it is another's by now."""
        self._ended.set()
        if self._renewal.ident is not None:
            self._renewal.join()
        with self._mutex:
            try:
                if not self.lost:
                    free = {**_holder(self._token), "renewals": self._renewals + 1, "free": True}
                    self._disk.write_if(NAME, json.dumps(free).encode(), self._version)
            except Moved:
                pass  # another driver has it
            except RaysenseError as error:  # what was to be written is: no reason to call it failed
                logger.warning("the lease runs out by itself after %g s: %s", STALE_SECONDS, error)

    def _keep_renewing(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                self.renew()
            except LockLost as error:
                logger.error("%s", error)
                return
            except RaysenseError as error:  # the lease outlives several failed renewals
                logger.warning("the lease could not be renewed: %s", error)

    def _claim(self, version: Version) -> bool:
        """Whether the lease is now this holder's; no two writes of it are alike."""
        self._renewals += 1
        content = json.dumps({**_holder(self._token), "renewals": self._renewals}).encode()
        try:
            self._version = self._disk.write_if(NAME, content, version)
        except Moved:
            return False
        return True


def _inode(path: str) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        found = os.stat(path, follow_symlinks=False)
        return found.st_dev, found.st_ino
    return None


def _holder(token: str) -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "token": token}


def _held(content: bytes | None) -> dict[str, Any]:
    """Who wrote a lock; empty while the holder has not written it yet, or if it is damaged."""
    with contextlib.suppress(ValueError, RecursionError):
        held = json.loads(content or b"")
        if isinstance(held, dict):
            return held
    return {}


def _named(held: dict[str, Any]) -> str:
    return f"process {held.get('pid', '?')} on {held.get('host', '?')}"


def _refuse(disk: Disk, held: dict[str, Any]) -> NoReturn:
    raise RaysenseError(
        f"store `{disk.uri}`: {_named(held)} is running this study. "
        "Wait for it or stop it (Ctrl-C once), then start again."
    )


def _lost(disk: Disk) -> LockLost:
    return LockLost(
        f"store `{disk.uri}`: another driver has taken this study over (this one was suspended or cut off for more "
        f"than {STALE_SECONDS:.0f} s, or `{NAME}` was deleted). It stops here; nothing is lost."
    )
