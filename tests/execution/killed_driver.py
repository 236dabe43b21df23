"""A driver for the kill tests: connects to the Ray at argv[1], runs a chain into the store at argv[2]."""

from __future__ import annotations

import sys

from raysense.execution.evaluators import EvaluatorSpec
from raysense.execution.ray.driver import run_on_ray
from tests.execution.curves import Chain

LENGTH, WIDTH, LOOKAHEAD = 10, 4, 4


def main(address: str, uri: str, log: str, gpus: str = "0") -> None:
    run_on_ray(
        Chain(LENGTH, WIDTH),
        EvaluatorSpec("tests.execution.sleepers:sleeper", {"seconds": 0.15, "log": log}),
        uri,
        signature="s",
        lookahead=LOOKAHEAD,
        evaluators="auto" if float(gpus) else 2,
        gpus_per_evaluator=float(gpus),
        address=address,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
