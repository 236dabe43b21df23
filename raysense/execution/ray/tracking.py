"""Shows a study's numbers where people already look, MLflow and TensorBoard, by Ray Tune's own callbacks.

A trial is a run of its name, each of its evaluations a step, and every figure's name begins with
the rung that it was measured on. Ray's callbacks work in threads of their own: a server that is slow, wrong or gone
costs a study nothing.
"""

from __future__ import annotations

import importlib.util
import logging
import queue
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import raysense
from raysense.errors import RaysenseError
from raysense.execution.logged_values import figures
from raysense.names import TRACKERS
from raysense.records import Evaluation
from raysense.study import Track

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

WAIT_SECONDS = 30.0
"""How long the end of a study waits for what is still to be shown."""

log = logging.getLogger("raysense")


def check_track(track: Track) -> None:
    """Refuse what cannot be shown because a package is missing.

    Raises:
        RaysenseError: Names the extra to install.
    """
    for key, package in TRACKERS.items():
        if getattr(track, key) is not None and importlib.util.find_spec(package) is None:
            raise RaysenseError(
                f"`track.{key}` needs the package {package}, which is not installed: pip install 'raysense[{key}]', "
                f"or leave `track.{key}` out"
            )


class Tracker:
    """What a study shows elsewhere; a context manager around the run. Gives nothing back and raises nothing.

    Args:
        track: Where to.
        study: The study's name.
        denominators: The integers that turn zeros into sparsities, as the store has them.
    """

    def __init__(self, track: Track, study: str, denominators: Mapping[str, int]) -> None:
        self._denominators = denominators
        self._reported: dict[str, set[str]] = {}  # by trial: keys of its evaluations
        self._outlets: list[_Outlet] = []
        if track.mlflow is not None:
            uri, experiment = track.mlflow, track.experiment or study
            self._outlets.append(_Outlet("mlflow", lambda: _mlflow(uri, experiment, study)))
        if track.tensorboard is not None:
            folder = Path(track.tensorboard) / study
            self._outlets.append(_Outlet("tensorboard", lambda: _tensorboard(folder)))

    def __enter__(self) -> Self:
        for outlet in self._outlets:
            outlet.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stopped_now = kind is not None and not issubclass(kind, Exception)
        for outlet in self._outlets:
            outlet.stop(0.0 if stopped_now else WAIT_SECONDS)

    def start(self, trial: Trial) -> None:
        """A trial begins; a restarted one goes on where it was."""
        if trial.trial_id not in self._reported:
            self._reported[trial.trial_id] = set()
            self._each(lambda logger: logger.log_trial_start(trial))

    def report(self, trial: Trial, evaluation: Evaluation) -> None:
        """One more evaluation; one that a restarted trial reports again is left out."""
        reported = self._reported.get(trial.trial_id)
        if reported is None or evaluation.key in reported:
            return
        reported.add(evaluation.key)
        step = len(reported)
        result = {"training_iteration": step, **figures(evaluation, self._denominators)}
        self._each(lambda logger: logger.log_trial_result(step, trial, result))

    def end(self, trial: Trial, *, failed: bool) -> None:
        """A trial is over."""
        if self._reported.pop(trial.trial_id, None) is not None:
            self._each(lambda logger: logger.log_trial_end(trial, failed=failed))

    def _each(self, call: Callable[[Any], None]) -> None:
        for outlet in self._outlets:
            outlet.put(call)


class _Outlet:
    """One of Ray's callbacks in a thread of its own; the first thing that goes wrong is logged, and ends it."""

    def __init__(self, key: str, make: Callable[[], Any]) -> None:
        self._key = key
        self._make = make
        self._calls: queue.SimpleQueue[Callable[[Any], None] | None] = queue.SimpleQueue()
        self._broken = False
        self._logger: Any = None
        self._thread = threading.Thread(target=self._work, name=f"raysense-{key}", daemon=True)

    def start(self) -> None:
        # Imported here, not in the thread: two threads that import Ray Tune at once break each other's import.
        try:
            self._logger = self._make()
        except Exception as error:
            self._give_up(error)
        else:
            self._thread.start()

    def put(self, call: Callable[[Any], None]) -> None:
        if not self._broken:
            self._calls.put(call)

    def stop(self, seconds: float) -> None:
        if self._thread.ident is None:
            return
        self._calls.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            log.warning("track.%s: not everything is shown yet; the store has every row.", self._key)

    def _work(self) -> None:
        try:
            self._logger.setup()
            while (call := self._calls.get()) is not None:
                call(self._logger)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._broken = True
        log.warning(
            "track.%s: %s: %s. The study goes on and shows no more there; the store has every row.",
            self._key,
            type(error).__name__,
            " ".join(str(error).split()),
        )


def _mlflow(uri: str, experiment: str, study: str) -> Any:
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    # They tell of every table that they make in a new data base. After the import, which sets a level of its own.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    tags = {"raysense.study": study, "raysense.version": raysense.__version__}
    return MLflowLoggerCallback(uri, experiment_name=experiment, tags=tags)


def _tensorboard(folder: Path) -> Any:
    from ray.tune.logger import TBXLoggerCallback

    class Board(TBXLoggerCallback):
        """Ray's callback, which writes below the study's folder instead of Tune's own."""

        def log_trial_start(self, trial: Trial) -> None:
            place = folder / _as_path(str(trial))
            place.mkdir(parents=True, exist_ok=True)
            self._trial_writer[trial] = self._summary_writer_cls(str(place), flush_secs=30)
            self._trial_result[trial] = {}

    return Board()  # type: ignore[no-untyped-call]


def _as_path(trial: str) -> Path:
    """A trial's name as a relative path that stays below its folder, whatever the name holds."""
    parts = [re.sub(r"[^\w.:-]", "_", part) for part in trial.split("/")]
    return Path(*(part if part.strip(".") else "_" for part in parts))
