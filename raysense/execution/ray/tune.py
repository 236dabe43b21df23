"""Tune's plug-ins: a searcher that asks the strategy, a scheduler that stops by rule, callbacks that watch and show."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raysense.execution.ray.trial import EVALUATION
from raysense.store.rows import from_fields

if TYPE_CHECKING:
    from raysense.execution.ray.driver import _Run
    from raysense.execution.tracking import Tracker


class _NotSaved:
    """Tune saves its plug-ins; these have no state worth saving, as a study resumes from its store."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Asker(_NotSaved, Searcher):
    """Suggests one trial per question."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self._run = run

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next question's trial; None while the strategy waits."""
        config = self._run.suggest(trial_id)
        if config is None and self._run.finished:
            finished: Any = Searcher.FINISHED  # a text, against the signature that Tune declares
            return finished  # type: ignore[no-any-return]
        return config

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The trial is over."""
        if result is not None:
            self._run.report(trial_id, result.get(EVALUATION, ""))
        self._run.end(trial_id, error=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class StopOnRule(_NotSaved, FIFOScheduler):
    """Stops a trial as soon as its question is settled; keeps trial processes warm."""

    def __init__(self, run: _Run) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._run = run
        self._kept: tuple[Any, int] | None = None  # resources, idle processes

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Has Tune keep idle trial processes for the next question.

        Left to itself Tune ends all but one whenever no trial is pending, as between the steps of a bisection, and
        starts new ones for the next questions: seconds of CPU, and of waiting, for each. Its cache of
        processes knows a least number to keep, though not by a public name: a Ray without it runs, only slower.
        """
        cache = getattr(tune_controller, "_actor_cache", None)
        wanted = (trial.placement_group_factory, self._run.running)
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
        if not self._run.warm:
            return None
        live = {trial.trial_id: trial for trial in tune_controller.get_live_trials()}
        asked = (live[name] for name in self._run.asked if name in live)
        return next((trial for trial in asked if trial.status == trial.PENDING), None)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Takes the evaluation and says whether the trial goes on."""
        self._run.report(trial.trial_id, result.get(EVALUATION, ""))
        decision = TrialScheduler.STOP if self._run.settled(trial.trial_id) else TrialScheduler.CONTINUE
        return str(decision)


class Watcher(_NotSaved, tune.Callback):
    """Gives the run a turn at every step of Tune's loop."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """One turn."""
        self._run.tick()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial's process has shown that it is up."""
        self._run.seen(result["pid"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process has died: another one is started."""
        self._run.recount()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Lets go of what Tune would keep of an ended trial: some 40 KB on its results, for ever."""
        kept = trial.run_metadata
        kept.metric_analysis, kept.metric_n_steps = {}, {}
        if last := kept.last_result:
            kept.last_result = {name: last[name] for name in ("trial_id", "training_iteration")}
            kept.last_result["config"] = trial.config


class Show(_NotSaved, tune.Callback):
    """Gives a tracker what Tune reports, in the study's words."""

    def __init__(self, run: _Run, tracker: Tracker) -> None:
        self._run = run
        self._tracker = tracker

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A question's trial begins, or begins again."""
        question = self._run.question(trial.trial_id)
        if question is not None:
            self._tracker.begin(trial.trial_id, question)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """One more evaluation."""
        if fields := result.get(EVALUATION):
            self._tracker.report(trial.trial_id, from_fields(json.loads(fields)))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The question is settled, or the study stops."""
        self._tracker.end(trial.trial_id, failed=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune has given the trial up."""
        self._tracker.end(trial.trial_id, failed=True)
