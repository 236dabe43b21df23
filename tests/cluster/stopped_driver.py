"""A driver for the tests of signals: runs a chain of sleepers and says how it ended, as the command line does."""

from __future__ import annotations

import sys

from raysense.cluster import EvaluatorSpec, interrupt, run_on_ray
from raysense.cluster.interrupt import stop_signals
from raysense.errors import RaysenseError
from tests.cluster.curves import Chain


def main(address: str, uri: str, log: str, seconds: str) -> int:
    interrupt.GRACE_SECONDS, interrupt.LEAVE_SECONDS = 3.0, 8.0
    with stop_signals("left"):
        try:
            outcome = run_on_ray(
                Chain(50, 4),
                EvaluatorSpec("tests.cluster.sleepers:sleeper", {"seconds": float(seconds), "log": log}),
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
