"""Where the CPU seconds of a run go: this process and its descendants, by what they are."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict

import psutil

_KINDS = (
    ("EvaluatorActor", "evaluators"),
    ("ResourceTrainable", "trials"),
    ("EvaluationTrial", "trials"),
    ("EvaluatorPool", "evaluator pool"),
    ("gcs_server", "gcs"),
    ("raylet", "raylets"),
    ("dashboard", "dashboard and agents"),
    ("DashboardAgent", "dashboard and agents"),
    ("RuntimeEnvAgent", "dashboard and agents"),
    ("runtime_env", "dashboard and agents"),
    ("log_monitor", "log monitors"),
    ("monitor.py", "autoscaler's monitor"),
    ("ray::", "other workers"),
    ("default_worker", "other workers"),
)


def part(command: str) -> str:
    """What a process is, by its command line."""
    # Ray's daemons carry each other's names in their arguments: the program itself decides first.
    words = command.split()
    program = " ".join(words[:1] if "python" not in command else [w for w in words if not w.startswith("--")])
    return next((kind for sign, kind in _KINDS if sign in program), "others")


class CpuSeconds(threading.Thread):
    """Samples the CPU seconds of this process and its descendants; a context manager.

    A process that lives for less than the period is missed; what it used is not in `by_part`.
    """

    def __init__(self, period: float = 0.5) -> None:
        super().__init__(daemon=True)
        self._period = period
        self._over = threading.Event()
        self._used: dict[tuple[int, float], tuple[str, float]] = {}
        self._first: dict[tuple[int, float], float] = {}

    def __enter__(self) -> CpuSeconds:
        self._sample()
        # What this process used before does not count; descendants that are there already do not either.
        self._first = {who: seconds for who, (_, seconds) in self._used.items()}
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(self._period):
            self._sample()
        self._sample()

    @property
    def by_part(self) -> dict[str, float]:
        """CPU seconds, user and system, the largest part first."""
        sums: dict[str, float] = defaultdict(float)
        for who, (kind, seconds) in self._used.items():
            sums[kind] += seconds - self._first.get(who, 0.0)
        return {kind: round(s, 2) for kind, s in sorted(sums.items(), key=lambda item: -item[1])}

    def _sample(self) -> None:
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                kind = "driver" if process == me else part(" ".join(process.cmdline()))
                times = process.cpu_times()
                self._used[process.pid, process.create_time()] = (kind, times.user + times.system)
