"""Shows a study's numbers where people already look, MLflow and TensorBoard, by Ray Tune's own callbacks.

A question is a run, each of its evaluations a step, and every figure's name begins with the rung that it was measured
on. Ray's callbacks work in threads of their own: a server that is slow, wrong or gone costs a study nothing.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import queue
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import raysense
from raysense.errors import RaysenseError
from raysense.names import TRACKERS
from raysense.records import Evaluation, Question
from raysense.study import Track

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
        self._study = study
        self._denominators = denominators
        self._folder = Path(track.tensorboard or ".") / study
        self._shown: dict[str, _Shown] = {}
        self._outlets: list[_Outlet] = []
        if track.mlflow is not None:
            uri, experiment = track.mlflow, track.experiment or study
            self._outlets.append(_Outlet("mlflow", lambda: _mlflow(uri, experiment, study)))
        if track.tensorboard is not None:
            self._outlets.append(_Outlet("tensorboard", _tensorboard))

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

    def begin(self, trial: str, question: Question) -> None:
        """A trial begins to work through a question; a restarted one goes on where it was."""
        if trial in self._shown:
            return
        allocations = {task.allocation.key for task in question.tasks}
        about = {
            "study": self._study,
            "stage": question.stage,
            "question": question.name,
            "rungs": ", ".join(dict.fromkeys(task.rung for task in question.tasks)),
            "allocation": allocations.pop() if len(allocations) == 1 else f"{len(allocations)} of them",
            "trial": trial,
        }
        shown = self._shown[trial] = _Shown(question.name, about, self._folder / _as_path(question.name))
        self._each(lambda logger: logger.log_trial_start(shown))

    def report(self, trial: str, evaluation: Evaluation) -> None:
        """One more evaluation; one that a restarted trial reports again is left out."""
        shown = self._shown.get(trial)
        if shown is None or evaluation.key in shown.reported:
            return
        shown.reported.add(evaluation.key)
        step = len(shown.reported)
        result = {"training_iteration": step, **figures(evaluation, self._denominators)}
        self._each(lambda logger: logger.log_trial_result(step, shown, result))

    def end(self, trial: str, *, failed: bool) -> None:
        """A trial is over."""
        shown = self._shown.pop(trial, None)
        if shown is not None:
            self._each(lambda logger: logger.log_trial_end(shown, failed=failed))

    def _each(self, call: Callable[[Any], None]) -> None:
        for outlet in self._outlets:
            outlet.put(call)


def figures(evaluation: Evaluation, denominators: Mapping[str, int]) -> dict[str, float]:
    """An evaluation's numbers by name, ``score/clip_score_drop`` say; what is not finite is left out."""
    found: dict[str, float] = {
        "zeros": evaluation.zeros,
        "images": evaluation.images,
        "cost": evaluation.cost,
        "seconds": evaluation.seconds,
        "collapsed": int(bool(evaluation.collapsed)),
        "failed": int(bool(evaluation.failed)),
    }
    for name, n in denominators.items():
        if name.startswith("n_") and n:
            found[f"sparsity_{name.removeprefix('n_')}"] = evaluation.zeros / n
    for metric, measure in evaluation.measures.items():
        found |= {metric: measure.value, f"{metric}_low": measure.low, f"{metric}_high": measure.high}
    return {f"{evaluation.rung}/{name}": value for name, value in found.items() if math.isfinite(value)}


@dataclass(eq=False)
class _Shown:
    """What Ray's callbacks read of a trial, with a question in place of Tune's inner workings."""

    name: str
    config: dict[str, Any]
    folder: Path
    reported: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return self.name

    @property
    def evaluated_params(self) -> dict[str, Any]:
        return self.config

    @property
    def local_path(self) -> str:
        return str(self.folder)

    def init_local_path(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)


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


def _tensorboard() -> Any:
    from ray.tune.logger import TBXLoggerCallback

    return TBXLoggerCallback()  # type: ignore[no-untyped-call]


def _as_path(question: str) -> Path:
    """A question's name as a relative path that stays below its folder, whatever the name holds."""
    parts = [re.sub(r"[^\w.:-]", "_", part) for part in question.split("/")]
    return Path(*(part if part.strip(".") else "_" for part in parts))
