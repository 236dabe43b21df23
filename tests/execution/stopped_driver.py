"""A driver for the tests of signals: runs a chain of sleepers and says how it ended, as the command line does."""

from __future__ import annotations

import signal
import sys
from types import TracebackType

from raysense.errors import RaysenseError
from raysense.execution import interrupt
from raysense.execution.executor import EvaluatorSpec
from raysense.execution.interrupt import stop_signals
from raysense.execution.ray.driver import RayExecutor
from raysense.store import Store
from tests.execution.curves import Chain


class SignalBeforeTheFirstTrial:
    """Entered as a tracker, after the run has taken over the signals and before Tune has any trial."""

    def __enter__(self) -> None:
        signal.raise_signal(signal.SIGINT)

    def __exit__(self, kind: type[BaseException], error: BaseException, trace: TracebackType) -> None: ...


def main(address: str, uri: str, log: str, seconds: str, early: str = "") -> int:
    """Runs.

    Args:
        address: Of a Ray cluster; empty: one is started.
        uri: Of the store.
        log: Where evaluators write what they do.
        seconds: An evaluation takes.
        early: Not empty: a signal comes before the first trial.
    """
    interrupt.GRACE_SECONDS, interrupt.LEAVE_SECONDS = 3.0, 12.0
    with stop_signals("left"):
        try:
            executor = RayExecutor(
                EvaluatorSpec("tests.execution.sleepers:sleeper", {"seconds": float(seconds), "log": log}),
                evaluators=1,
                address=address or None,
                tracker=SignalBeforeTheFirstTrial() if early else None,  # type: ignore[arg-type]
            )
            store = Store.open(uri, create=True)
            outcome = executor.run(Chain(50, 4), store, signature="s", lookahead=4)
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
