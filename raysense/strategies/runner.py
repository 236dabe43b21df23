"""Strategies that read like stories: generators that ask questions and go on when they are answered.

An *inquiry* is one sequential line of thought (a bisection, say): a generator that yields a `Question`, is sent its
evaluations, and returns what it found. It may yield a list of questions to be answered side by side; then it is sent
the list of their evaluations. A *plan* is a generator that yields a list of inquiries, is sent the list of
what they found, and returns the study's outcome. `Story` turns a plan into an ask/tell strategy: the inquiries of
one stage go on side by side, so the evaluators stay busy although each inquiry is sequential.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from raysense.errors import RaysenseError
from raysense.records import Evaluation, Question
from raysense.strategies.budget import Purse
from raysense.study import Budget

Outcome = TypeVar("Outcome")
Inquiry = Generator[Question | Sequence[Question], Any, Any]
Plan = Generator[list[Inquiry], list[Any], Outcome]


class OutOfBudget(Exception):
    """Thrown into an inquiry whose next question the budget no longer covers; it returns what it has."""


@dataclass
class _Wish:
    """What an inquiry waits for: one question, or several side by side."""

    inquiry: int
    questions: tuple[Question, ...]
    is_list: bool
    answers: dict[str, Sequence[Evaluation]] = field(default_factory=dict)

    @property
    def as_one(self) -> Question:
        """For the purse: all or nothing."""
        return replace(self.questions[0], tasks=tuple(t for q in self.questions for t in q.tasks))

    @property
    def found(self) -> Sequence[Any]:
        """What the inquiry is sent."""
        answers = [self.answers[question.name] for question in self.questions]
        return answers if self.is_list else answers[0]


class Story(Generic[Outcome]):
    """Runs a plan as a `raysense.strategies.base.Strategy`.

    Args:
        plan: The plan.
        cost_of: What a question costs at most, in denoiser sample-forwards.
        purse: What may be spent; None for no limit.

    Attributes:
        done: The plan has come to its end.
        headline: One line for the live view; the plan sets it.
        wanted: Evaluations expected in all; the plan sets it.
        wanted_cost: Their sample-forwards; the plan sets it.
        outcome: What the plan returned.
        error: The `RaysenseError` that ended the plan.
        cost_of: See above.
        purse: What is spent, and what was not covered.
    """

    def __init__(
        self,
        plan: Callable[[Story[Outcome]], Plan[Outcome]],
        cost_of: Callable[[Question], int],
        purse: Purse | None = None,
    ) -> None:
        self.done = False
        self.headline = ""
        self.wanted = self.wanted_cost = 0
        self.outcome: Outcome | None = None
        self.error: RaysenseError | None = None
        self.cost_of = cost_of
        self.purse = purse or Purse(Budget(), cost_of)
        self._outstanding: dict[str, tuple[_Wish, Question]] = {}  # paid for and not yet answered, by name
        self._granted: deque[Question] = deque()  # of these, not yet asked
        self._ready: deque[_Wish] = deque()
        self._inquiries: list[Inquiry] = []
        self._found: list[Any] = []
        self._open = 0
        self._plan = plan(self)
        self._turn_page(first=True)

    def ask(self) -> Question | None:
        """The next question, or None while answers are outstanding or at the end."""
        while self._ready and not self._granted:
            wish = self._ready.popleft()
            if self.purse.covers(wish.as_one, (question for _, question in self._outstanding.values())):
                self._outstanding.update({question.name: (wish, question) for question in wish.questions})
                self._granted.extend(wish.questions)
            else:
                self._advance(wish.inquiry, lambda inquiry: inquiry.throw(OutOfBudget()))
        return self._granted.popleft() if self._granted else None

    def tell(self, question: Question, evaluations: Sequence[Evaluation]) -> None:
        """Send the answers to the inquiry that asked, once it has all that it waits for."""
        self.purse.charge(evaluations)
        wish, _ = self._outstanding.pop(question.name)
        wish.answers[question.name] = evaluations
        if len(wish.answers) == len(wish.questions):
            self._advance(wish.inquiry, lambda inquiry: inquiry.send(wish.found))

    def _advance(self, number: int, step: Callable[[Inquiry], Question | Sequence[Question]]) -> None:
        try:
            wanted = step(self._inquiries[number])
            if isinstance(wanted, Question):
                self._ready.append(_Wish(number, (wanted,), is_list=False))
            else:
                self._ready.append(_Wish(number, tuple(wanted), is_list=True))
        except StopIteration as finished:
            self._close(number, finished.value)
        except OutOfBudget:
            self._close(number, None)
        except RaysenseError as error:
            self._end(error)

    def _close(self, number: int, found: Any) -> None:
        self._found[number] = found
        self._open -= 1
        if self._open == 0:
            self._turn_page()

    def _turn_page(self, first: bool = False) -> None:
        """Send a stage's findings to the plan and start the inquiries of the next one."""
        try:
            while self._open == 0:
                self._inquiries = next(self._plan) if first else self._plan.send(self._found)
                first = False
                self._found = [None] * len(self._inquiries)
                self._open = len(self._inquiries)
                for number in range(len(self._inquiries)):
                    self._advance(number, next)
        except StopIteration as finished:
            self.outcome, self.done = finished.value, True
        except RaysenseError as error:
            self._end(error)

    def _end(self, error: RaysenseError) -> None:
        self.error, self.done = error, True
        self._ready.clear()
        self._granted.clear()
