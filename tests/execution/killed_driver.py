"""A driver for the kill tests: connects to the Ray at argv[1], runs a chain into the store at argv[2]."""

from __future__ import annotations

import sys

from raysense.execution.executor import EvaluatorSpec
from raysense.execution.ray.driver import RayExecutor
from raysense.store import Store
from tests.execution.curves import Chain

LENGTH, WIDTH, LOOKAHEAD = 10, 4, 4


def main(address: str, uri: str, log: str, gpus: str = "0") -> None:
    executor = RayExecutor(
        EvaluatorSpec("tests.execution.sleepers:sleeper", {"seconds": 0.15, "log": log}),
        evaluators="auto" if float(gpus) else 2,
        gpus=float(gpus),
        address=address,
    )
    executor.run(Chain(LENGTH, WIDTH), Store.open(uri, create=True), signature="s", lookahead=LOOKAHEAD)


if __name__ == "__main__":
    main(*sys.argv[1:])
