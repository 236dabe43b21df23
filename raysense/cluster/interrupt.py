"""Ctrl-C: once finishes what is in flight, twice stops now."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger("raysense")


class Interrupt:
    """While entered, the first SIGINT or SIGTERM sets `asked`; the second raises KeyboardInterrupt.

    Signals reach the main thread only; entered in another thread, it leaves them alone.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        log.warning(
            "stopping: finishing the evaluations in flight. Again to stop now; either way the same command "
            "resumes the study, and nothing stored is lost."
        )
