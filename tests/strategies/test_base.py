"""Decision 3: what a strategy sees depends on the answers, not on who finished first."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysense.errors import RaysenseError
from raysense.records import Evaluation, Measure, TrialSpec
from raysense.strategies.base import Lookahead, Strategy
from tests.execution.curves import Chain, Curves


def answer(spec: TrialSpec) -> list[Evaluation]:
    return [
        Evaluation(
            key=request.key("s"),
            trial=spec.name,
            stage=spec.stage,
            allocation=request.allocation.key,
            rung=request.rung,
            replicate=request.replicate,
            measures={"clip_drop": Measure(int(request.key("s"), 16) % 1000 / 1000, 0.0, 1.0, 1, "none")},
            zeros=0,
            images=0,
            nfe=0,
            seconds=0.0,
        )
        for request in spec.requests
    ]


def play(strategy: Strategy, width: int, workers: int, seed: int) -> None:
    """Executes with `workers` that finish in a random order."""
    lookahead, rng, running = Lookahead(strategy, width), random.Random(seed), list[TrialSpec]()
    while not lookahead.done:
        while len(running) < workers and (spec := lookahead.ask()) is not None:
            running.append(spec)
        if running:
            spec = running.pop(rng.randrange(len(running)))
            lookahead.tell(spec, answer(spec))


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 9), workers=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_decisions_depend_on_the_answers_alone(width: int, workers: int, seed: int) -> None:
    reference, other = Chain(25), Chain(25)
    play(reference, width, 1, 0)
    play(other, width, workers, seed)
    assert other.trace == reference.trace


def test_an_ask_sees_exactly_the_answers_up_to_t_minus_w() -> None:
    strategy = Chain(6)
    lookahead = Lookahead(strategy, 3)
    asked = [lookahead.ask() for _ in range(3)]
    assert lookahead.ask() is None
    assert asked[0]
    assert asked[1]
    assert asked[2]
    lookahead.tell(asked[1], answer(asked[1]))
    assert lookahead.ask() is None  # ask 0 has not been answered
    lookahead.tell(asked[0], answer(asked[0]))
    assert lookahead.ask() is not None
    assert [line for line in strategy.trace if "search" in line] == [
        line for line in strategy.trace if line.startswith("search/1 ")
    ]  # ask 3 saw answer 0, not answer 1
    assert lookahead.outstanding == 2


def test_everything_is_told_in_ask_order_at_the_end() -> None:
    strategy = Curves(4, 2)
    lookahead = Lookahead(strategy, 8)
    asked = [spec for _ in range(4) if (spec := lookahead.ask())]
    for spec in reversed(asked):
        assert not lookahead.done
        lookahead.tell(spec, answer(spec))
    assert lookahead.done
    assert [name for name, _ in strategy.told] == [spec.name for spec in asked]


class Waits:
    """Asks two trials, then waits for both answers before the third."""

    done, headline = False, ""

    def __init__(self) -> None:
        self.source, self.tells, self.calls = Chain(3), 0, 0

    def ask(self) -> TrialSpec | None:
        self.calls += 1
        if self.source.asked == 2 and self.tells < 2:
            return None
        spec = self.source.ask()
        self.done = self.source.done
        return spec

    def tell(self, spec: TrialSpec, evaluations: object) -> None:
        self.tells += 1


def test_a_strategy_that_waits_is_told_more_one_by_one() -> None:
    strategy = Waits()
    lookahead = Lookahead(strategy, 10)
    first, second = lookahead.ask(), lookahead.ask()
    assert first
    assert second
    assert lookahead.ask() is None
    assert lookahead.ask() is None
    assert strategy.calls == 3  # it is not asked again before it has been told something
    lookahead.tell(second, answer(second))
    assert lookahead.ask() is None
    lookahead.tell(first, answer(first))
    assert lookahead.ask() is not None


def test_misuse_is_an_error() -> None:
    with pytest.raises(RaysenseError, match="lookahead: 0"):
        Lookahead(Chain(1), 0)
    lookahead = Lookahead(Chain(2), 2)
    spec = lookahead.ask()
    assert spec is not None
    lookahead.tell(spec, answer(spec))
    with pytest.raises(RaysenseError, match="not outstanding"):
        lookahead.tell(spec, answer(spec))


class Stuck(Chain):
    done = False

    def ask(self) -> TrialSpec | None:
        return None


class Repeats(Chain):
    def ask(self) -> TrialSpec | None:
        self.asked = 0
        return super().ask()


def test_a_faulty_strategy_is_an_error() -> None:
    with pytest.raises(RaysenseError, match="waits for an answer although none is outstanding"):
        Lookahead(Stuck(1), 2).ask()
    lookahead = Lookahead(Repeats(5), 4)
    lookahead.ask()
    with pytest.raises(RaysenseError, match="twice"):
        lookahead.ask()
