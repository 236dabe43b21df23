"""Which evaluator takes the next request: free ones, those kept for a climbing candidate, those that wait for one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

KEEP_SECONDS = 2.0
"""How long an evaluator is kept for the next rung of a candidate: the way through Tune and back takes some 50 ms."""


@dataclass(eq=False)
class PooledEvaluator:
    """An evaluator as the pool sees it."""

    actor: Any
    created: float
    started: bool = False
    loaded: bool = False
    life: str = ""
    node: str = ""


class FreeEvaluators:
    """Evaluators without a request. For one event loop."""

    def __init__(self) -> None:
        self._idle: deque[PooledEvaluator] = deque()
        self._kept: dict[str, tuple[PooledEvaluator, asyncio.TimerHandle]] = {}  # by trial
        self._waiters: deque[asyncio.Future[PooledEvaluator | None]] = deque()
        self._draining = False

    @property
    def idle(self) -> list[PooledEvaluator]:
        """Those that nobody has taken."""
        return list(self._idle)

    def drain(self) -> None:
        """No evaluator is given any more; whoever still waits for one gets None."""
        self._draining = True
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def remove(self, evaluator: PooledEvaluator) -> None:
        """The evaluator is gone."""
        if evaluator in self._idle:
            self._idle.remove(evaluator)

    async def take(self, trial: str, not_on: Sequence[str] = ()) -> PooledEvaluator | None:
        """An evaluator for a trial's request; of several free ones not one of those on which it has failed."""
        kept = self._taken_back(trial)
        if self._draining:
            return None
        if kept is not None:
            return kept
        if self._idle:
            evaluator = next((one for one in self._idle if one.life not in not_on), self._idle[0])
            self._idle.remove(evaluator)
            return evaluator
        waiter: asyncio.Future[PooledEvaluator | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return await waiter

    def release(self, evaluator: PooledEvaluator) -> None:
        """The evaluator is free again: whoever has waited longest gets it."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(evaluator)
                return
        self._idle.append(evaluator)

    def keep_for(self, trial: str, evaluator: PooledEvaluator) -> None:
        """Keep an evaluator for the next request of a trial, for a moment."""
        timer = asyncio.get_running_loop().call_later(KEEP_SECONDS, self.let_go, trial)
        self._kept[trial] = evaluator, timer

    def _taken_back(self, trial: str) -> PooledEvaluator | None:
        if trial not in self._kept:
            return None
        evaluator, timer = self._kept.pop(trial)
        timer.cancel()
        return evaluator

    def let_go(self, trial: str) -> None:
        """The trial needs no evaluator any more."""
        if (evaluator := self._taken_back(trial)) is not None:
            self.release(evaluator)
