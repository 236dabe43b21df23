"""Executes a strategy on a Ray cluster: every trial one of Ray Tune's, answered by resident evaluators.

The driver keeps the books (`raysense.execution.ledger`); Tune starts, stops and restarts trials; the pool
(`raysense.execution.ray.pool`) keeps evaluators. Nothing that Tune saves is needed to resume: the store is.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import raysense
from raysense.errors import RaysenseError
from raysense.execution.compactor import Compactor
from raysense.execution.executor import EvaluatorSpec
from raysense.execution.interrupt import Interrupt, handlers_kept
from raysense.execution.ledger import Ledger, PendingTrial
from raysense.execution.progress import Clock, OnProgress, Outcome, Snapshot
from raysense.execution.ray.book import RESTARTS, TrialBook
from raysense.execution.ray.connection import connected, environment, quiet
from raysense.execution.ray.pool_handle import PoolHandle
from raysense.execution.ray.tracking import Tracker
from raysense.execution.ray.watch import RayWatch
from raysense.execution.reused_rows import ReusedRows
from raysense.records import TrialSpec
from raysense.store.lock import LockLost
from raysense.store.store import Store
from raysense.strategies.base import ASKED_PER_EVALUATOR, Lookahead, Strategy

if TYPE_CHECKING:
    from raysense.execution.ray.actor import PoolSpec
    from raysense.execution.ray.pool import PoolStatus

PATIENCE_SECONDS = 600.0
ANSWER_SECONDS = 5.0
"""Within which a pool that is there answers."""

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


@dataclass(frozen=True)
class RayExecutor:
    """Executes on a Ray cluster.

    Attributes:
        spec: How to make an evaluator; made once per evaluator life, on the machine that measures.
        evaluators: How many, or as many as the nodes have room for, nodes that join later included. With
            a number, missing ones are waited for, so that an autoscaler brings their nodes.
        cpus: CPU cores that each reserves.
        gpus: GPUs, or the fraction of one, that each reserves.
        address: Address of a running Ray cluster, ``auto`` for the one on this machine; None uses the
            cluster this process is connected to, or else starts Ray on this machine for the run.
        patience: Seconds to wait for room for the first evaluator; and the least that an evaluation is given.
        tracker: Shows every evaluation that is measured elsewhere too.
    """

    spec: EvaluatorSpec
    evaluators: int | Literal["auto"] = "auto"
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None
    patience: float = PATIENCE_SECONDS
    tracker: Tracker | None = None

    def run(
        self,
        strategy: Strategy,
        store: Store,
        *,
        signature: str,
        lookahead: int,
        on_progress: OnProgress | None = None,
        earlier: ReusedRows | None = None,
    ) -> Outcome:
        """See `Executor`; every node must reach the store, and at least three trials per evaluator keep all busy.

        Raises:
            RaysenseError: No node has the resources asked for, the store cannot be written, workers run another
                version, evaluators cannot be loaded, or another driver runs on the store.
        """
        if self.evaluators != "auto" and self.evaluators < 1:
            raise RaysenseError(f"evaluators: {self.evaluators}; give a number from 1, or auto.")
        with store.lock():
            store.forget_failed()
            clock = Clock(0.5)
            ledger = Ledger(Lookahead(strategy, lookahead), store.known(), signature, earlier)
            first = ledger.next()
            last = ledger.snapshot()
            if first is not None:  # otherwise the store answers everything: no cluster is needed
                with (
                    handlers_kept(),
                    quiet(),
                    connected(self.address) as watch,
                    environment(_TUNE_ENVIRONMENT),
                ):
                    # Only strategies that keep to a budget say what a trial costs.
                    cost_of = getattr(strategy, "cost_of", None)
                    run = _Run(
                        self, ledger, first, store, signature, lookahead, cost_of, on_progress, clock, watch
                    )
                    last = run.execute()
            store.compact()
            last = replace(last, seconds=clock.seconds)
            if on_progress is not None:
                on_progress(last)
            return Outcome(finished=ledger.finished, snapshot=last)


class _Overdue(Exception):
    """Whoever interrupted the run waits no longer: raised through Tune, which ends its trials on the way."""


class _Run:
    """One run on a cluster."""

    def __init__(
        self,
        executor: RayExecutor,
        ledger: Ledger,
        first: PendingTrial,
        store: Store,
        signature: str,
        lookahead: int,
        cost_of: Callable[[TrialSpec], int] | None,
        on_progress: OnProgress | None,
        clock: Clock,
        watch: RayWatch,
    ) -> None:
        self._executor, self._ledger, self._lookahead = executor, ledger, lookahead
        self._on_progress, self._clock, self._watch = on_progress, clock, watch
        self._interrupt = Interrupt()
        self._draining = False
        self._ray_died = False
        self._compactor = Compactor(store)
        self._lock = store.lock()  # held already: the process has one for each store
        width = self._width_at_first()
        self._pool = PoolHandle(self._pool_spec(store, signature), width)
        self._book = TrialBook(ledger, first, self._pool, cost_of, self._compactor.stored, self._interrupt)
        self._widen(width)

    def execute(self) -> Snapshot:
        """Runs until the strategy is done, or the run is interrupted or fails; gives how it stood then."""
        scratch = tempfile.mkdtemp(prefix="raysense-tune-")
        try:
            with self._interrupt, self._executor.tracker or contextlib.nullcontext():
                self._pool.start()
                self._fit(scratch)
        finally:
            self._pool.kill()
            self._compactor.stop()
            shutil.rmtree(scratch, ignore_errors=True)
        if self._book.error is not None:
            if not self._interrupt.asked:
                self._watch.refuse_if_lost()  # whatever else went wrong then
            raise self._book.error
        return self._snapshot(busy=0)

    def _width_at_first(self) -> int:
        import ray

        from raysense.execution.ray.pool import room

        executor = self._executor
        here = room(ray.nodes(), executor.cpus, executor.gpus)  # type: ignore[no-untyped-call]
        if executor.evaluators != "auto":
            return executor.evaluators
        if not here:
            raise RaysenseError(_no_room(executor.cpus, executor.gpus))
        return here

    def _pool_spec(self, store: Store, signature: str) -> PoolSpec:
        from raysense.execution.ray.actor import PoolSpec

        executor = self._executor
        return PoolSpec(
            spec=executor.spec,
            store_uri=store.uri,
            signature=signature,
            count=None if executor.evaluators == "auto" else executor.evaluators,
            cpus=executor.cpus,
            gpus=executor.gpus,
            version=raysense.__version__,
            begun=store.study is not None,
            patience=executor.patience,
        )

    def _fit(self, scratch: str) -> None:
        from ray import tune

        from raysense.execution.ray.trial import EvaluationTrial
        from raysense.execution.ray.tune import (
            ProgressCallback,
            StopRuleScheduler,
            StrategySearcher,
            TrackingCallback,
        )

        callbacks: list[tune.Callback] = [ProgressCallback(self._book, self._turn)]
        if self._executor.tracker is not None:
            callbacks.append(TrackingCallback(self._executor.tracker))
        tuner = tune.Tuner(
            tune.with_resources(EvaluationTrial, _resources),
            tune_config=tune.TuneConfig(
                search_alg=StrategySearcher(self._book),
                scheduler=StopRuleScheduler(self._book),
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=_name_of,
            ),
            run_config=tune.RunConfig(
                name=self._pool.name,
                storage_path=scratch,
                callbacks=callbacks,
                failure_config=tune.FailureConfig(max_failures=RESTARTS),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        with contextlib.suppress(_Overdue):
            tuner.fit()
            if self._book.error is not None and not self._interrupt.asked:
                self._pool.poll(ANSWER_SECONDS)  # without it, trials fail again and again: then that is said

    def _turn(self) -> None:
        """Called on every turn of Tune's loop."""
        with self._book.caught():
            self._lock.refuse_if_lost()
            try:
                self._watch.refuse_if_lost()
                status = self._pool.poll()
            except RaysenseError:
                self._ray_died = True
                if self._interrupt.asked:
                    raise KeyboardInterrupt from None  # the signal went to Ray's processes too
                raise
            if status is not None:
                self._heed(status)
            if self._on_progress is not None and self._clock.due():
                self._on_progress(self._snapshot(self._pool.status.busy if self._pool.status else 0))
        if self._interrupt.overdue or self._ray_died or isinstance(self._book.error, LockLost):
            # Trials wait for the pool, and evaluators end with it. Tune would wait for trials still to start.
            self._pool.stop()
            raise _Overdue
        if self._book.stopping and not self._draining:
            self._draining = True
            self._pool.drain()

    def _heed(self, status: PoolStatus) -> None:
        self._widen(status.wanted)
        for notice in status.notices:
            log.warning("%s", notice)
        if status.fatal:
            raise RaysenseError(status.fatal)
        if not status.lives and status.unplaced_seconds > self._executor.patience:
            raise RaysenseError(
                f"no evaluator found room for {self._executor.patience:.0f} s. Add nodes, or ask for less per "
                "evaluator."
            )

    def _widen(self, width: int) -> None:
        """Nodes have joined: keep them supplied, as far as the study's look-ahead goes."""
        if width > max(self._book.width, self._lookahead):
            log.warning(
                "search.lookahead is %d: at most so many trials are open at a time, and %d evaluators want at least "
                "%d. Set it before a study begins: decisions depend on it.",
                self._lookahead,
                width,
                ASKED_PER_EVALUATOR * width,
            )
        self._book.widen(width)

    def _snapshot(self, busy: int) -> Snapshot:
        status = self._pool.status
        return replace(
            self._ledger.snapshot(),
            seconds=self._clock.seconds,
            busy=busy,
            evaluators=status.evaluators if status else 0,
            message=self._waiting_for(),
        )

    def _waiting_for(self) -> str:
        if self._book.stopping:
            return "evaluations in flight; then the study stops"
        status = self._pool.status
        if status is None or status.evaluators:
            return ""
        return (
            f"{status.loading} evaluators are loading"
            if status.lives
            else "room for evaluators on the cluster"
        )


def _name_of(trial: Any) -> str:
    """A Ray Tune trial's name: that of its `TrialSpec`."""
    return str(trial.config["trial"])


def _resources(config: dict[str, Any]) -> Any:
    """What a trial reserves, by its configuration."""
    return _share_of_head(config["share"])


@cache  # Tune keeps it with every trial
def _share_of_head(share: float) -> Any:
    from ray import tune

    return tune.PlacementGroupFactory([{"CPU": 0, "node:__internal_head__": share}])


def _no_room(cpus: float, gpus: float) -> str:
    import ray

    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return (
        f"gpus_per_evaluator: {gpus:g}, cpus_per_evaluator: {cpus:g}, but no node of the cluster has them (it has "
        f"{has.get('GPU', 0):g} GPUs and {has.get('CPU', 0):g} CPUs in all). Connect to a cluster with such nodes, "
        "ask for less per evaluator, or give a number of evaluators if an autoscaler will bring the nodes."
    )
