"""The driver's side of the pool of evaluators: starts it, asks how it is, ends it."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from raysense.errors import RaysenseError
from raysense.execution.progress import Clock
from raysense.execution.ray.connection import in_short
from raysense.records import TrialSpec

if TYPE_CHECKING:
    from raysense.execution.ray.actor import PoolSpec
    from raysense.execution.ray.pool import PoolStatus


class PoolHandle:
    """A pool of evaluators on the cluster that this process is connected to.

    Args:
        spec: What the pool needs to know.
        width: How many evaluators start beside it at once: seconds of every small run.

    Attributes:
        name: The actor's.
        namespace: The actor's.
        status: How it was when it was asked last.
    """

    def __init__(self, spec: PoolSpec, width: int) -> None:
        import ray

        from raysense.execution.ray.actor import evaluator_actor
        from raysense.execution.ray.pool import EvaluatorPool

        self.name = f"raysense-{uuid.uuid4().hex[:12]}"
        self.namespace = ray.get_runtime_context().namespace
        self.status: PoolStatus | None = None
        self._clock = Clock(1.0)
        self._polled: Any = None
        self._first = [evaluator_actor(spec) for _ in range(width)]
        self._actor: Any = (
            ray.remote(EvaluatorPool)
            .options(
                name=self.name,
                num_cpus=0,
                max_concurrency=10_000,
                resources={"node:__internal_head__": 0.001},
            )
            .remote(spec, self._first)
        )

    def start(self) -> None:
        """Have it keep evaluators."""
        self._actor.start.remote()

    def begin(self, trial: str, trial_spec: TrialSpec, costs: tuple[int, ...]) -> None:
        """Tell it what a trial is about, and what its requests cost; costs may be empty."""
        self._actor.begin.remote(trial, trial_spec, costs)

    def end(self, trial: str) -> None:
        """A trial is over."""
        self._actor.end.remote(trial)

    def drain(self) -> None:
        """Have it finish what is being measured, and begin nothing."""
        self._actor.drain.remote()

    def poll(self, seconds: float = 0.0) -> PoolStatus | None:
        """How it is, asked once a second; None while nothing new is known.

        Args:
            seconds: Ask at once, and wait so long for the answer.

        Raises:
            RaysenseError: It has died.
        """
        import ray

        if self._polled is None and (self._clock.due() or seconds):
            self._polled = self._actor.status.remote()
        if self._polled is None or not ray.wait([self._polled], timeout=seconds)[0]:
            return None
        polled, self._polled = self._polled, None
        try:
            self.status = ray.get(polled)
        except ray.exceptions.RayError as error:
            raise RaysenseError(
                f"the evaluator pool, the process between trials and evaluators, has died ({in_short(error)}). Nothing "
                "stored is lost: go on with --resume; if it recurs, see the workers' logs of Ray"
            ) from None
        return self.status

    def stop(self) -> None:
        """End it, and the evaluators with it: trials that wait for it end too."""
        import ray

        ray.kill(self._actor)

    def kill(self) -> None:
        """End it and all evaluators."""
        import ray

        self.stop()  # the evaluators it made end with it
        for actor in self._first:
            ray.kill(actor)
