"""Compacts the store beside a run."""

from __future__ import annotations

import logging
import threading

from raysense.errors import RaysenseError
from raysense.store.store import Store

COMPACT_EVERY = 1000

log = logging.getLogger("raysense")


class Compactor:
    """Compacts the store beside the run, every so many evaluations."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pending = 0
        self._thread: threading.Thread | None = None

    def stored(self) -> None:
        """One more evaluation is stored."""
        self._pending += 1
        if self._pending >= COMPACT_EVERY and (self._thread is None or not self._thread.is_alive()):
            self._pending = 0
            self._thread = threading.Thread(target=self._compact, name="raysense-compact")
            self._thread.start()

    def stop(self) -> None:
        """Waits for a compaction under way."""
        if self._thread is not None:
            self._thread.join()

    def _compact(self) -> None:
        try:
            self._store.compact()
        except RaysenseError as error:  # what is stored stays readable; the last compaction reports it
            log.warning("compaction put off: %s", error)
