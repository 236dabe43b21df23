"""Every start of a study: when, how long, on what. What a study took is the sum over them."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from raysense.errors import RaysenseError
from raysense.execution.progress import Clock, Snapshot
from raysense.store.checksummed_json import seal
from raysense.store.disk import Disk, read_sealed

NAME = "starts.json"
EVERY_SECONDS = 20.0


class Starts:
    """A context manager: while it is open, this start's time is kept in the study's folder.

    Args:
        disk: The study's folder.
        address: The cluster's address; None for this machine.
        versions: Of the software.
    """

    def __init__(self, disk: Disk, address: str | None, versions: Mapping[str, str]) -> None:
        self._disk = disk
        self._earlier = stored_starts(disk)
        self._began = time.monotonic()
        self._clock = Clock(EVERY_SECONDS)
        self._own: dict[str, Any] = {
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "evaluators": 0,
            "cluster": address or "this machine",
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "versions": dict(versions),
            "finished": False,
        }

    def __enter__(self) -> Starts:
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(RaysenseError):  # the error on its way out says more
            self._write()

    @property
    def seconds(self) -> float:
        """Wall time of all starts so far."""
        earlier = sum(float(start["seconds"]) for start in self._earlier)
        return earlier + time.monotonic() - self._began

    def see(self, snapshot: Snapshot) -> None:
        """How things stand; kept every so often, for a start that is killed."""
        self._own["evaluators"] = max(self._own["evaluators"], snapshot.evaluators)
        if self._clock.due():
            self._write()

    def finish(self) -> list[dict[str, Any]]:
        """The study has its answer; gives all starts."""
        self._own["finished"] = True
        self._write()
        return [*self._earlier, self._own]

    def _write(self) -> None:
        self._own["seconds"] = round(time.monotonic() - self._began, 1)
        self._disk.write(NAME, seal({"starts": [*self._earlier, self._own]}, indent=1))


def stored_starts(disk: Disk) -> list[dict[str, Any]]:
    """The starts that a folder knows of, oldest first.

    Raises:
        RaysenseError: The file is damaged.
    """
    found = read_sealed(
        disk, NAME, "Delete it; the study then no longer knows how long its earlier starts took."
    )
    return [] if found is None else list(found["starts"])
