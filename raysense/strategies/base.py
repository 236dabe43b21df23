"""What a search strategy is, and the rule that keeps its decisions independent of the cluster.

A strategy is a pure ask/tell object: it knows no clock, no Ray and no disk. Whoever executes it
(`raysense.execution`) asks for trials, has them answered, and tells the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from raysense.errors import RaysenseError
from raysense.records import Evaluation, TrialSpec

ASKED_PER_EVALUATOR, RUNNING_PER_EVALUATOR = 3, 1.5
"""Trials asked and not yet answered, and of these at work, for each evaluator: so that none idles."""


class Strategy(Protocol):
    """Decides what to measure next. The same tells in the same order give the same asks.

    Attributes:
        done: Nothing is left to ask, and what is outstanding will not change that.
        headline: One line for the live view: the incumbent's sparsity and its margins.

    A strategy may also have an attribute ``wanted: int``, the number of evaluations it expects to have
    asked for in the end (answers from the store included), and ``wanted_nfe: int``, their NFE; the live
    view derives the time left from them.
    """

    @property
    def done(self) -> bool: ...  # noqa: D102

    @property
    def headline(self) -> str: ...  # noqa: D102

    def ask(self) -> TrialSpec | None:
        """The next trial, or None: wait for outstanding answers, or, when `done`, finished."""
        ...

    def tell(self, spec: TrialSpec, evaluations: Sequence[Evaluation]) -> None:
        """The answers to `spec`, in request order; fewer than its requests if its stop rule ended it.

        Called once a trial, in ask order. The evaluations carry no `samples`: per-image rows are
        read from the store.
        """
        ...


class Lookahead:
    """Lets ask number t see only the answers to asks up to t − W, whoever finished first.

    If the strategy answers None although nothing is missing by that rule, further answers are handed
    over one by one, still in ask order, until it asks again. The sequence of asks and tells that the
    strategy sees is therefore a function of the answers alone, not of the order in which they arrived.

    Args:
        strategy: The strategy to wrap.
        width: W ≥ 1, the number of asks that may be outstanding; at least the cluster's width, or
            evaluators idle. 1 is a strictly sequential study.
    """

    def __init__(self, strategy: Strategy, width: int) -> None:
        if width < 1:
            raise RaysenseError(f"lookahead: {width} is not a number of trials; give at least 1.")
        self.strategy = strategy
        self.width = width
        self._asked: list[TrialSpec] = []  # asked and not yet told, in ask order
        self._answers: dict[str, Sequence[Evaluation]] = {}  # arrived early: trial name -> answers
        self._names: set[str] = set()
        self._waits = False  # the strategy answered None and has been told nothing since

    @property
    def outstanding(self) -> int:
        """Trials asked whose answers have not arrived."""
        return len(self._asked) - len(self._answers)

    @property
    def done(self) -> bool:
        """Nothing to ask and nothing outstanding."""
        return self.strategy.done and not self._asked

    def ask(self) -> TrialSpec | None:
        """The next trial, or None if answers must arrive first, or if `done`.

        Raises:
            RaysenseError: The strategy repeats a trial's name, or waits although it knows all answers.
        """
        while len(self._asked) >= self.width:
            if not self._tell_oldest():
                return None
        while self._waits or (spec := self.strategy.ask()) is None:
            self._waits = True
            if not self._asked:
                if self.strategy.done:
                    return None
                raise RaysenseError(
                    f"{type(self.strategy).__name__}: waits for an answer although none is outstanding; "
                    "a strategy must ask or set `done`."
                )
            if not self._tell_oldest():
                return None
        if spec.name in self._names:
            raise RaysenseError(
                f"{type(self.strategy).__name__}: asked `{spec.name}` twice; trial names are unique."
            )
        self._names.add(spec.name)
        self._asked.append(spec)
        return spec

    def tell(self, spec: TrialSpec, evaluations: Sequence[Evaluation]) -> None:
        """Takes the answers to `spec`, in any order of trials; hands them on when their turn comes."""
        if spec.name in self._answers or all(q.name != spec.name for q in self._asked):
            raise RaysenseError(f"`{spec.name}` is not outstanding; each trial is answered once.")
        self._answers[spec.name] = evaluations
        if self.strategy.done:  # nothing is asked any more: hand over what is complete
            while self._tell_oldest():
                pass

    def _tell_oldest(self) -> bool:
        if not self._asked or self._asked[0].name not in self._answers:
            return False
        spec = self._asked.pop(0)
        self._waits = False
        self.strategy.tell(spec, self._answers.pop(spec.name))
        return True
