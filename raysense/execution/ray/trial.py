"""The thin trial: one Ray Tune trial works through one `TrialSpec`, each of its reports one evaluation.

Trials run in processes of their own, many of them: keep this module's imports few.
"""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray import tune

from raysense.execution.logged_values import figures
from raysense.records import Evaluation

EVALUATION = "evaluation"
"""Key of the evaluation itself in a trial's result, beside its figures; None: the study is stopping."""


class EvaluationTrial(tune.Trainable):
    """Works through a trial's requests; the evaluators do the work, Tune's scheduler may stop it early.

    Its configuration names the pool of evaluators, Ray Tune's trial and how many requests it has.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Called in a fresh process."""
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Called when the process goes on with another trial."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """The next evaluation and its figures; None means that the study is stopping."""
        index = self._next
        self._next += 1
        evaluation: Evaluation | None = None
        # The driver sees for itself when the pool has died, and says so once.
        with contextlib.suppress(ray.exceptions.RayActorError):
            if self._pool is not None:
                evaluation = ray.get(self._pool.answer.remote(self._trial, index))
        if evaluation is None:
            return {EVALUATION: None, "done": True}
        return {**figures(evaluation), EVALUATION: evaluation, "done": self._next == self._requests}

    def _begin(self, config: dict[str, Any]) -> None:
        self._pool: Any = None
        with contextlib.suppress(ValueError):  # there is none of this name any more
            self._pool = ray.get_actor(config["pool"], namespace=config["namespace"])
        self._trial: str = config["ray_trial"]
        self._requests: int = config["requests"]
        self._next = 0
