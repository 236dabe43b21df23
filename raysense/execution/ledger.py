"""The books of a run: what is asked, what the store answers, what is left to measure. No Ray, no disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from raysense.errors import RaysenseError
from raysense.execution.progress import Snapshot
from raysense.execution.reused_rows import ReusedRows
from raysense.records import Evaluation, EvaluationRequest, TrialSpec
from raysense.strategies.base import Lookahead

log = logging.getLogger("raysense")


@dataclass
class PendingTrial:
    """A trial of which at least one request must be measured.

    Attributes:
        spec: What was asked for.
        answers: To its first requests, in order.
        until: The first request after these that is stored already: what failed is asked again, what followed it
            is not.
    """

    spec: TrialSpec
    answers: list[Evaluation] = field(default_factory=list)
    until: int | None = None

    @property
    def settled(self) -> bool:
        """Every request is answered, or the stop rule has ended the trial."""
        stop = self.spec.stop
        ended = stop is not None and bool(self.answers) and stop.says_stop(self.answers[-1])
        return ended or len(self.answers) == len(self.spec.requests)

    @property
    def left(self) -> tuple[EvaluationRequest, ...]:
        """The requests to be measured next, unless the stop rule ends the trial first."""
        return () if self.settled else self.spec.requests[len(self.answers) : self.until]


class Ledger:
    """Takes trials from a strategy, answers from the store what it can, hands out the rest.

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
        earlier: ReusedRows | None = None,
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
        """The next trial with something to measure; None: wait for answers, or `finished`.

        Raises:
            RaysenseError: A trial has no request, or the same one twice.
        """
        while (spec := self._strategy.ask()) is not None:
            self._stage = spec.stage
            if len({request.key(self._signature) for request in spec.requests}) != max(1, len(spec.requests)):
                raise RaysenseError(
                    f"`{spec.name}`: asks nothing, or the same request twice; give each request once."
                )
            work = PendingTrial(spec)
            self._replay(work)
            if not work.settled:
                self._open[spec.name] = work
                return work
            self._strategy.tell(spec, work.answers)
        return None

    def answer(self, work: PendingTrial, evaluation: Evaluation) -> bool:
        """Takes the evaluation of the trial's next request; tells the strategy if that settles it.

        Returns:
            Whether the trial is settled. An answer that was taken before (a trial that was restarted
            reports again) changes nothing.
        """
        if any(known.key == evaluation.key for known in work.answers):
            return work.settled
        work.answers.append(evaluation)
        log.info("%s", line_of(work.spec, evaluation))
        # Another trial may have had it measured in the meantime: its images are counted once.
        self._count(evaluation, replayed=evaluation.key in self._new)
        self._new[evaluation.key] = evaluation
        if len(work.answers) == work.until:
            self._replay(work)
        if work.settled:
            del self._open[work.spec.name]
            self._strategy.tell(work.spec, work.answers)
        return work.settled

    def _replay(self, work: PendingTrial) -> None:
        """Answer what the store answers, up to the first request that it does not."""
        requests = work.spec.requests
        while not work.settled:
            request = requests[len(work.answers)]
            answer = self._stored(request) or self._taken(work.spec, request)
            if answer is None:
                break
            work.answers.append(answer)
            self._count(answer, replayed=True)
        later = range(len(work.answers) + 1, len(requests))
        work.until = next((place for place in later if self._has(requests[place])), None)

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

    def _stored(self, request: EvaluationRequest) -> Evaluation | None:
        key = request.key(self._signature)
        return self._new.get(key) or self._known.get(key)

    def _taken(self, spec: TrialSpec, request: EvaluationRequest) -> Evaluation | None:
        taken = self._earlier.take(spec, request) if self._earlier is not None else None
        if taken is not None:
            self._new[taken.key] = taken
        return taken

    def _has(self, request: EvaluationRequest) -> bool:
        return self._stored(request) is not None or (self._earlier is not None and self._earlier.has(request))

    def _count(self, evaluation: Evaluation, *, replayed: bool) -> None:
        self._done += 1
        self._failed += bool(evaluation.failed)
        if not evaluation.taken_from:  # what an earlier run measured is no part of what is wanted here
            self._spent += evaluation.nfe
        if replayed:
            self._replayed += 1
        else:
            self._images += evaluation.images
            self._nfe += evaluation.nfe


def line_of(spec: TrialSpec, evaluation: Evaluation) -> str:
    """One line for the log: what was measured, and what it gave."""
    found = ", ".join(
        f"{name} {measure.value:.4g} [{measure.ci_low:.4g}, {measure.ci_high:.4g}]"
        for name, measure in evaluation.measures.items()
    )
    return (
        f"{spec.name}: allocation {evaluation.allocation} on rung {evaluation.rung} in {evaluation.seconds:.1f} s "
        f"on {evaluation.evaluator}: {evaluation.failed or evaluation.collapsed or found or 'nothing measured'}"
    )
