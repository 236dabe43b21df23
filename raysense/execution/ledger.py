"""The books of a run: what is asked, what the store answers, what is left to measure. No Ray, no disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from raysense.errors import RaysenseError
from raysense.execution.earlier import Earlier
from raysense.execution.progress import Snapshot
from raysense.records import Evaluation, Question, Task
from raysense.strategies.base import Lookahead

log = logging.getLogger("raysense")


@dataclass
class PendingTrial:
    """A question of which at least one task must be measured.

    Attributes:
        question: The question.
        answers: To its first tasks, in order.
        until: The first task after these that is stored already: what failed is asked again, what followed it is not.
    """

    question: Question
    answers: list[Evaluation] = field(default_factory=list)
    until: int | None = None

    @property
    def settled(self) -> bool:
        """Every task is answered, or the stop rule has ended the question."""
        stop = self.question.stop
        ended = stop is not None and bool(self.answers) and stop.says_stop(self.answers[-1])
        return ended or len(self.answers) == len(self.question.tasks)

    @property
    def left(self) -> tuple[Task, ...]:
        """The tasks to be measured next, unless the stop rule ends the question first."""
        return () if self.settled else self.question.tasks[len(self.answers) : self.until]


class Ledger:
    """Takes questions from a strategy, answers from the store what it can, hands out the rest.

    Args:
        strategy: Asked and told in the order that `Lookahead` enforces.
        known: Evaluations by key, as the store had them when the run began.
        signature: The study's.
        earlier: A run whose rows are taken over where the store has none; None for none.
    """

    def __init__(
        self,
        strategy: Lookahead,
        known: Mapping[str, Evaluation],
        signature: str,
        earlier: Earlier | None = None,
    ) -> None:
        self._strategy = strategy
        self._known = known
        self._signature = signature
        self._earlier = earlier
        self._new: dict[str, Evaluation] = {}
        self._open: dict[str, PendingTrial] = {}
        self._stage = ""
        self._done = self._replayed = self._failed = self._images = self._nfe = self._spent = 0

    @property
    def finished(self) -> bool:
        """The strategy is done and nothing is outstanding."""
        return self._strategy.done

    def next(self) -> PendingTrial | None:
        """The next question with something to measure; None: wait for answers, or `finished`.

        Raises:
            RaysenseError: A question has no task, or the same one twice.
        """
        while (question := self._strategy.ask()) is not None:
            self._stage = question.stage
            if len({task.key(self._signature) for task in question.tasks}) != max(1, len(question.tasks)):
                raise RaysenseError(
                    f"`{question.name}`: asks nothing, or the same task twice; give each task once."
                )
            work = PendingTrial(question)
            self._replay(work)
            if not work.settled:
                self._open[question.name] = work
                return work
            self._strategy.tell(question, work.answers)
        return None

    def answer(self, work: PendingTrial, evaluation: Evaluation) -> bool:
        """Takes the evaluation of the question's next task; tells the strategy if that settles it.

        Returns:
            Whether the question is settled. An answer that was taken before (a trial that was restarted
            reports again) changes nothing.
        """
        if any(known.key == evaluation.key for known in work.answers):
            return work.settled
        work.answers.append(evaluation)
        log.info("%s", line_of(work.question, evaluation))
        # Another question may have had it measured in the meantime: its images are counted once.
        self._count(evaluation, replayed=evaluation.key in self._new)
        self._new[evaluation.key] = evaluation
        if len(work.answers) == work.until:
            self._replay(work)
        if work.settled:
            del self._open[work.question.name]
            self._strategy.tell(work.question, work.answers)
        return work.settled

    def _replay(self, work: PendingTrial) -> None:
        """Answer what the store answers, up to the first task that it does not."""
        tasks = work.question.tasks
        while not work.settled:
            task = tasks[len(work.answers)]
            answer = self._stored(task) or self._taken(work.question, task)
            if answer is None:
                break
            work.answers.append(answer)
            self._count(answer, replayed=True)
        later = range(len(work.answers) + 1, len(tasks))
        work.until = next((place for place in later if self._has(tasks[place])), None)

    def snapshot(self) -> Snapshot:
        """The counts; who executes adds the clock and the evaluators."""
        strategy = self._strategy.strategy
        return Snapshot(
            stage=self._stage,
            headline=strategy.headline,
            done=self._done,
            replayed=self._replayed,
            failed=self._failed,
            outstanding=sum(len(work.left) for work in self._open.values()),
            wanted=int(getattr(strategy, "wanted", 0)),
            spent=self._spent,
            wanted_nfe=int(getattr(strategy, "wanted_nfe", 0)),
            images=self._images,
            nfe=self._nfe,
        )

    def _stored(self, task: Task) -> Evaluation | None:
        key = task.key(self._signature)
        return self._new.get(key) or self._known.get(key)

    def _taken(self, question: Question, task: Task) -> Evaluation | None:
        taken = self._earlier.take(question, task) if self._earlier is not None else None
        if taken is not None:
            self._new[taken.key] = taken
        return taken

    def _has(self, task: Task) -> bool:
        return self._stored(task) is not None or (self._earlier is not None and self._earlier.has(task))

    def _count(self, evaluation: Evaluation, *, replayed: bool) -> None:
        self._done += 1
        self._failed += bool(evaluation.failed)
        self._spent += evaluation.nfe
        if replayed:
            self._replayed += 1
        else:
            self._images += evaluation.images
            self._nfe += evaluation.nfe


def line_of(question: Question, evaluation: Evaluation) -> str:
    """One line for the log: what was measured, and what it gave."""
    found = ", ".join(
        f"{name} {measure.value:.4g} [{measure.ci_low:.4g}, {measure.ci_high:.4g}]"
        for name, measure in evaluation.measures.items()
    )
    return (
        f"{question.name}: allocation {evaluation.allocation} on rung {evaluation.rung} in {evaluation.seconds:.1f} s "
        f"on {evaluation.evaluator}: {evaluation.failed or evaluation.collapsed or found or 'nothing measured'}"
    )
