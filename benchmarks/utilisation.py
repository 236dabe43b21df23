"""How busy resident evaluators are kept, on simulated nodes with fake GPUs.

    python -m benchmarks.utilisation            # 8, 16 and 32 GPUs, about 30 minutes on 2 cores
    python -m benchmarks.utilisation --quick    # 2 GPUs, a minute or two

Evaluators sleep instead of measuring, so that only raysense and Ray are on the machine's cores; the whole path is the
real one. An evaluator writes when it began to load, was loaded, began and ended an evaluation; the busy share
is computed from these lines alone: measuring time divided by loaded time, over all loaded evaluators. It is taken over
windows: with disturbances from all loaded to the first, from 20 s after each to the next, the last one until the queue
empties; without, from 20 s after all are loaded until then. The queue is empty once the last trial is begun: what is
left then are the steps of trials under way, one after the other. `busy_share_whole` is taken from all loaded until
the queue empties, disturbances included. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.parts import CpuSeconds
from raysense.allocation import Allocation
from raysense.records import Evaluation, EvaluationRequest, TrialSpec
from raysense.strategies.base import Strategy

BAR = 0.95
SETTLE = 20.0
GPUS_PER_NODE = 2


class Sleeper:
    """An evaluator that sleeps, and says when."""

    def __init__(self, log: str, load: float, seconds: float, batch: int) -> None:
        import ray

        self._log, self._seconds, self._batch = log, seconds, batch
        self._who = f"{os.getpid()} {ray.get_runtime_context().get_node_id()}"
        self._say("starts")
        time.sleep(load)
        self._say("loaded")

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        """Sleeps."""
        is_first = request.allocation["unet:layer"] % self._batch == 1 % self._batch
        self._say("opens" if is_first else "begins")
        time.sleep(self._seconds)
        self._say("ends")
        return Evaluation(measures={}, zeros=0, images=1, nfe=1, seconds=self._seconds)

    def _say(self, what: str) -> None:
        with open(self._log, "a") as file:  # one short append: lines of several processes do not mix
            file.write(f"{what} {self._who} {time.time()}\n")


class Curves:
    """`evaluations` single requests, asked in trials of `batch`."""

    headline = ""

    def __init__(self, evaluations: int, batch: int) -> None:
        self.wanted = evaluations
        self._batch = batch
        self._asked = 0

    @property
    def done(self) -> bool:
        """Everything is asked."""
        return self._asked >= self.wanted

    def ask(self) -> TrialSpec | None:
        """The next curve."""
        if self.done:
            return None
        levels = range(self._asked, min(self._asked + self._batch, self.wanted))
        self._asked = levels.stop
        requests = tuple(
            EvaluationRequest(Allocation({"unet:layer": level + 1}), "probe") for level in levels
        )
        return TrialSpec(f"sensitivity/{levels.start}", "sensitivity", requests)

    def tell(self, spec: TrialSpec, evaluations: Sequence[Evaluation]) -> None:
        """Nothing depends on the answers."""


@dataclass
class Life:
    """One evaluator's times, seconds since 1970."""

    node: str = ""
    loads: int = 0
    loaded: float = float("inf")
    died: float = float("inf")
    opened: float = 0.0  # began the first evaluation of a trial, the last time
    spans: list[tuple[float, float]] = field(default_factory=list)


def lives(log: Path) -> dict[str, Life]:
    """What the evaluators wrote, by process."""
    found: dict[str, Life] = {}
    for line in log.read_text().splitlines():
        what, pid, node, moment = line.split()
        life = found.setdefault(pid, Life(node=node))
        if what == "loaded":
            life.loads += 1
            life.loaded = float(moment)
        elif what in ("opens", "begins"):
            life.opened = float(moment) if what == "opens" else life.opened
            life.spans.append((float(moment), float("inf")))
        elif what == "ends":
            life.spans[-1] = (life.spans[-1][0], float(moment))
    return found


def busy_share(found: dict[str, Life], start: float, end: float) -> float:
    """Measuring time divided by loaded time between two moments."""

    def overlap(a: float, b: float) -> float:
        return max(0.0, min(b, end) - max(a, start))

    loaded = sum(overlap(life.loaded, life.died) for life in found.values())
    busy = sum(overlap(a, min(b, life.died)) for life in found.values() for a, b in life.spans)
    return busy / loaded if loaded else 0.0


@dataclass
class Case:
    """One simulated cluster and its work."""

    gpus: int
    evaluations: int
    seconds: float
    load: float
    batch: int
    events: bool = False
    gap: float = 60.0


def measure(case: Case) -> dict[str, Any]:
    """Runs one case; its figures."""
    import psutil
    import ray
    from ray.cluster_utils import Cluster

    from raysense.execution.executor import EvaluatorSpec
    from raysense.execution.progress_view import LiveView
    from raysense.execution.ray.driver import RayExecutor
    from raysense.store import Store

    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # the name that Ray reads
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        log.touch()
        quiet = {"include_dashboard": False}
        # Without Ray's own hooks for the end of the process: they are only for a main thread, and a node joins from
        # another one.
        cluster: Any = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "num_gpus": 0, **quiet},
            shutdown_at_exit=False,
        )
        try:
            nodes = [
                cluster.add_node(num_cpus=GPUS_PER_NODE, num_gpus=GPUS_PER_NODE)
                for _ in range(case.gpus // GPUS_PER_NODE)
            ]
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            events: list[tuple[str, float]] = []
            disturber = _Disturber(case, log, cluster, nodes, events)
            if case.events:
                disturber.start()
            started = time.time()
            psutil.cpu_percent(None)
            strategy: Strategy = Curves(case.evaluations, case.batch)
            spec = EvaluatorSpec(
                "benchmarks.utilisation:Sleeper",
                {"log": str(log), "load": case.load, "seconds": case.seconds, "batch": case.batch},
            )
            with LiveView(plain_seconds=30) as view, CpuSeconds() as cpu:
                RayExecutor(spec, cpus=0, gpus=1).run(
                    strategy, Store.open(f"{folder}/store", create=True), signature="utilisation",
                    lookahead=8 * case.gpus, on_progress=view,
                )  # fmt: skip
            machine = psutil.cpu_percent(None) / 100
            rows = Store.open(f"{folder}/store", create=True).evaluations()
            disturber.finish()
        finally:
            ray.shutdown()
            cluster.shutdown()
        found = figures(case, lives(log), events, started) | {
            "stored_once": len(rows) == len({row.key for row in rows}) == case.evaluations,
            "driver_ms_per_evaluation": round(1000 * cpu.by_part["driver"] / case.evaluations, 1),
            "machine_cpu_share": round(machine, 2),
            "cpu_seconds": cpu.by_part,
        }
        return found | {"bottleneck": bottleneck(found)}


def bottleneck(found: dict[str, Any]) -> str:
    """What keeps evaluators from being busier, by the figures."""
    shares = found["busy_shares"]
    if shares and min(shares) >= BAR:
        return f"none that matters: loaded evaluators are busy {min(shares):.1%} of the time"
    parts: dict[str, float] = found["cpu_seconds"]
    largest = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in list(parts.items())[:3])
    if found["machine_cpu_share"] > 0.9:
        return f"the CPU of this machine, which all simulated nodes and the driver share ({largest})"
    return (
        f"the turnaround from an evaluation's end to the next one's beginning, {found['median_pause_s']} s in the "
        f"median, by way of trial, Tune's loop and the evaluator pool; CPU: {largest}"
    )


class _Disturber(threading.Thread):
    """Kills an evaluator, removes a node, adds one, `gap` seconds apart, counted from all loaded."""

    def __init__(
        self, case: Case, log: Path, cluster: Any, nodes: list[Any], events: list[tuple[str, float]]
    ) -> None:
        super().__init__(daemon=True)
        self._case, self._log, self._cluster, self._nodes, self._events = case, log, cluster, nodes, events
        self._over = threading.Event()

    def run(self) -> None:
        while sum(life.loads for life in lives(self._log).values()) < self._case.gpus:
            if self._over.wait(0.5):
                return
        for event in (self._kill, self._remove, self._add):
            if self._over.wait(self._case.gap):
                return
            self._events.append((event.__name__.strip("_"), time.time()))
            event()

    def finish(self) -> None:
        """Ends the thread."""
        self._over.set()
        if self.is_alive():
            self.join()

    def _kill(self) -> None:
        pid = next(iter(lives(self._log)))
        os.kill(int(pid), signal.SIGKILL)
        self._events[-1] = (f"kill {pid}", self._events[-1][1])

    def _remove(self) -> None:
        node = self._nodes[-1]
        self._events[-1] = (f"remove {node.node_id}", self._events[-1][1])
        self._cluster.remove_node(node)

    def _add(self) -> None:
        self._cluster.add_node(num_cpus=GPUS_PER_NODE, num_gpus=GPUS_PER_NODE)


def figures(
    case: Case, found: dict[str, Life], events: list[tuple[str, float]], started: float
) -> dict[str, Any]:
    """The busy shares of a case, window by window."""
    for what, moment in events:
        kind, _, target = what.partition(" ")
        for pid, life in found.items():
            if (kind == "kill" and pid == target) or (kind == "remove" and life.node == target):
                life.died = min(life.died, moment)
    all_loaded = sorted(life.loaded for life in found.values())[case.gpus - 1]
    empty = max(life.opened for life in found.values())
    starts = [all_loaded, *(moment for _, moment in events)]
    ends = [*starts[1:], empty]
    windows = [
        # From all loaded the first window begins at once if nodes are disturbed later, else 20 s on.
        (start + (0.0 if case.events and number == 0 else SETTLE), end)
        for number, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]
    shares = [round(busy_share(found, start, end), 4) for start, end in windows if end > start]
    happened = [what.split()[0] for what, _ in events]
    lives_wanted = case.gpus + sum({"kill": 1, "add": GPUS_PER_NODE}.get(event, 0) for event in happened)
    return {
        "gpus": case.gpus,
        "evaluations": case.evaluations,
        "evaluation_seconds": case.seconds,
        "trials_of": case.batch,
        "all_loaded_after_s": round(all_loaded - started, 1),
        "events": happened,
        "busy_shares": shares,
        "busy_share_lowest": min(shares, default=None),
        "busy_share_whole": round(busy_share(found, all_loaded, empty), 4),
        "loaded_once_per_life": all(life.loads <= 1 for life in found.values()),
        "lives": len(found),
        "lives_wanted": lives_wanted,
        "median_pause_s": round(
            statistics.median(
                [
                    b[0] - a[1]
                    for life in found.values()
                    for a, b in zip(life.spans, life.spans[1:], strict=False)
                ]
                or [0.0]
            ),
            4,
        ),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases and prints the result as JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one small case")
    quick = parser.parse_args(arguments).quick
    if quick:
        barred, reported = [Case(2, 60, 1.0, 2.0, 4)], list[Case]()
        print("quick: one small case, whose figures say only that everything runs")
    else:
        barred = [Case(8, 900, 2.0, 10.0, 4, events=True), Case(16, 960, 8.0, 10.0, 4)]
        reported = [Case(32, 960, 8.0, 10.0, 4)]
    results = [measure(case) for case in (*barred, *reported)]
    holds = all(
        result["stored_once"]
        and result["loaded_once_per_life"]
        and result["lives"] == result["lives_wanted"]
        and (number >= len(barred) or (result["busy_share_lowest"] or 0.0) >= BAR)
        for number, result in enumerate(results)
    )
    for result in results:
        print(json.dumps(result))
    print(
        json.dumps(
            {"benchmark": "utilisation", "figures": results, "bar": {"busy_share": BAR}, "holds": holds}
        )
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
