"""Strategies written as coroutines: generators that ask for trials and go on when they are answered.

A *coroutine* is one sequential line of thought (a bisection, say): a generator that yields a `TrialSpec`, is sent its
evaluations, and returns what it found. It may yield a list of trials to be answered side by side; then it is sent
the list of their evaluations. A *schedule* is a generator that yields a list of coroutines, is sent the list of
what they found, and returns the study's outcome; a *stage* is a part of a schedule. `StrategyRunner` turns a schedule
into an ask/tell strategy: the coroutines that were yielded together go on side by side, so the evaluators stay busy
although each coroutine is sequential.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from raysense.errors import RaysenseError
from raysense.records import Evaluation, TrialSpec
from raysense.strategies.budget import BudgetTracker
from raysense.study import Budget

Outcome = TypeVar("Outcome")
Coroutine = Generator[TrialSpec | Sequence[TrialSpec], Any, Any]
Schedule = Generator[list[Coroutine], list[Any], Outcome]
Stage = Generator[list[Coroutine], list[Any], Outcome]


class OutOfBudget(Exception):
    """Thrown into a coroutine whose next trial the budget no longer covers; it returns what it has."""


@dataclass
class _Waiting:
    """What a coroutine waits for: one trial, or several side by side."""

    coroutine: int
    specs: tuple[TrialSpec, ...]
    is_list: bool
    answers: dict[str, Sequence[Evaluation]] = field(default_factory=dict)

    @property
    def as_one(self) -> TrialSpec:
        """For the tracker: all or nothing."""
        return replace(
            self.specs[0], requests=tuple(request for spec in self.specs for request in spec.requests)
        )

    @property
    def found(self) -> Sequence[Any]:
        """What the coroutine is sent."""
        answers = [self.answers[spec.name] for spec in self.specs]
        return answers if self.is_list else answers[0]


class StrategyRunner(Generic[Outcome]):
    """Runs a schedule as a `raysense.strategies.base.Strategy`.

    Args:
        schedule: The schedule.
        cost_of: What a trial costs at most, in NFE.
        tracker: What may be spent; None for no limit.

    Attributes:
        done: The schedule has come to its end.
        headline: One line for the live view; the schedule sets it.
        wanted: Evaluations expected in all; the schedule sets it.
        wanted_nfe: Their NFE; the schedule sets it.
        outcome: What the schedule returned.
        error: The `RaysenseError` that ended the schedule.
        cost_of: See above.
        tracker: What is spent, and what was not covered.
    """

    def __init__(
        self,
        schedule: Callable[[StrategyRunner[Outcome]], Schedule[Outcome]],
        cost_of: Callable[[TrialSpec], int],
        tracker: BudgetTracker | None = None,
    ) -> None:
        self.done = False
        self.headline = ""
        self.wanted = self.wanted_nfe = 0
        self.outcome: Outcome | None = None
        self.error: RaysenseError | None = None
        self.cost_of = cost_of
        self.tracker = tracker or BudgetTracker(Budget(), cost_of)
        self._outstanding: dict[
            str, tuple[_Waiting, TrialSpec]
        ] = {}  # paid for and not yet answered, by name
        self._granted: deque[TrialSpec] = deque()  # of these, not yet asked
        self._ready: deque[_Waiting] = deque()
        self._coroutines: list[Coroutine] = []
        self._found: list[Any] = []
        self._open = 0
        self._starting = False
        self._schedule = schedule(self)
        self._next_stage(first=True)

    def ask(self) -> TrialSpec | None:
        """The next trial, or None while answers are outstanding or at the end."""
        while self._ready and not self._granted:
            waiting = self._ready.popleft()
            if self.tracker.covers(waiting.as_one, (spec for _, spec in self._outstanding.values())):
                self._outstanding.update({spec.name: (waiting, spec) for spec in waiting.specs})
                self._granted.extend(waiting.specs)
            else:
                self._advance(waiting.coroutine, lambda coroutine: coroutine.throw(OutOfBudget()))
        return self._granted.popleft() if self._granted else None

    def tell(self, spec: TrialSpec, evaluations: Sequence[Evaluation]) -> None:
        """Send the answers to the coroutine that asked, once it has all that it waits for."""
        self.tracker.charge(evaluations)
        waiting, _ = self._outstanding.pop(spec.name)
        waiting.answers[spec.name] = evaluations
        if len(waiting.answers) == len(waiting.specs):
            self._advance(waiting.coroutine, lambda coroutine: coroutine.send(waiting.found))

    def _advance(self, number: int, step: Callable[[Coroutine], TrialSpec | Sequence[TrialSpec]]) -> None:
        try:
            wanted = step(self._coroutines[number])
            if isinstance(wanted, TrialSpec):
                self._ready.append(_Waiting(number, (wanted,), is_list=False))
            else:
                self._ready.append(_Waiting(number, tuple(wanted), is_list=True))
            return
        except StopIteration as finished:
            found = finished.value
        except OutOfBudget:
            found = None
        except RaysenseError as error:
            self._end(error)
            return
        self._close(number, found)  # not while an exception is handled: a later error would drag it along

    def _close(self, number: int, found: Any) -> None:
        self._found[number] = found
        self._open -= 1
        if self._open == 0 and not self._starting:
            self._next_stage()

    def _next_stage(self, first: bool = False) -> None:
        """Send a stage's findings to the schedule and start the coroutines of the next one."""
        try:
            while self._open == 0:
                self._coroutines = next(self._schedule) if first else self._schedule.send(self._found)
                first = False
                self._found = [None] * len(self._coroutines)
                self._open = len(self._coroutines)
                self._starting = True  # those that end without asking do not begin the stage after this one
                for number in range(len(self._coroutines)):
                    self._advance(number, next)
                self._starting = False
        except StopIteration as finished:
            self.outcome, self.done = finished.value, True
        except RaysenseError as error:
            self._end(error)

    def _end(self, error: RaysenseError) -> None:
        self.error, self.done = error, True
        self._ready.clear()
        self._granted.clear()
