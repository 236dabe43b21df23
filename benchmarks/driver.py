"""What the driver costs per evaluation, from the first to the ten-thousandth.

    python -m benchmarks.driver            # 10,000 trivial evaluations
    python -m benchmarks.driver --quick    # 400

Evaluators answer at once, so that everything measured is the path itself: strategy, Tune, trial, evaluator pool, store.
The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.parts import CpuSeconds
from benchmarks.utilisation import Curves
from raysense.records import Evaluation, EvaluationRequest, Measure, TrialSpec

BAR_MS, BAR_RATIO, BAR_READ_S, BAR_MEMORY = 25.0, 1.5, 2.0, 1.10
BATCH = 8


class Instant:
    """An evaluator that answers at once."""

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        """A plausible row."""
        level = float(request.allocation["unet:layer"])
        measures = {
            name: Measure(level, level, level, 16, "none") for name in ("clip_drop", "kid_rise", "probe")
        }
        return Evaluation(measures=measures, zeros=0, images=16, nfe=32, seconds=0.0)


class Timed(Curves):
    """Notes when answers arrive, and the driver's memory."""

    def __init__(self, evaluations: int) -> None:
        super().__init__(evaluations, BATCH)
        self.moments: list[float] = []
        self.memory: list[int] = []

    def tell(self, spec: TrialSpec, evaluations: Sequence[Evaluation]) -> None:
        """Notes."""
        import psutil

        self.moments += [time.monotonic()] * len(evaluations)
        self.memory.append(psutil.Process().memory_info().rss)


def pace(moments: Sequence[float]) -> float:
    """Median milliseconds per evaluation over windows of 100."""
    spans = [moments[n + 100] - moments[n] for n in range(0, len(moments) - 100, 10)]
    return 1000 * statistics.median(spans) / 100


def measure(evaluations: int) -> dict[str, Any]:
    """Runs the evaluations; the figures."""
    from raysense.execution.executor import EvaluatorSpec
    from raysense.execution.progress_view import LiveView
    from raysense.execution.ray.driver import RayExecutor
    from raysense.store import Store

    strategy, edge = Timed(evaluations), min(1000, evaluations // 2)
    with tempfile.TemporaryDirectory() as folder, LiveView(plain_seconds=30) as view, CpuSeconds() as cpu:
        executor = RayExecutor(EvaluatorSpec("benchmarks.driver:Instant"), evaluators=2, cpus=0.5)
        store = Store.open(folder, create=True)
        executor.run(strategy, store, signature="driver", lookahead=32, on_progress=view)
        started = time.monotonic()
        rows = Store.open(folder, create=True).evaluations()
        read = time.monotonic() - started
    first, last = pace(strategy.moments[:edge]), pace(strategy.moments[-edge:])
    settled = strategy.memory[len(strategy.memory) // 5]
    return {
        "evaluations": len({row.key for row in rows}),
        "trials_of": BATCH,
        "wall_ms_per_evaluation": round(pace(strategy.moments), 2),
        "driver_cpu_ms_per_evaluation": round(1000 * cpu.by_part["driver"] / evaluations, 2),
        "cpu_seconds": cpu.by_part,
        "first_ms": round(first, 2),
        "last_ms": round(last, 2),
        "last_to_first": round(last / first, 2),
        "read_back_s": round(read, 2),
        "driver_mib_at_a_fifth": round(settled / 2**20),
        "driver_mib_at_the_end": round(strategy.memory[-1] / 2**20),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs and prints the result as JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="400 evaluations")
    evaluations = 400 if parser.parse_args(arguments).quick else 10_000
    found = measure(evaluations)
    holds = (
        found["evaluations"] == evaluations
        and found["wall_ms_per_evaluation"] <= BAR_MS
        and found["last_to_first"] <= BAR_RATIO
        and found["read_back_s"] <= BAR_READ_S
        and found["driver_mib_at_the_end"] <= BAR_MEMORY * found["driver_mib_at_a_fifth"]
    )
    bar = {
        "wall_ms_per_evaluation": BAR_MS,
        "last_to_first": BAR_RATIO,
        "read_back_s": BAR_READ_S,
        "memory_end_to_a_fifth": BAR_MEMORY,
    }
    print(json.dumps({"benchmark": "driver", "figures": found, "bar": bar, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
