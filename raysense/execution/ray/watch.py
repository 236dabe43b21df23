"""Whether the Ray that a run needs is still there.

Without its head, Ray's client waits for a minute inside whatever call it is in, then ends the process with status 1
and in words of its own. A watch knows sooner and says what that means.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from types import TracebackType
from typing import Any

from raysense.errors import RaysenseError
from raysense.execution.interrupt import leave_soon

NEEDED = ("gcs_server", "raylet")
"""Ray's own processes that a run cannot do without, as Ray's logs call them."""

LOOK_SECONDS = 0.5
LEAVE_SECONDS = 10.0
"""Within which a run ends in order, or else the process leaves: most calls of Ray fail at once, some wait."""

ASK_SECONDS = 5.0
"""Between two questions to a cluster's head, and how long it may take to answer."""


class RayWatch:
    """While entered, a thread looks after Ray's own processes.

    Those of a Ray that this process has started are seen to end. A cluster's head is asked, by the connection that
    Ray's own client has; it is lost shortly before that client would give it up.
    """

    def __init__(self) -> None:
        from ray._private import worker

        node: Any = worker._global_node
        started: dict[str, Any] = getattr(node, "all_processes", {})
        self._own: dict[str, subprocess.Popen[bytes]] = {
            name: started[name][0].process for name in NEEDED if name in started
        }
        self._logs = node.get_logs_dir_path() if self._own else ""
        self._head: Any = getattr(worker.global_worker, "gcs_client", None)
        self._patience = _ray_waits() - LEAVE_SECONDS
        self._answered = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watches Ray")

    def __enter__(self) -> RayWatch:
        if self._own or self._head is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(ASK_SECONDS)  # Ray's client must not go while it is asking

    def refuse_if_lost(self) -> None:
        """Stop a run that has lost its Ray; asks nobody.

        Raises:
            RaysenseError: Which process is lost, and what to do.
        """
        if lost := self._lost():
            raise RaysenseError(lost)

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS if self._own else ASK_SECONDS):
            if not self._own:
                self._ask()
            if lost := self._lost():
                leave_soon(LEAVE_SECONDS, lost)
                return

    def _ask(self) -> None:
        from ray.exceptions import RpcError

        try:
            self._head.internal_kv_get(b"raysense", None, timeout=ASK_SECONDS)
        except RpcError:
            return
        self._answered = time.monotonic()

    def _lost(self) -> str:
        """What is lost, or an empty text."""
        for name, process in self._own.items():
            if (status := process.poll()) is not None:
                return (
                    f"{name}, a process of the Ray on this machine, {_ended(status)}: nothing can be measured without "
                    f"it. Nothing stored is lost: go on with --resume; if it recurs, free memory, or see {self._logs}"
                )
        silent = time.monotonic() - self._answered
        if self._own or self._head is None or silent < self._patience:
            return ""
        return (
            f"the head of the Ray cluster has not answered for {silent:.0f} s: nothing can be measured without it. "
            "Nothing stored is lost: once the cluster is up again, go on with --resume"
        )


def _ended(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _ray_waits() -> float:
    """Seconds for which Ray's client waits for a head."""
    return float(os.environ.get("RAY_gcs_rpc_server_reconnect_timeout_s", "60"))  # noqa: SIM112  # Ray's name
