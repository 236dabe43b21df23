"""What every strategy owes whoever executes it. A new strategy joins by one line in `STRATEGIES`."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest
import torch

from raysense.execution.executor import failure, signed
from raysense.execution.ledger import Ledger, PendingTrial
from raysense.records import Evaluation, EvaluationRequest, TrialSpec
from raysense.strategies.base import Lookahead, Strategy
from tests.execution.curves import Chain, Curves
from tests.execution.sleepers import Sleeper
from tests.strategies.test_schedule import Landscape, made_up

STAGES = {"baseline", "sensitivity", "search", "validation"}
Evaluate = Callable[[EvaluationRequest], Evaluation]


@dataclass
class Case:
    """A strategy, made anew for each run, and who answers it."""

    make: Callable[[], Strategy]
    evaluate: Evaluate


def default_schedule(**search: object) -> Case:
    search = {"bisections": 3, "rounds": 1, "offspring": 2, "levels": 4, **search}

    def make() -> Strategy:
        torch.manual_seed(0)  # the same weights, so the same study
        return made_up(**search)[3]

    _, inventory, grid, _ = made_up(**search)
    return Case(make, Landscape(inventory, grid).evaluate)


STRATEGIES: dict[str, Callable[[], Case]] = {
    "curves": lambda: Case(lambda: Curves(6, 5, stop_above=3.0), Sleeper().evaluate),
    "chain": lambda: Case(lambda: Chain(20, width=2), Sleeper().evaluate),
    "study": default_schedule,
    "study without solver": lambda: default_schedule(strategies=["uniform", "lamp", "erk"]),
}


@pytest.fixture(params=STRATEGIES)
def case(request: pytest.FixtureRequest) -> Case:
    return STRATEGIES[request.param]()


@dataclass
class Run:
    """What an execution saw."""

    asked: list[tuple[str, tuple[str, ...]]]
    answers: dict[str, Evaluation]
    strategy: Strategy


def execute(
    case: Case,
    *,
    lookahead: int = 4,
    workers: int = 1,
    seed: int = 0,
    known: Mapping[str, Evaluation] | None = None,
    evaluate: Evaluate | None = None,
) -> Run:
    """Runs to the end with workers that finish in a random order."""
    rng, strategy = random.Random(seed), case.make()
    run = Run([], dict(known or {}), strategy)

    class Watched:
        """Notes the trials, the ones that the store answers included."""

        done = property(lambda self: strategy.done)
        headline = property(lambda self: strategy.headline)

        def ask(self) -> TrialSpec | None:
            spec = strategy.ask()
            if spec is not None:
                assert spec.requests
                assert spec.stage in STAGES
                run.asked.append((spec.name, tuple(request.key("s") for request in spec.requests)))
            return spec

        def tell(self, spec: TrialSpec, evaluations: list[Evaluation]) -> None:
            strategy.tell(spec, evaluations)
            assert isinstance(strategy.headline, str)
            assert "\n" not in strategy.headline
            assert int(getattr(strategy, "wanted", 0)) >= 0

    watched: Strategy = Watched()  # type: ignore[assignment]
    ledger, running = Ledger(Lookahead(watched, lookahead), dict(known or {}), "s"), list[PendingTrial]()
    while not ledger.finished:
        while len(running) < workers and (work := ledger.next()) is not None:
            running.append(work)
        if not running:
            continue
        work = rng.choice(running)
        request = work.left[0]
        answer = signed(
            (evaluate or case.evaluate)(request), work.spec, request, signature="s", trial="t", life="l"
        )
        run.answers[answer.key] = answer
        if ledger.answer(work, answer):
            running.remove(work)
    return run


def test_it_ends_and_asks_nothing_more(case: Case) -> None:
    run = execute(case)
    assert run.strategy.done
    assert run.strategy.ask() is None
    names = [name for name, _ in run.asked]
    assert names
    assert len(names) == len(set(names))


def test_the_same_answers_give_the_same_trials_whoever_finishes_first(case: Case) -> None:
    """The same study on 1 and on 8 workers: decision 3."""
    reference = execute(case, lookahead=8, workers=1)
    other = execute(case, lookahead=8, workers=8, seed=1)
    assert other.asked == reference.asked


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_killed_anywhere_and_rebuilt_from_the_store_it_goes_on_the_same(case: Case, share: float) -> None:
    whole = execute(case)
    stored = dict(list(whole.answers.items())[: round(share * len(whole.answers))])
    measured: list[str] = []

    def evaluate(request: EvaluationRequest) -> Evaluation:
        measured.append(request.key("s"))
        return case.evaluate(request)

    again = execute(case, known=stored, evaluate=evaluate)
    assert again.asked == whole.asked
    assert set(measured).isdisjoint(stored)
    assert len(measured) == len(whole.answers) - len(stored)


@pytest.mark.parametrize("what", ["failed", "collapsed"])
@pytest.mark.parametrize("share", [0.15, 1.0])
def test_answers_that_are_none_do_not_end_it_in_an_exception(case: Case, what: str, share: float) -> None:
    """Evaluators fail and images break; the study goes on, or ends with an error that the user can read."""

    def evaluate(request: EvaluationRequest) -> Evaluation:
        if int(request.key("luck"), 16) % 1000 >= 1000 * share:
            return case.evaluate(request)
        if what == "collapsed":
            return replace(case.evaluate(request), collapsed="constant images")
        spec = TrialSpec("any", "search", (request,))
        return failure(spec, request, "out of memory", signature="s", trial="t", life="l")

    run = execute(case, evaluate=evaluate)
    assert run.strategy.done
