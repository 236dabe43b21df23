"""The page of a study or a sweep that is still running, written anew every so often beside the run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from raysense.errors import RaysenseError

logger = logging.getLogger(__name__)

EVERY_SECONDS = 60.0


class PageWhileRunning:
    """A context manager: while it is open, a thread writes the study's page, at once and then every so often.

    What goes wrong here is logged and does not stop the study.

    Args:
        write: Writes the page; should paint no pictures.
        every: Seconds from one page to the next.
    """

    def __init__(self, write: Callable[[], object], every: float = EVERY_SECONDS) -> None:
        self._page, self._every = write, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write, name="raysense-page", daemon=True)

    def __enter__(self) -> PageWhileRunning:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        # Whoever stops does not wait for a page; whoever goes on must not have a late one written over the next.
        self._thread.join(None if error is None else 1.0)

    def _write(self) -> None:
        while True:
            try:
                self._page()
            except RaysenseError as error:
                logger.warning("the page of the running study is put off: %s", error)
            except Exception:
                logger.exception("the page of the running study could not be written; the study goes on")
            if self._over.wait(self._every):
                return
