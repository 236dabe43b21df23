"""How far a run is: numbers for the live view, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

FEWEST_FOR_A_PACE = 20
"""Evaluations after which the pace says something about what is left: the first ones load and warm up."""

LEAST_FOR_A_PACE = 0.05
"""Share of the expected NFE after which it does, where the strategy says how many these are."""


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment.

    Attributes:
        stage: Stage of the trial asked last.
        headline: The strategy's line about its incumbent.
        done: Evaluations answered, those from the store included.
        replayed: Of these, answered from the store.
        failed: Of `done`, could not be measured.
        outstanding: Evaluations of the trials asked and not yet answered; an upper bound, as stop
            rules may end a trial early.
        wanted: Evaluations that the strategy expects in all; 0 if it does not say.
        spent: NFE of everything answered, those from the store included, those that an earlier run measured not.
        wanted_nfe: NFE that the strategy expects in all; 0 if it does not say.
        images: Images sampled in this run.
        nfe: NFE spent in this run.
        seconds: Since the run began.
        busy: Evaluators that are measuring.
        evaluators: Evaluators that are loaded.
        message: What the run is waiting for, or an empty string.
    """

    stage: str = ""
    headline: str = ""
    done: int = 0
    replayed: int = 0
    failed: int = 0
    outstanding: int = 0
    wanted: int = 0
    spent: int = 0
    wanted_nfe: int = 0
    images: int = 0
    nfe: int = 0
    seconds: float = 0.0
    busy: int = 0
    evaluators: int = 0
    message: str = ""

    @property
    def measured(self) -> int:
        """Evaluations answered by evaluators in this run."""
        return self.done - self.replayed

    @property
    def images_per_second(self) -> float:
        """Images per second of wall time."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the pace so far; None before it says much, or while what is wanted is unknown.

        By NFE where these are known: an evaluation on one rung may take a hundred times another's.
        """
        if self.wanted_nfe:
            if self.nfe < LEAST_FOR_A_PACE * self.wanted_nfe or not self.nfe:
                return None
            return max(0, self.wanted_nfe - self.spent) * self.seconds / self.nfe
        left = self.wanted - self.done
        known = self.measured >= FEWEST_FOR_A_PACE and left >= 0 and self.wanted
        return left * self.seconds / self.measured if known else None


OnProgress = Callable[[Snapshot], None]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        finished: The strategy is done; otherwise the run was interrupted and can be resumed.
        snapshot: The last one.
    """

    finished: bool
    snapshot: Snapshot


class Clock:
    """Seconds since it was made, and whether a period has passed since it was last asked."""

    def __init__(self, period: float) -> None:
        self._period = period
        self._started = time.monotonic()
        self._last = float("-inf")

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._started

    def due(self) -> bool:
        """True at most once a period."""
        now = time.monotonic()
        if now - self._last < self._period:
            return False
        self._last = now
        return True
