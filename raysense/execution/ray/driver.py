"""Runs a strategy on a Ray cluster: every question a Ray Tune trial, answered by resident evaluators.

The driver keeps the books (`raysense.execution.ledger`); Tune starts, stops and restarts trials; the broker
(`raysense.execution.ray.pool`) keeps evaluators. Nothing that Tune saves is needed to resume: the store is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import tempfile
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import raysense
from raysense.errors import RaysenseError
from raysense.execution.evaluators import EvaluatorSpec
from raysense.execution.interrupt import Interrupt, handlers_kept
from raysense.execution.ledger import Ledger, Work
from raysense.execution.progress import Clock, OnProgress, Outcome, Snapshot
from raysense.execution.ray.connection import connected as _ray
from raysense.execution.ray.connection import environment as _environment
from raysense.execution.ray.connection import in_short, quiet
from raysense.execution.tracking import Tracker
from raysense.records import Question
from raysense.store.rows import from_fields
from raysense.store.store import Store
from raysense.strategies.base import Lookahead, Strategy

if TYPE_CHECKING:
    from raysense.execution.ray.pool import Status

RUNNING_PER_EVALUATOR = 1.5
ASKED_PER_EVALUATOR = 3
COMPACT_EVERY = 1000
PATIENCE_SECONDS = 600.0

# Tune's own logging of results is switched off (the store is the log), and its saving of itself, which grows with all
# trials that ever were (nobody restores it: the store is replayed). Pending trials are allowed: without them
# Tune kills idle trial processes at every completion and spends seconds of CPU on each new one.
_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "10000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}

log = logging.getLogger("raysense")


def run_on_ray(
    strategy: Strategy,
    spec: EvaluatorSpec,
    store_uri: str,
    *,
    signature: str,
    lookahead: int,
    evaluators: int | Literal["auto"] = "auto",
    cpus_per_evaluator: float = 1.0,
    gpus_per_evaluator: float = 0.0,
    on_progress: OnProgress | None = None,
    address: str | None = None,
    patience: float = PATIENCE_SECONDS,
    tracker: Tracker | None = None,
) -> Outcome:
    """Asks, measures on the cluster what the store does not answer, until the strategy is done.

    Args:
        strategy: What to ask. Stays on the driver.
        spec: How to make an evaluator; made once per evaluator life, on the machine that measures.
        store_uri: The store, reachable from every node.
        signature: The study's signature, part of every evaluation's key.
        lookahead: W of design decision 3, in questions; at least three per evaluator keep all of them busy.
        evaluators: How many, or as many as the nodes have room for, nodes that join later included. With
            a number, missing ones are waited for, so that an autoscaler brings their nodes.
        cpus_per_evaluator: CPU cores that each reserves.
        gpus_per_evaluator: GPUs, or the fraction of one, that each reserves.
        on_progress: Called about twice a second.
        address: Address of a running Ray cluster, ``auto`` for the one on this machine; None uses the
            cluster this process is connected to, or else starts Ray on this machine for the run.
        patience: Seconds to wait for room for the first evaluator; and the least that an evaluation is given.
        tracker: Shows every evaluation that is measured elsewhere too.

    Returns:
        Whether the strategy is done or the run was interrupted (Ctrl-C once), and the final numbers.

    Raises:
        RaysenseError: No node has the resources asked for, the store cannot be written, workers run another
            version, evaluators cannot be loaded, or another driver runs on the store.
    """
    if evaluators != "auto" and evaluators < 1:
        raise RaysenseError(f"evaluators: {evaluators}; give a number from 1, or auto.")
    store = Store.open(store_uri, create=True)
    with store.lock():
        store.forget_failed()
        run = _Run(strategy, spec, store, signature, lookahead, on_progress, patience, tracker)
        if run.begin():  # otherwise the store answers everything: no cluster is needed
            with handlers_kept(), quiet(), _ray(address), _environment(_TUNE_ENVIRONMENT):
                run.execute(evaluators, cpus_per_evaluator, gpus_per_evaluator)
        return run.end_of_run()


class _Overdue(Exception):
    """Whoever interrupted the run waits no longer: raised through Tune, which ends its trials on the way."""


class _Run:
    """One run: what Tune's searcher, scheduler and callback share."""

    def __init__(
        self,
        strategy: Strategy,
        spec: EvaluatorSpec,
        store: Store,
        signature: str,
        lookahead: int,
        on_progress: OnProgress | None,
        patience: float,
        tracker: Tracker | None,
    ) -> None:
        self.ledger = Ledger(Lookahead(strategy, lookahead), store.known(), signature)
        self.interrupt = Interrupt()
        self._cost_of = getattr(strategy, "cost_of", None)  # of a question; strategies of tests have none
        self._spec = spec
        self._store = store
        self._signature = signature
        self._lookahead = lookahead
        self._on_progress = on_progress
        self._patience = patience
        self._tracker = tracker
        self._clock = Clock(0.5)
        self._works: dict[str, Work] = {}  # by trial
        self._unstarted: deque[Work] = (
            deque()
        )  # asked, but in no trial: before the cluster is there, or again
        self._name = f"raysense-{uuid.uuid4().hex[:12]}"
        self._namespace = ""
        self._broker: Any = None
        self._polled: Any = None
        self._poll = Clock(1.0)
        self._status: Status | None = None
        self._error: BaseException | None = None
        self._draining = False
        self._width = 1
        self._processes: set[int] = set()  # of trials, that are up
        self._compactor = _Compactor(store)

    def begin(self) -> bool:
        """Replays the store; whether anything is left to measure."""
        work = self.ledger.next()
        if work is not None:
            self._unstarted.append(work)
        return work is not None

    def end_of_run(self) -> Outcome:
        """Compacts, shows the last numbers."""
        self._store.compact()
        last = self._snapshot(busy=0)
        if self._on_progress is not None:
            self._on_progress(last)
        return Outcome(finished=self.ledger.finished, snapshot=last)

    def execute(self, evaluators: int | Literal["auto"], cpus: float, gpus: float) -> None:
        """Runs until the strategy is done, or the run is interrupted or fails."""
        import ray

        from raysense.execution.ray.pool import Broker, Plan, resident, room

        here = room(ray.nodes(), cpus, gpus)  # type: ignore[no-untyped-call]
        if not here and evaluators == "auto":
            raise RaysenseError(_no_room(cpus, gpus))
        width = here if evaluators == "auto" else evaluators
        self._widen(width)
        plan = Plan(
            spec=self._spec,
            store_uri=self._store.uri,
            signature=self._signature,
            count=None if evaluators == "auto" else evaluators,
            cpus=cpus,
            gpus=gpus,
            version=raysense.__version__,
            begun=self._store.study is not None,
            patience=self._patience,
        )
        self._namespace = ray.get_runtime_context().namespace
        # The first evaluators start beside the broker, not after it: seconds of every small run.
        first = [resident(plan) for _ in range(width)]
        self._broker = (
            ray.remote(Broker)
            .options(
                name=self._name,
                num_cpus=0,
                max_concurrency=10_000,
                resources={"node:__internal_head__": 0.001},
            )
            .remote(plan, first)
        )
        scratch = tempfile.mkdtemp(prefix="raysense-tune-")
        try:
            with self.interrupt, self._tracker or contextlib.nullcontext():
                self._broker.start.remote()
                self._fit(scratch)
        finally:
            ray.kill(self._broker)  # the evaluators it made end with it
            for actor in first:
                ray.kill(actor)
            self._compactor.stop()
            shutil.rmtree(scratch, ignore_errors=True)
        if self._error is not None:
            raise self._error

    def _fit(self, scratch: str) -> None:
        from ray import tune

        from raysense.execution.ray.trial import QuestionTrial
        from raysense.execution.ray.tune import Asker, Show, StopOnRule, Watcher

        callbacks: list[tune.Callback] = [Watcher(self)]
        if self._tracker is not None:
            callbacks.append(Show(self, self._tracker))
        tuner = tune.Tuner(
            tune.with_resources(QuestionTrial, _resources),
            tune_config=tune.TuneConfig(
                search_alg=Asker(self), scheduler=StopOnRule(self), num_samples=-1, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name=self._name,
                storage_path=scratch,
                callbacks=callbacks,
                failure_config=tune.FailureConfig(max_failures=5),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        with contextlib.suppress(_Overdue):
            tuner.fit()

    # --- what Tune's adapters call --------------------------------------------------------------------

    @property
    def stopping(self) -> bool:
        """No further question is asked."""
        return self._error is not None or self.interrupt.asked

    @property
    def finished(self) -> bool:
        """Tune may end once its trials have."""
        return self.ledger.finished or self.stopping

    @property
    def running(self) -> int:
        """Trials that run at the same time."""
        return math.ceil(RUNNING_PER_EVALUATOR * self._width)

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
        most = ASKED_PER_EVALUATOR * self._width if self.warm else self.running
        if self.stopping or len(self._works) >= most:
            return None
        work: Work | None = None
        with self._caught():
            work = self._unstarted.popleft() if self._unstarted else self.ledger.next()
        if work is None:
            return None
        self._works[trial] = work
        left = replace(work.question, tasks=work.left)
        self._broker.begin.remote(trial, left, self._costs(left))
        return {
            "broker": self._name,
            "namespace": self._namespace,
            "trial": trial,
            "question": work.question.name,
            "tasks": len(left.tasks),
            # A share of the one resource that every cluster has exactly once: it lets so many trials run
            # at the same time and keeps them on the head node, beside the driver and the broker.
            "share": math.floor(9000 / self.running) / 10_000,
        }

    def _costs(self, question: Question) -> tuple[int, ...]:
        """What the plan says that a question's tasks cost, for the broker's time limits."""
        if self._cost_of is None:
            return ()
        return tuple(self._cost_of(replace(question, tasks=(task,))) for task in question.tasks)

    def report(self, trial: str, evaluation: str) -> None:
        """An evaluation that a trial reports."""
        work = self._works.get(trial)
        if not evaluation or work is None:
            return
        with self._caught():
            self.ledger.answer(work, from_fields(json.loads(evaluation)))
            self._compactor.stored()

    def question(self, trial: str) -> Question | None:
        """What a trial works through."""
        work = self._works.get(trial)
        return work.question if work is not None else None

    def settled(self, trial: str) -> bool:
        """Whether the trial's question needs no further evaluation."""
        work = self._works.get(trial)
        return work is None or work.settled

    def end(self, trial: str, *, error: bool) -> None:
        """A trial is over."""
        work = self._works.pop(trial, None)
        self._broker.end.remote(trial)
        if error and work is not None:
            self._error = self._error or RaysenseError(
                f"trial {trial} of {work.question.name} failed again and again. Its question can be asked again: "
                "resume with the same command; if it recurs, see the workers' logs of Ray."
            )
        elif work is not None and not work.settled:
            self._unstarted.append(work)  # the trial ended early: another one goes on

    def tick(self) -> None:
        """Called on every turn of Tune's loop."""
        import ray

        with self._caught():
            if self._polled is None and self._poll.due():
                self._polled = self._broker.status.remote()
            if self._polled is not None and ray.wait([self._polled], timeout=0)[0]:
                polled, self._polled = self._polled, None
                try:
                    self._status = ray.get(polled)
                except ray.exceptions.RayError as error:
                    if self.interrupt.asked:
                        raise KeyboardInterrupt from None  # the signal went to Ray's processes too
                    raise RaysenseError(
                        f"the broker, the process between trials and evaluators, has died ({in_short(error)}). Nothing "
                        "stored is lost: go on with --resume; if it recurs, see the workers' logs of Ray"
                    ) from None
                self._judge(self._status)
            if self._on_progress is not None and self._clock.due():
                self._on_progress(self._snapshot(self._status.busy if self._status else 0))
        if self.interrupt.overdue:
            # Trials wait for the broker, and evaluators end with it. Tune would wait for trials still to start.
            ray.kill(self._broker)
            raise _Overdue
        if self.stopping and not self._draining:
            self._draining = True
            self._broker.drain.remote()

    def _judge(self, status: Status) -> None:
        self._widen(status.wanted)
        for notice in status.notices:
            log.warning("%s", notice)
        if status.fatal:
            raise RaysenseError(status.fatal)
        if not status.lives and status.unplaced_seconds > self._patience:
            raise RaysenseError(
                f"no evaluator found room for {self._patience:.0f} s. Add nodes, or ask for less per evaluator."
            )

    def _widen(self, width: int) -> None:
        """Nodes have joined: keep them supplied, as far as the study's look-ahead goes."""
        if width > max(self._width, self._lookahead):
            log.warning(
                "search.lookahead is %d: at most so many questions are open at a time, and %d evaluators want at least "
                "%d. Set it before a study begins: decisions depend on it.",
                self._lookahead,
                width,
                ASKED_PER_EVALUATOR * width,
            )
        if width > self._width:
            self._width = width
            self.recount()  # a trial's share of the head node is another now: all start anew

    @contextlib.contextmanager
    def _caught(self) -> Iterator[None]:
        """An exception inside Tune's callbacks would abort Tune untidily: keep it, stop clean, raise it then."""
        try:
            yield
        except Exception as error:
            self._error = self._error or error

    def _snapshot(self, busy: int) -> Snapshot:
        status = self._status
        return replace(
            self.ledger.snapshot(),
            seconds=self._clock.seconds,
            busy=busy,
            evaluators=status.evaluators if status else 0,
            message=self._waiting_for(),
        )

    def _waiting_for(self) -> str:
        if self.stopping:
            return "evaluations in flight; then the study stops"
        status = self._status
        if status is None or status.evaluators:
            return ""
        return (
            f"{status.loading} evaluators are loading"
            if status.lives
            else "room for evaluators on the cluster"
        )


def _resources(config: dict[str, Any]) -> Any:
    """What a trial reserves, by its configuration."""
    return _share_of_head(config["share"])


@cache  # Tune keeps it with every trial
def _share_of_head(share: float) -> Any:
    from ray import tune

    return tune.PlacementGroupFactory([{"CPU": 0, "node:__internal_head__": share}])


class _Compactor:
    """Compacts the store beside the run, every so many evaluations."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pending = 0
        self._thread: threading.Thread | None = None

    def stored(self) -> None:
        """One more evaluation is stored."""
        self._pending += 1
        if self._pending >= COMPACT_EVERY and (self._thread is None or not self._thread.is_alive()):
            self._pending = 0
            self._thread = threading.Thread(target=self._compact, name="raysense-compact")
            self._thread.start()

    def stop(self) -> None:
        """Waits for a compaction under way."""
        if self._thread is not None:
            self._thread.join()

    def _compact(self) -> None:
        try:
            self._store.compact()
        except RaysenseError as error:  # what is stored stays readable; the last compaction reports it
            log.warning("compaction put off: %s", error)


def _no_room(cpus: float, gpus: float) -> str:
    import ray

    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return (
        f"gpus_per_evaluator: {gpus:g}, cpus_per_evaluator: {cpus:g}, but no node of the cluster has them (it has "
        f"{has.get('GPU', 0):g} GPUs and {has.get('CPU', 0):g} CPUs in all). Connect to a cluster with such nodes, "
        "ask for less per evaluator, or give a number of evaluators if an autoscaler will bring the nodes."
    )
