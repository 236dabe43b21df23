"""The pool of evaluators: an actor between the thin trials and the evaluators that hold the pipeline.

Trials come and go in seconds; an evaluator stays as long as its GPU. The pool keeps as many evaluators
as the cluster has room for, replaces those that die, uses nodes that join, waits for none that left, and gives
the next waiting request to whichever evaluator is free. A candidate that climbs to its next rung stays where it is: the
evaluator has sampled some of that rung's images already. An evaluator that raised, or took far longer than foreseen,
is not trusted again: a broken GPU context fails every request that it is given.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from raysense.errors import RaysenseError
from raysense.execution.executor import ATTEMPTS, failure
from raysense.execution.ray.actor import PoolSpec, Reply, evaluator_actor
from raysense.execution.ray.connection import in_short
from raysense.execution.ray.free_evaluators import FreeEvaluators, PooledEvaluator
from raysense.execution.ray.time_limits import TimeLimits
from raysense.records import Evaluation, EvaluationRequest, TrialSpec
from raysense.store.store import Store

LOOK_SECONDS = 1.0
LOADS = 3


Costs = tuple[int, ...]
"""NFE of a trial's requests by the plan; empty if unknown."""


@dataclass(frozen=True)
class PoolStatus:
    """What the driver asks the pool about once a second.

    Attributes:
        wanted: Evaluators that the pool tries to keep.
        evaluators: Of these, loaded.
        busy: Of these, measuring.
        loading: Starting or loading.
        lives: Lives that have begun since the run began.
        unplaced_seconds: How long the oldest evaluator has been waiting for room on the cluster.
        notices: What went wrong since the last status, one line each.
        fatal: Why the study cannot go on, or an empty string.
    """

    wanted: int = 0
    evaluators: int = 0
    busy: int = 0
    loading: int = 0
    lives: int = 0
    unplaced_seconds: float = 0.0
    notices: tuple[str, ...] = ()
    fatal: str = ""


def room(nodes: list[dict[str, Any]], cpus: float, gpus: float) -> int:
    """How many evaluators fit on the nodes that are alive, by `ray.nodes()`."""
    total = 0
    for node in nodes:
        if not node["Alive"]:
            continue
        has: Mapping[str, float] = node["Resources"]
        fits = [
            int(has.get(name, 0.0) / need + 1e-9) for name, need in (("CPU", cpus), ("GPU", gpus)) if need > 0
        ]
        total += min(fits, default=0)
    return total


class EvaluatorPool:
    """See the module. An async Ray actor: its methods run in one event loop, so they need no locks."""

    def __init__(self, spec: PoolSpec, first: list[Any]) -> None:
        self._spec = spec
        self._first = first
        self._evaluators: set[PooledEvaluator] = set()
        self._free = FreeEvaluators()
        self._trials: dict[str, tuple[TrialSpec, Costs, dict[int, asyncio.Task[Evaluation | None]]]] = {}
        self._limits = TimeLimits(spec.patience)
        self._measuring: dict[str, asyncio.Task[Evaluation | None]] = {}
        self._store = Store.open(spec.store_uri, create=True)
        self._busy = self._lives = self._failed_loads = 0
        self._wanted = len(first)
        self._notices: list[str] = []
        self._draining = False
        self._fatal = ""
        self._keeper: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # --- for the driver -------------------------------------------------------------------------------

    async def begin(self, trial: str, trial_spec: TrialSpec, costs: Costs = ()) -> None:
        """Tells what a trial is about, and what its requests cost by the plan, before it starts."""
        self._trials[trial] = (trial_spec, costs, {})

    async def end(self, trial: str) -> None:
        """The trial is over."""
        self._trials.pop(trial, None)
        self._free.let_go(trial)

    async def start(self) -> None:
        """Begins to keep evaluators."""
        for actor in self._first:
            self._add(actor)
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def drain(self) -> None:
        """Finishes what is being measured; whoever still waits for an evaluator is sent home."""
        self._draining = True
        self._free.drain()

    async def status(self) -> PoolStatus:
        """How things stand."""
        unplaced = [
            time.monotonic() - evaluator.created for evaluator in self._evaluators if not evaluator.started
        ]
        loaded = sum(evaluator.loaded for evaluator in self._evaluators)
        notices, self._notices = tuple(self._notices), []
        return PoolStatus(
            wanted=self._wanted,
            evaluators=loaded,
            busy=self._busy,
            loading=len(self._evaluators) - loaded,
            lives=self._lives,
            unplaced_seconds=max(unplaced, default=0.0),
            notices=notices,
            fatal=self._fatal,
        )

    # --- for the trials -------------------------------------------------------------------------------

    async def answer(self, trial: str, index: int) -> Evaluation | None:
        """The evaluation of the trial's request number `index`, or None: the study is stopping.

        A trial that was restarted asks again from 0 and gets the same answers.
        """
        while trial not in self._trials:  # the driver's `begin` is on its way, on another connection
            await asyncio.sleep(0.01)
        trial_spec, costs, answers = self._trials[trial]
        if index not in answers:
            cost = costs[index] if costs else 0
            answers[index] = asyncio.get_running_loop().create_task(
                self._once(trial_spec, trial_spec.requests[index], trial, cost)
            )
        return await asyncio.shield(answers[index])

    async def _once(
        self, trial_spec: TrialSpec, request: EvaluationRequest, trial: str, cost: int
    ) -> Evaluation | None:
        """Two trials that want the same evaluation at the same time share it."""
        key = request.key(self._spec.signature)
        if key not in self._measuring:
            self._measuring[key] = asyncio.get_running_loop().create_task(
                self._measured(trial_spec, request, trial, cost)
            )
        try:
            return await asyncio.shield(self._measuring[key])
        finally:
            if self._measuring.get(key) is not None and self._measuring[key].done():
                del self._measuring[key]

    async def _measured(
        self, trial_spec: TrialSpec, request: EvaluationRequest, trial: str, cost: int
    ) -> Evaluation | None:
        why, lives = "", list[str]()
        while len(lives) < ATTEMPTS:
            evaluator = await self._free.take(trial, lives)
            if evaluator is None:
                return None
            life = evaluator.life
            self._busy += 1
            try:
                reply = await self._within(
                    evaluator, trial_spec, request, trial, self._limits.seconds(request, cost)
                )
            except ray.exceptions.RayError as error:
                self._lost(evaluator)
                if not await self._is_alive(evaluator.node):
                    self._notices.append(
                        f"the node of evaluator {life} left; its request goes to another one"
                    )
                    continue  # not the request's doing
                reply = Reply(error=f"the evaluator died: {in_short(error)}")
            else:
                if not reply.sound:
                    self._lost(evaluator)
                elif reply.evaluation is not None and _climbs(trial_spec, request):
                    self._free.keep_for(trial, evaluator)
                else:
                    self._free.release(evaluator)
            finally:
                self._busy -= 1
            if reply.evaluation is not None:
                self._limits.seen(reply.evaluation)
                return reply.evaluation
            if reply.fatal:
                await self._give_up(reply.fatal)
                return None
            lives.append(life)
            why = reply.error
            self._notices.append(
                f"{trial_spec.name}: allocation {request.allocation.key} on rung {request.rung} failed on {life} "
                f"(attempt {len(lives)} of {ATTEMPTS}): {why}"
            )
        evaluation = failure(
            trial_spec, request, why, signature=self._spec.signature, trial=trial, life=lives[-1]
        )
        try:
            await asyncio.to_thread(self._store.put, evaluation, request.allocation)
        except RaysenseError as error:
            await self._give_up(str(error))
            return None
        return evaluation

    # --- evaluators -----------------------------------------------------------------------------------

    async def _within(
        self,
        evaluator: PooledEvaluator,
        trial_spec: TrialSpec,
        request: EvaluationRequest,
        trial: str,
        seconds: float,
    ) -> Reply:
        """An evaluator's answer, or that it took too long.

        Raises:
            ray.exceptions.RayError: It died.
        """
        answer = asyncio.ensure_future(_awaited(evaluator.actor.measure.remote(trial_spec, request, trial)))
        done, _ = await asyncio.wait({answer}, timeout=seconds)
        if not done:
            answer.cancel()
            return Reply(error=f"no answer within {seconds:,.0f} s, the evaluator is replaced", sound=False)
        return answer.result()

    def _lost(self, evaluator: PooledEvaluator) -> None:
        self._evaluators.discard(evaluator)
        self._free.remove(evaluator)
        ray.kill(evaluator.actor)

    async def _give_up(self, why: str) -> None:
        if not self._fatal:
            self._fatal = why
        await self.drain()

    async def _keep(self) -> None:
        """Once a second: as many evaluators as there is room for, each of them alive."""
        while not self._draining:
            nodes: list[dict[str, Any]] = await asyncio.to_thread(ray.nodes)
            self._wanted = self._spec.count or room(nodes, self._spec.cpus, self._spec.gpus)
            for evaluator in [p for p in self._evaluators if not p.started][
                : max(0, len(self._evaluators) - self._wanted)
            ]:
                self._lost(evaluator)  # its node left before it began
            for _ in range(self._wanted - len(self._evaluators)):
                self._add(evaluator_actor(self._spec))
            await asyncio.gather(*(self._check(evaluator) for evaluator in self._free.idle))
            await asyncio.sleep(LOOK_SECONDS)

    def _add(self, actor: Any) -> None:
        evaluator = PooledEvaluator(actor, time.monotonic())
        self._evaluators.add(evaluator)
        self._tasks.add(task := asyncio.get_running_loop().create_task(self._bring_up(evaluator)))
        task.add_done_callback(self._tasks.discard)

    async def _bring_up(self, evaluator: PooledEvaluator) -> None:
        patience = LOADS
        try:
            evaluator.life, evaluator.node = await evaluator.actor.where.remote()
            evaluator.started = True
            self._lives += 1
            reply: Reply = await evaluator.actor.load.remote()
        except ray.exceptions.RayError as error:
            # A node that leaves takes all its evaluators with it: that alone is no reason to give up.
            patience = LOADS * max(1, self._wanted)
            reply = Reply(error=f"it died while loading: {in_short(error)}")
        if evaluator not in self._evaluators:
            return
        if not (reply.error or reply.fatal):
            self._failed_loads = 0
            evaluator.loaded = True
            self._free.release(evaluator)
            return
        self._lost(evaluator)
        self._failed_loads += 1
        self._notices.append(f"evaluator {evaluator.life} could not be loaded: {reply.error or reply.fatal}")
        if reply.fatal or (self._failed_loads >= patience and not any(p.loaded for p in self._evaluators)):
            await self._give_up(reply.fatal or f"no evaluator can be loaded: {reply.error}")

    async def _check(self, evaluator: PooledEvaluator) -> None:
        """An idle evaluator that died is noticed here; a busy one where its answer is awaited."""
        try:
            await evaluator.actor.where.remote()
        except ray.exceptions.RayError:
            self._lost(evaluator)

    async def _is_alive(self, node: str) -> bool:
        nodes: list[dict[str, Any]] = await asyncio.to_thread(ray.nodes)
        return any(found["Alive"] and found["NodeID"] == node for found in nodes)


def _climbs(trial_spec: TrialSpec, request: EvaluationRequest) -> bool:
    """Whether the trial's next request is the same allocation on another rung."""
    after = trial_spec.requests.index(request) + 1
    return after < len(trial_spec.requests) and trial_spec.requests[after].allocation == request.allocation


async def _awaited(answer: Any) -> Reply:
    reply: Reply = await answer
    return reply
