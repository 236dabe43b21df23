"""Ledger and in-process executor: replay, stop rules, failures, look-ahead, Ctrl-C."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.execution.executor import EvaluatorSpec, failure, signed
from raysense.execution.interrupt import Interrupt
from raysense.execution.ledger import Ledger, PendingTrial
from raysense.execution.local import LocalExecutor
from raysense.execution.progress import Outcome, Snapshot
from raysense.records import Evaluation, EvaluationRequest, TrialSpec
from raysense.store import Store
from raysense.strategies.base import Lookahead, Strategy
from tests.execution.curves import Chain, Curves
from tests.execution.sleepers import Sleeper


class Counted(Sleeper):
    """Counts; fails or interrupts at a chosen call."""

    def __init__(self, interrupt_at: int = 0, **arguments: object) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self.calls, self.interrupt_at = 0, interrupt_at

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        self.calls += 1
        if self.calls == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        return super().evaluate(request)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"), create=True)


def run(strategy: Strategy, evaluator: Sleeper, store: Store, lookahead: int = 3) -> Outcome:
    return LocalExecutor(evaluator).run(strategy, store, signature="s", lookahead=lookahead)


def test_every_evaluation_is_measured_stored_and_told_once(store: Store) -> None:
    strategy, evaluator = Curves(5, 4), Counted()
    outcome = run(strategy, evaluator, store)
    assert outcome.finished
    assert evaluator.calls == len(store.evaluations()) == 20
    assert (outcome.snapshot.done, outcome.snapshot.replayed, outcome.snapshot.outstanding) == (20, 0, 0)
    assert (outcome.snapshot.images, outcome.snapshot.nfe) == (20 * 16, 20 * 32)
    rows = store.table("evaluations").to_pylist()
    assert {row["ray_trial"] for row in rows} == {"in-process"}
    assert all(row["evaluator"] and row["trial"].startswith("sensitivity/unet:layer") for row in rows)
    assert {row["allocation"] for row in rows} == set(store.table("allocations")["allocation"].to_pylist())


def test_stored_answers_are_replayed_not_measured(store: Store) -> None:
    first, again = Chain(8, width=2), Chain(8, width=2)
    run(first, Counted(), store)
    evaluator = Counted()
    outcome = run(again, evaluator, store)
    assert evaluator.calls == 0
    assert again.trace == first.trace
    assert (outcome.snapshot.replayed, outcome.snapshot.measured) == (16, 0)


def test_a_stop_rule_ends_a_trial_and_replays_the_same(store: Store) -> None:
    first, again = Curves(4, 6, stop_above=3.0), Curves(4, 6, stop_above=3.0)
    run(first, Counted(), store)
    assert all(values[-1] > 3 and len(values) < 6 for _, values in first.told)
    outcome = run(again, Counted(), store)
    assert again.told == first.told
    assert outcome.snapshot.measured == 0


def test_ctrl_c_once_stops_after_the_evaluation_in_flight_and_resumes(store: Store) -> None:
    evaluator = Counted(interrupt_at=6)
    outcome = run(Curves(5, 4), evaluator, store)
    assert not outcome.finished
    assert evaluator.calls == len(store.evaluations()) == 6
    resumed, whole = Curves(5, 4), Curves(5, 4)
    assert run(resumed, Counted(), store).finished
    run(whole, Counted(), Store.open(f"{store.uri}-whole", create=True))
    assert resumed.told == whole.told


def test_ctrl_c_twice_stops_now() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_request_that_fails_again_and_again_is_a_failed_row(store: Store) -> None:
    strategy = Curves(3, 3)
    outcome = run(strategy, Counted(fail_on="layer001=2"), store)
    assert outcome.finished
    assert outcome.snapshot.failed == 1
    failed = [row for row in store.table("evaluations").to_pylist() if row["failed"]]
    assert [row["failed"] for row in failed] == ["ValueError: cannot measure unet:layer001=2"]
    again, mended = Curves(3, 3), Counted()
    assert run(again, mended, store).snapshot.failed == 0
    assert mended.calls == 1  # what could not be measured, and nothing else
    assert not [evaluation for evaluation in store.evaluations() if evaluation.failed]
    assert [len(values) for _, values in strategy.told] == [3, 3, 3]


class Broken(Sleeper):
    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        raise RaysenseError("prompts: file gone")


def test_what_the_user_can_mend_stops_the_study(store: Store) -> None:
    with pytest.raises(RaysenseError, match="file gone"):
        run(Curves(1, 1), Broken(), store)
    with store.lock():
        pass


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_decisions_are_the_same_on_any_number_of_workers(workers: int, tmp_path: Path) -> None:
    """Workers of unequal speed, one ten times slower, finish in any order; the asks stay the same."""
    reference = Chain(40, width=2)
    run(reference, Sleeper(), Store.open(str(tmp_path), create=True), lookahead=8)
    strategy, sleeper = Chain(40, width=2), Sleeper()
    ledger = Ledger(Lookahead(strategy, 8), {}, "s")
    rng, running = random.Random(workers), list[PendingTrial]()
    while not ledger.finished:
        while len(running) < workers and (work := ledger.next()) is not None:
            running.append(work)
        slow = 0 if len(running) == 1 or rng.random() < 0.1 else 1
        work = running[slow + rng.randrange(len(running) - slow)]
        if ledger.answer(work, answered(sleeper, work.spec, work.left[0])):
            running.remove(work)
    assert strategy.trace == reference.trace


def answered(sleeper: Sleeper, spec: TrialSpec, request: EvaluationRequest) -> Evaluation:
    return signed(sleeper.evaluate(request), spec, request, signature="s", trial="t", life="l")


def test_an_answer_that_is_reported_again_changes_nothing() -> None:
    strategy, sleeper = Curves(1, 3), Sleeper()
    ledger = Ledger(Lookahead(strategy, 2), {}, "s")
    work = ledger.next()
    assert work is not None
    first = answered(sleeper, work.spec, work.spec.requests[0])
    assert not ledger.answer(work, first)
    assert not ledger.answer(work, first)
    assert ledger.snapshot().done == 1
    assert len(work.left) == 2


def test_an_evaluation_that_two_trials_share_is_counted_once() -> None:
    request = EvaluationRequest(Allocation({"unet:a": 1}), "probe")

    class Twice(Curves):
        def ask(self) -> TrialSpec | None:
            spec = super().ask()
            return None if spec is None else TrialSpec(spec.name, spec.stage, (request,))

    ledger, sleeper = Ledger(Lookahead(Twice(2, 1), 2), {}, "s"), Sleeper()
    works = [work for _ in range(2) if (work := ledger.next())]
    for work in works:
        assert ledger.answer(work, answered(sleeper, works[0].spec, request))
    assert (ledger.snapshot().done, ledger.snapshot().replayed, ledger.snapshot().images) == (2, 1, 16)


@pytest.mark.parametrize("requests", [(), (EvaluationRequest(Allocation({"a": 1}), "probe"),) * 2])
def test_a_trial_gives_each_request_once(requests: tuple[EvaluationRequest, ...]) -> None:
    class Odd(Curves):
        def ask(self) -> TrialSpec | None:
            self.asked += 1
            return TrialSpec("odd", "search", requests)

    with pytest.raises(RaysenseError, match="`odd`"):
        Ledger(Lookahead(Odd(2, 1), 2), {}, "s").next()


def test_a_failure_row_names_trial_and_request() -> None:
    strategy = Curves(1, 1)
    spec = strategy.ask()
    assert spec is not None
    row = failure(spec, spec.requests[0], "out of memory", signature="s", trial="t", life="l")
    assert (row.trial, row.failed, row.ray_trial) == (spec.name, "out of memory", "t")
    assert row.key == spec.requests[0].key("s")


def test_an_evaluator_that_cannot_be_imported_is_named() -> None:
    for target in ("no.such.module:make", "tests.execution.sleepers:nothing", "tests.execution.sleepers"):
        with pytest.raises(RaysenseError, match=target):
            EvaluatorSpec(target).build()
    assert isinstance(EvaluatorSpec("tests.execution.sleepers:sleeper", {"seconds": 1.0}).build(), Sleeper)


def test_progress_is_reported(store: Store) -> None:
    seen: list[Snapshot] = []
    LocalExecutor(Sleeper()).run(Curves(2, 2), store, signature="s", lookahead=2, on_progress=seen.append)
    assert seen[-1].done == seen[-1].wanted == 4
    assert seen[-1].busy == 0
    assert seen[-1].stage == "sensitivity"
    assert seen[-1].headline == "2 curves"
