"""How long an evaluation may take before its evaluator is replaced."""

from __future__ import annotations

from raysense.records import CALIBRATION, Evaluation, EvaluationRequest

SLOWER = 20.0
"""An evaluation is given so many times what the slowest one so far would have taken."""

UNKNOWN_SECONDS = 86_400.0
"""What is given to an evaluation of which nothing is foreseen: the first ones of a study, a calibration."""


class TimeLimits:
    """How long an evaluation may take, from what evaluations have taken so far. Generous: for those that hang.

    Args:
        least: Seconds that every evaluation is given.
    """

    def __init__(self, least: float) -> None:
        self._least = least
        self._slowest: dict[str, float] = {}  # by rung
        self._pace = 0.0

    def seen(self, evaluation: Evaluation) -> None:
        """Learn from an evaluation."""
        rung = evaluation.rung
        self._slowest[rung] = max(self._slowest.get(rung, 0.0), evaluation.seconds)
        if evaluation.nfe and rung != CALIBRATION:
            self._pace = max(self._pace, evaluation.seconds / evaluation.nfe)

    def seconds(self, request: EvaluationRequest, cost: int) -> float:
        """What a request is given.

        Args:
            request: The request.
            cost: Its NFE by the plan; 0 if unknown.
        """
        foreseen = self._pace * cost
        if request.rung == CALIBRATION or not (foreseen or (request.rung in self._slowest and not cost)):
            return UNKNOWN_SECONDS
        return max(self._least, SLOWER * max(foreseen, self._slowest.get(request.rung, 0.0)))
