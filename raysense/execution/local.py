"""Runs a strategy in this process, one evaluation after another: tests, notebooks, laptops without Ray."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from raysense.errors import RaysenseError
from raysense.execution.compactor import COMPACT_EVERY
from raysense.execution.executor import ATTEMPTS, Measurer, failure, log, new_life, signed
from raysense.execution.interrupt import Interrupt
from raysense.execution.ledger import Ledger
from raysense.execution.progress import Clock, OnProgress, Outcome, Snapshot
from raysense.execution.reused_rows import ReusedRows
from raysense.records import Evaluation, EvaluationRequest, TrialSpec
from raysense.store.rows import without_samples
from raysense.store.store import Store
from raysense.strategies.base import Lookahead, Strategy

TRIAL = "in-process"


@dataclass(frozen=True)
class LocalExecutor:
    """Executes in this process.

    Attributes:
        measurer: Who measures.
    """

    measurer: Measurer

    def run(
        self,
        strategy: Strategy,
        store: Store,
        *,
        signature: str,
        lookahead: int = 1,
        on_progress: OnProgress | None = None,
        earlier: ReusedRows | None = None,
    ) -> Outcome:
        """See `Executor`."""
        clock, life = Clock(0.5), new_life()
        with store.lock() as lock, Interrupt() as interrupt:
            store.forget_failed()
            ledger = Ledger(Lookahead(strategy, lookahead), store.known(), signature, earlier)

            def snapshot(busy: int) -> Snapshot:
                return replace(ledger.snapshot(), seconds=clock.seconds, busy=busy, evaluators=1)

            uncompacted = 0
            try:
                while not interrupt.asked and (work := ledger.next()) is not None:
                    while work.left and not interrupt.asked:
                        lock.refuse_if_lost()
                        request = work.left[0]
                        evaluation = _measured(self.measurer, work.spec, request, signature, life)
                        store.put(evaluation, request.allocation)
                        uncompacted += 1
                        ledger.answer(work, without_samples(evaluation))
                        if on_progress is not None and clock.due():
                            on_progress(snapshot(1))
                    if uncompacted >= COMPACT_EVERY:
                        store.compact()
                        uncompacted = 0
            finally:
                store.compact()
            if on_progress is not None:
                on_progress(snapshot(0))
            return Outcome(finished=ledger.finished, snapshot=snapshot(0))


def _measured(
    measurer: Measurer, spec: TrialSpec, request: EvaluationRequest, signature: str, life: str
) -> Evaluation:
    """The request's evaluation, or after `ATTEMPTS` failures one that says why it failed."""
    for attempt in range(1, ATTEMPTS + 1):
        started = time.monotonic()
        try:
            evaluation = measurer.evaluate(request)
        except RaysenseError:
            raise  # something the user can mend: no other request would fare better
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            log.warning(
                "%s: allocation %s on rung %s failed (attempt %d of %d, %.1f s): %s",
                spec.name,
                request.allocation.key,
                request.rung,
                attempt,
                ATTEMPTS,
                time.monotonic() - started,
                why,
            )
            continue
        return signed(evaluation, spec, request, signature=signature, trial=TRIAL, life=life)
    return failure(spec, request, why, signature=signature, trial=TRIAL, life=life)
