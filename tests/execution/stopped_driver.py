"""A driver for the tests of signals: runs a chain of sleepers and says how it ended, as the command line does."""

from __future__ import annotations

import sys

from raysense.errors import RaysenseError
from raysense.execution import interrupt
from raysense.execution.evaluators import EvaluatorSpec
from raysense.execution.interrupt import stop_signals
from raysense.execution.ray.driver import run_on_ray
from tests.execution.curves import Chain


def main(address: str, uri: str, log: str, seconds: str) -> int:
    interrupt.GRACE_SECONDS, interrupt.LEAVE_SECONDS = 3.0, 8.0
    with stop_signals("left"):
        try:
            outcome = run_on_ray(
                Chain(50, 4),
                EvaluatorSpec("tests.execution.sleepers:sleeper", {"seconds": float(seconds), "log": log}),
                uri,
                signature="s",
                lookahead=4,
                evaluators=1,
                address=address,
            )
        except KeyboardInterrupt:
            print("stopped now")
            return 130
        except RaysenseError as error:
            print(f"raysense: error: {error}")
            return 2
    print("finished" if outcome.finished else "stopped")
    return 0 if outcome.finished else 130


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
