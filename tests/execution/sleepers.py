"""Evaluators that sleep instead of measuring; they import no torch."""

from __future__ import annotations

import os
import time
from pathlib import Path

from raysense.records import Evaluation, EvaluationRequest, Measure


class Sleeper:
    """Sleeps, and answers with a value that is a function of the request alone."""

    def __init__(
        self,
        seconds: float = 0.0,
        load_seconds: float = 0.0,
        log: str | None = None,
        fail_on: str | None = None,
        die_on: str | None = None,
        slow: float = 1.0,
        poison_on: str | None = None,
        hang_on: str | None = None,
        once: str | None = None,
    ) -> None:
        self.poison_on, self.hang_on, self.once, self.poisoned = poison_on, hang_on, once, False
        time.sleep(load_seconds)
        self.seconds, self.fail_on, self.die_on, self.log = seconds, fail_on, die_on, log
        if log:
            with Path(log).open("a") as file:
                file.write(f"load {os.getpid()} {time.time()}\n")

    def _first(self) -> bool:
        """Whether this is the first time that any evaluator asks."""
        assert self.once is not None
        try:
            Path(self.once).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        started = time.time()
        name = ",".join(f"{layer}={level}" for layer, level in request.allocation.items())
        if self.fail_on is not None and self.fail_on in name:
            raise ValueError(f"cannot measure {name}")
        if self.die_on is not None and self.die_on in name:
            os._exit(7)
        if self.poisoned or (self.poison_on and self.poison_on in name and self._first()):
            self.poisoned = True  # as a CUDA context after an illegal access: whatever comes next fails too
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self.hang_on and self.hang_on in name and self._first():
            time.sleep(1000)
        if self.log and self.seconds > 1:  # tests that wait for an evaluation under way
            with Path(self.log).open("a") as file:
                file.write(f"busy {os.getpid()} {started}\n")
        time.sleep(self.seconds)
        value = int(request.key("value"), 16) % 1000 / 1000 + sum(request.allocation.values())
        ended = time.time()
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"eval {os.getpid()} {started} {ended}\n")
        return Evaluation(
            measures={"clip_drop": Measure(value, value - 0.1, value + 0.1, 16, "none")},
            zeros=sum(request.allocation.values()),
            images=16,
            nfe=32,
            seconds=ended - started,
            notes=f"{started} {ended}",
            samples=[{"prompt_id": "0", "prompt": "a cat", "seed": 1, "clip": value}],
        )  # fmt: skip


def sleeper(**arguments: object) -> Sleeper:
    return Sleeper(**arguments)  # type: ignore[arg-type]
