"""Which Ray Tune trial works through which `TrialSpec`: what Tune's adapters ask, and what they tell."""

from __future__ import annotations

import contextlib
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from raysense.errors import RaysenseError
from raysense.execution.interrupt import Interrupt
from raysense.execution.ledger import Ledger, PendingTrial
from raysense.execution.ray.pool_handle import PoolHandle
from raysense.records import Evaluation, TrialSpec
from raysense.strategies.base import ASKED_PER_EVALUATOR, RUNNING_PER_EVALUATOR

RESTARTS = 5
"""So often a trial is started again that Tune reports as failed; a process that was killed is one failure."""


class TrialBook:
    """The trials of one run.

    Args:
        ledger: Gives trials and takes answers.
        first: The first trial, which the ledger has given already.
        pool: Measures.
        cost_of: What a trial costs by the plan, for the pool's time limits; None if the strategy does not say.
        stored: Called once an evaluation that was measured.
        interrupt: Says whether somebody wants the run to stop.

    Attributes:
        error: Why the run has to end, or None.
        width: Evaluators that are kept supplied.
    """

    def __init__(
        self,
        ledger: Ledger,
        first: PendingTrial,
        pool: PoolHandle,
        cost_of: Callable[[TrialSpec], int] | None,
        stored: Callable[[], None],
        interrupt: Interrupt,
    ) -> None:
        self._ledger, self._pool, self._cost_of, self._stored = ledger, pool, cost_of, stored
        self._interrupt = interrupt
        self._works: dict[str, PendingTrial] = {}  # by trial
        self._unstarted = deque([first])  # asked, but in no trial: before the cluster is there, or again
        self._processes: set[int] = set()  # of trials, that are up
        self._given_up: Counter[str] = Counter()  # how often Tune gave a trial up, by its name
        self.width = 1
        self.error: BaseException | None = None

    @property
    def stopping(self) -> bool:
        """No further trial is asked."""
        return self.error is not None or self._interrupt.asked

    def widen(self, width: int) -> None:
        """Nodes have joined: so many evaluators are to be kept supplied."""
        if width > self.width:
            self.width = width
            self.recount()  # a trial's share of the head node is another now: all start anew

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """An exception inside Tune's callbacks would abort Tune untidily: keep it, stop clean, raise it then."""
        try:
            yield
        except Exception as error:
            self.error = self.error or error

    # --- what Tune's adapters ask ---------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Tune may end once its trials have."""
        return self._ledger.finished or self.stopping

    @property
    def running(self) -> int:
        """Trials that run at the same time."""
        return math.ceil(RUNNING_PER_EVALUATOR * self.width)

    @property
    def asked(self) -> Iterable[str]:
        """The trials that are not over, the oldest first."""
        return self._works

    @property
    def warm(self) -> bool:
        """All trial processes are up: no trial waits for its own to start."""
        return len(self._processes) >= self.running

    def seen(self, process: int) -> None:
        """A trial's process has reported."""
        self._processes.add(process)

    def recount(self) -> None:
        """Which trial processes are up has to be seen anew."""
        self._processes.clear()

    def suggest(self, trial: str) -> dict[str, Any] | None:
        """The configuration of a new trial, or None: not now."""
        most = ASKED_PER_EVALUATOR * self.width if self.warm else self.running
        if self.stopping or len(self._works) >= most:
            return None
        work: PendingTrial | None = None
        with self.caught():
            work = self._unstarted.popleft() if self._unstarted else self._ledger.next()
        if work is None:
            return None
        self._works[trial] = work
        left = replace(work.spec, requests=work.left)
        self._pool.begin(trial, left, self._costs(left))
        return {
            **_about(work.spec),
            "pool": self._pool.name,
            "namespace": self._pool.namespace,
            "ray_trial": trial,
            "requests": len(left.requests),
            # A share of the one resource that every cluster has exactly once: it lets so many trials run
            # at the same time and keeps them on the head node, beside the driver and the pool.
            "share": math.floor(9000 / self.running) / 10_000,
        }

    def settled(self, trial: str) -> bool:
        """Whether the trial needs no further evaluation."""
        work = self._works.get(trial)
        return work is None or work.settled

    # --- what they tell -------------------------------------------------------------------------------

    def report(self, trial: str, evaluation: Evaluation | None) -> None:
        """An evaluation that a trial reports; None: there will be no more."""
        work = self._works.get(trial)
        if evaluation is None or work is None:
            return
        with self.caught():
            self._ledger.answer(work, evaluation)
            self._stored()

    def end(self, trial: str, *, error: bool) -> None:
        """A trial is over; if it ended early, another one goes on with it.

        Tune gives a trial up at once if the idle process that is to take it has died.
        """
        work = self._works.pop(trial, None)
        self._pool.end(trial)
        if work is None or work.settled:
            return
        self._unstarted.append(work)
        self._given_up[work.spec.name] += error
        if self._given_up[work.spec.name] > RESTARTS:
            self.error = self.error or RaysenseError(
                f"trial {trial} of {work.spec.name} failed again and again. It can be asked again: "
                "go on with --resume; if it recurs, see the workers' logs of Ray."
            )

    def _costs(self, spec: TrialSpec) -> tuple[int, ...]:
        if self._cost_of is None:
            return ()
        return tuple(self._cost_of(replace(spec, requests=(request,))) for request in spec.requests)


def _about(spec: TrialSpec) -> dict[str, str]:
    """A trial as the parameters of Ray Tune's, for people."""
    allocations = {request.allocation.key for request in spec.requests}
    return {
        "trial": spec.name,
        "stage": spec.stage,
        "rungs": ", ".join(dict.fromkeys(request.rung for request in spec.requests)),
        "allocation": allocations.pop() if len(allocations) == 1 else f"{len(allocations)} of them",
    }
