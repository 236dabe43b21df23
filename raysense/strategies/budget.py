"""What a study may spend: NFE, evaluators' hours, or money. Knows no clock, only stored seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from raysense.records import CALIBRATION, Evaluation, TrialSpec
from raysense.study import Budget

SLOWER = 1.25
"""A trial is taken to last so many times what its rungs' evaluations have lasted on average, per NFE."""


@dataclass(frozen=True)
class Refusal:
    """The first trial that a budget did not cover.

    Attributes:
        field: The limit that stopped it, e.g. ``budget.max_hours``.
        limit: That limit.
        unit: Of the amounts, for people.
        spent: What evaluations had cost by then, and what those under way may cost.
        needs: What the trial may have cost.
        kept: What was held back for later stages, validation above all.
        trial: Its name.
        stage: Its stage.
    """

    field: str
    limit: float
    unit: str
    spent: float
    needs: float
    kept: float
    trial: str
    stage: str

    def __str__(self) -> str:
        """One sentence: the limit, what is spent, what the next step needs."""
        kept = f", and {self.kept:,.5g} are held back for what must follow" if self.kept else ""
        return (
            f"`{self.field}` is {self.limit:,.5g} {self.unit}: {self.spent:,.5g} are spent or under way, the next step "
            f"({self.trial}) may cost {self.needs:,.5g}{kept}"
        )


class BudgetTracker:
    """Keeps to a budget.

    NFE are known before a trial is asked. Seconds are not: they are foreseen from the stored seconds of
    the evaluations so far, so that replaying a store spends the same. The first evaluations of a study, before any
    is finished, are asked in any case where only hours or money are limited.

    Args:
        budget: The limits; any may be missing.
        cost_of: What a trial costs at most, in NFE.
        reserve: Stage -> NFE that its trials leave for later stages.

    Attributes:
        reserve: See above.
        spent: NFE of all evaluations so far that no earlier run measured, each counted once.
        seconds: Their seconds.
        image_cost: NFE of an image, as counted so far: the least, as images may be sampled anew for want of
            memory; None before any was sampled.
        refusal: What was not covered, at first; None while all was.
    """

    def __init__(
        self, budget: Budget, cost_of: Callable[[TrialSpec], int], reserve: Mapping[str, int] | None = None
    ) -> None:
        self._cost_of, self.reserve = cost_of, dict(reserve or {})
        self._limits: list[tuple[str, float, str, float]] = []  # field, limit, unit, units a second
        if budget.max_hours is not None:
            self._limits.append(("budget.max_hours", budget.max_hours, "evaluator-hours", 1 / 3600))
        if budget.max_price is not None and budget.price_per_hour is not None:
            self._limits.append(
                ("budget.max_price", budget.max_price, "of money", budget.price_per_hour / 3600)
            )
        self._max_cost = budget.max_nfe
        self.spent, self.seconds = 0, 0.0
        self.image_cost: int | None = None
        self.refusal: Refusal | None = None
        self._counted: set[str] = set()
        self._by_rung: dict[str, tuple[float, int]] = {}  # seconds and NFE

    def charge(self, evaluations: Iterable[Evaluation]) -> None:
        """Pay for evaluations, each once; for one that an earlier run measured nothing."""
        for evaluation in evaluations:
            if evaluation.key in self._counted:
                continue
            if evaluation.key:
                self._counted.add(evaluation.key)
            if not evaluation.taken_from:
                self.spent += evaluation.nfe
                self.seconds += evaluation.seconds
            if evaluation.images and evaluation.rung != CALIBRATION:
                counted = math.ceil(evaluation.nfe / evaluation.images)
                self.image_cost = min(counted, self.image_cost or counted)
            seconds, cost = self._by_rung.get(evaluation.rung, (0.0, 0))
            self._by_rung[evaluation.rung] = seconds + evaluation.seconds, cost + evaluation.nfe

    def covers(self, spec: TrialSpec, outstanding: Iterable[TrialSpec]) -> bool:
        """Whether a trial may be asked beside those under way; the first that may not is remembered."""
        under_way = list(outstanding)
        reserve = self.reserve.get(spec.stage, 0)
        if self._max_cost is not None:
            promised = self.spent + sum(map(self._cost_of, under_way))
            field = ("budget.max_nfe", float(self._max_cost), "NFE")
            if not self._fits(field, promised, self._cost_of(spec), reserve, spec):
                return False
        if not self._limits:
            return True
        seconds = self.seconds + sum(map(self._seconds_of, under_way))
        needs, kept = self._seconds_of(spec), reserve * self._pace("validation")
        return all(
            self._fits((name, limit, unit), seconds * per, needs * per, kept * per, spec)
            for name, limit, unit, per in self._limits
        )

    def _fits(
        self, field: tuple[str, float, str], spent: float, needs: float, kept: float, spec: TrialSpec
    ) -> bool:
        if spent + needs + kept <= field[1]:
            return True
        if self.refusal is None:
            self.refusal = Refusal(*field, spent, needs, kept, spec.name, spec.stage)
        return False

    def _seconds_of(self, spec: TrialSpec) -> float:
        return SLOWER * self._cost_of(spec) * max(self._pace(request.rung) for request in spec.requests)

    def _pace(self, rung: str) -> float:
        """Seconds an NFE on a rung so far, or on the slowest one; 0 before anything is known."""
        known = {name: seconds / cost for name, (seconds, cost) in self._by_rung.items() if cost}
        return known.get(rung, max(known.values(), default=0.0))
