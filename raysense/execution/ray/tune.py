"""Tune's plug-ins: a searcher that asks the strategy, a scheduler that stops by rule, callbacks that watch and show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raysense.execution.ray.book import TrialBook
from raysense.execution.ray.tracking import Tracker
from raysense.execution.ray.trial import EVALUATION


class _NotSaved:
    """Tune saves its plug-ins; these have no state worth saving, as a study resumes from its store."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class StrategySearcher(_NotSaved, Searcher):
    """Suggests one Ray Tune trial per trial of the strategy."""

    def __init__(self, book: TrialBook) -> None:
        super().__init__()
        self._book = book

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial; None while the strategy waits."""
        config = self._book.suggest(trial_id)
        if config is None and self._book.finished:
            finished: Any = Searcher.FINISHED  # a text, against the signature that Tune declares
            return finished  # type: ignore[no-any-return]
        return config

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The trial is over."""
        if result is not None:
            self._book.report(trial_id, result.get(EVALUATION))
        self._book.end(trial_id, error=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class StopRuleScheduler(_NotSaved, FIFOScheduler):
    """Stops a trial as soon as it is settled; keeps trial processes warm."""

    def __init__(self, book: TrialBook) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._book = book
        self._kept: tuple[Any, int] | None = None  # resources, idle processes

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Has Tune keep idle trial processes for the next trial.

        Left to itself Tune ends all but one whenever no trial is pending, as between the steps of a bisection, and
        starts new ones for the next trials: seconds of CPU, and of waiting, for each. Its cache of
        processes knows a least number to keep, though not by a public name: a Ray without it runs, only slower.
        """
        cache = getattr(tune_controller, "_actor_cache", None)
        wanted = (trial.placement_group_factory, self._book.running)
        if cache is None or wanted == self._kept:
            return
        if self._kept is not None:  # nodes have joined: a trial's share is another now
            cache.decrease_max(*self._kept)
        cache.increase_max(*wanted)
        self._kept = wanted

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The oldest pending trial, once all trial processes are up.

        Tune gives whatever is chosen here the next idle process, and kills the one that is being started for it. With
        trials shorter than a start, no second process would ever come up, and each try costs seconds of CPU. Until
        then Tune itself gives idle processes to trials that have none.
        """
        if not self._book.warm:
            return None
        live = {trial.trial_id: trial for trial in tune_controller.get_live_trials()}
        asked = (live[name] for name in self._book.asked if name in live)
        return next((trial for trial in asked if trial.status == trial.PENDING), None)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Takes the evaluation and says whether the trial goes on."""
        self._book.report(trial.trial_id, result.get(EVALUATION))
        decision = TrialScheduler.STOP if self._book.settled(trial.trial_id) else TrialScheduler.CONTINUE
        return str(decision)


class ProgressCallback(_NotSaved, tune.Callback):
    """Gives the run a turn at every step of Tune's loop."""

    def __init__(self, book: TrialBook, turn: Callable[[], None]) -> None:
        self._book, self._turn = book, turn

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """One turn."""
        self._turn()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial's process has shown that it is up."""
        self._book.seen(result["pid"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process has died: another one is started."""
        self._book.recount()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """An idle process has died."""
        self._book.recount()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Lets go of what Tune would keep of an ended trial: some 40 KB on its results, for ever."""
        kept = trial.run_metadata
        kept.metric_analysis, kept.metric_n_steps = {}, {}
        if last := kept.last_result:
            kept.last_result = {name: last[name] for name in ("trial_id", "training_iteration")}
            kept.last_result["config"] = trial.config


class TrackingCallback(_NotSaved, tune.Callback):
    """Hands trials and their evaluations to a tracker."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins, or begins again."""
        self._tracker.start(trial)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """One more evaluation."""
        if (evaluation := result.get(EVALUATION)) is not None:
            self._tracker.report(trial, evaluation)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial is settled, or the study stops."""
        self._tracker.end(trial, failed=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune has given the trial up."""
        self._tracker.end(trial, failed=True)
