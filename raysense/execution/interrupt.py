"""Ctrl-C and the signals that mean the same: once finishes what is quick, twice stops now; the process always ends."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from raysense.errors import RaysenseError
from raysense.terminal import SHOW_CURSOR, complain

log = logging.getLogger("raysense")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, and what a machine or a terminal that goes away sends; soon after, it is gone."""

GRACE_SECONDS = 8.0
"""How long evaluations in flight may take after a signal: after SIGTERM comes SIGKILL, in half a minute or less."""

LEAVE_SECONDS = 15.0
"""How long after a signal the process leaves at the latest, whatever Ray waits for."""


class Interrupt:
    """While entered, the first SIGINT, SIGTERM or SIGHUP sets `asked`; the second raises KeyboardInterrupt.

    Signals reach the main thread only; entered in another thread, it leaves them alone.

    Attributes:
        asked: Somebody wants the run to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._deadline = float("inf")
        self._before: dict[int, Any] = {}

    @property
    def overdue(self) -> bool:
        """Whoever asked waits no longer for what is in flight."""
        return time.monotonic() > self._deadline

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return  # a batch system sends SIGTERM to every process, and then again: nobody is in a greater hurry
        self.asked = True
        self._deadline = time.monotonic() + GRACE_SECONDS
        leave_soon()
        with contextlib.suppress(OSError):  # the terminal may be what went away
            log.warning(
                "stopping: what is in flight is finished, on Ray for %.0f s at most; Ctrl-C again to stop now. Nothing "
                "stored is lost.",
                GRACE_SECONDS,
            )


_farewell: str | None = None
_leaving: threading.Timer | None = None


@contextlib.contextmanager
def stop_signals(farewell: str) -> Iterator[None]:
    """While entered, Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt, and the process ends soon after.

    What is stored is whole at any moment, so a process that Ray keeps waiting may be left as if it had been killed.

    Args:
        farewell: What is said if the process has to leave.
    """
    global _farewell, _leaving

    def stop(number: int, frame: FrameType | None) -> None:
        leave_soon()
        raise KeyboardInterrupt

    with handlers_kept():
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, stop)
        _farewell = farewell
        try:
            yield
        finally:
            _farewell = None
            if _leaving is not None:
                _leaving.cancel()
                _leaving = None


def leave_soon(seconds: float | None = None, error: str = "") -> None:
    """Where `stop_signals` is entered: the process ends after a while, however that may be.

    Args:
        seconds: The while; None for `LEAVE_SECONDS`.
        error: What has gone wrong; it then leaves with status 2.
    """
    global _leaving
    if _farewell is not None and _leaving is None:
        wait = LEAVE_SECONDS if seconds is None else seconds
        _leaving = threading.Timer(wait, _leave, (_farewell, error))
        _leaving.daemon = True
        _leaving.start()


def _leave(farewell: str, error: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be what went away
        if sys.stdout.isatty():
            print(SHOW_CURSOR, end="")  # which the live view hides
        if not error:
            print(farewell)
        sys.stdout.flush()
    if error:
        complain(error)
    os._exit(RaysenseError.status if error else 130)


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Puts the handlers of the signals back at the end, whoever changed them in between."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
