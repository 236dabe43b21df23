"""The broker: an actor between the thin trials and the evaluators that hold the pipeline.

Trials come and go in seconds; an evaluator stays as long as its GPU. The broker keeps as many evaluators
as the cluster has room for, replaces those that die, uses nodes that join, waits for none that left, and gives
the next waiting task to whichever evaluator is free. A candidate that climbs to its next rung stays where it is: the
evaluator has sampled a part of that rung's images already. An evaluator that raised, or took far longer than foreseen,
is not trusted again: a broken GPU context fails every task that it is given.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

import raysense
from raysense.errors import RaysenseError
from raysense.execution.evaluators import ATTEMPTS, Evaluator, EvaluatorSpec, failure, new_life, signed
from raysense.execution.ray.connection import in_short
from raysense.records import CALIBRATION, Evaluation, Question, Task
from raysense.store.rows import without_samples
from raysense.store.store import Store

LOOK_SECONDS = 1.0
LOADS = 3

SLOWER = 20.0
"""An evaluation is given so many times what the slowest one so far would have taken."""

UNKNOWN_SECONDS = 86_400.0
"""What is given to an evaluation of which nothing is foreseen: the first ones of a study, a calibration."""

KEEP_SECONDS = 2.0
"""How long an evaluator is kept for the next rung of a candidate: the way through Tune and back takes some 50 ms."""


Costs = tuple[int, ...]
"""Sample-forwards of a question's tasks by the plan; empty if unknown."""


@dataclass(frozen=True)
class Plan:
    """What the broker needs to know.

    Attributes:
        spec: How to make an evaluator.
        store_uri: Where evaluators put their evaluations.
        signature: The study's.
        count: Evaluators to keep, or None: as many as the nodes have room for.
        cpus: CPU cores an evaluator reserves.
        gpus: GPUs, or the fraction of one, that an evaluator reserves.
        version: The driver's version of raysense.
        begun: Whether the driver has written the study's definition to the store.
        patience: Seconds that every evaluation is given at least.
    """

    spec: EvaluatorSpec
    store_uri: str
    signature: str
    count: int | None
    cpus: float
    gpus: float
    version: str
    begun: bool
    patience: float = 600.0


@dataclass(frozen=True)
class Status:
    """What the driver asks the broker about once a second.

    Attributes:
        wanted: Evaluators that the broker tries to keep.
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


@dataclass(frozen=True)
class Reply:
    """An evaluator's answer: the evaluation, or why there is none.

    Attributes:
        evaluation: What was measured.
        error: Why this attempt failed.
        fatal: Why no attempt can succeed, which the user can mend.
        sound: Whether the evaluator can go on; after a failure of another kind than want of memory it is replaced.
    """

    evaluation: Evaluation | None = None
    error: str = ""
    fatal: str = ""
    sound: bool = True


class Limits:
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
        if evaluation.cost and rung != CALIBRATION:
            self._pace = max(self._pace, evaluation.seconds / evaluation.cost)

    def seconds(self, task: Task, cost: int) -> float:
        """What a task is given.

        Args:
            task: The task.
            cost: Its sample-forwards by the plan; 0 if unknown.
        """
        foreseen = self._pace * cost
        if task.rung == CALIBRATION or not (foreseen or (task.rung in self._slowest and not cost)):
            return UNKNOWN_SECONDS
        return max(self._least, SLOWER * max(foreseen, self._slowest.get(task.rung, 0.0)))


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


class Resident:
    """An evaluator's life, as a Ray actor: loads once, measures until it ends."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._life = new_life()
        self._evaluator: Evaluator | None = None

    def load(self) -> Reply:
        """Makes the evaluator."""
        if self._plan.version != raysense.__version__:
            return Reply(
                fatal=f"worker {self._life} runs raysense {raysense.__version__}, the driver {self._plan.version}. "
                "Install the same version on every node."
            )
        try:
            self._store = Store.open(self._plan.store_uri, create=True)
            seen = (self._store.study or {}).get("signature")
            if self._plan.begun and seen != self._plan.signature:
                return Reply(
                    fatal=f"evaluator {self._life}: {self._plan.store_uri} is not the driver's folder there: its rows "
                    "would be lost. Give `--out` a folder that every machine sees under the same path, or s3://…"
                )
            self._evaluator = self._plan.spec.build()
        except RaysenseError as error:
            return Reply(fatal=f"evaluator {self._life}: {error}")
        except Exception as error:
            return Reply(error=f"{type(error).__name__}: {error}")
        return Reply()

    def where(self) -> tuple[str, str]:
        """The life's name and its node; also tells that it has not ended."""
        return self._life, ray.get_runtime_context().get_node_id()

    def measure(self, question: Question, task: Task, trial: str) -> Reply:
        """Measures and stores, unless an evaluator that died after storing already did."""
        assert self._evaluator is not None  # the broker hands out loaded evaluators only
        try:
            stored = self._store.get_object(task.key(self._plan.signature))
            if stored is not None:
                return Reply(stored)
            evaluation = signed(
                self._evaluator.evaluate(task),
                question,
                task,
                signature=self._plan.signature,
                trial=trial,
                life=self._life,
            )
            self._store.put(evaluation, task.allocation)
        except RaysenseError as error:
            return Reply(
                fatal=f"{question.name}, allocation {task.allocation.key}, rung {task.rung}: {error}"
            )
        except Exception as error:
            # Torch is not loaded here: its out-of-memory error is known by name.
            fits = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
            return Reply(error=f"{type(error).__name__}: {error}", sound=fits)
        return Reply(without_samples(evaluation))


def resident(plan: Plan) -> Any:
    """Starts an evaluator's life. The broker sees to it that a dead one is replaced, so Ray need not."""
    return ray.remote(Resident).options(num_cpus=plan.cpus, num_gpus=plan.gpus, max_restarts=0).remote(plan)


@dataclass(eq=False)
class _Place:
    """An evaluator as the broker sees it."""

    actor: Any
    created: float
    started: bool = False
    loaded: bool = False
    life: str = ""
    node: str = ""


class Broker:
    """See the module. An async Ray actor: its methods run in one event loop, so they need no locks."""

    def __init__(self, plan: Plan, first: list[Any]) -> None:
        self._plan = plan
        self._first = first
        self._places: set[_Place] = set()
        self._idle: deque[_Place] = deque()
        self._kept: dict[str, tuple[_Place, asyncio.TimerHandle]] = {}  # by trial
        self._waiters: deque[asyncio.Future[_Place | None]] = deque()
        self._trials: dict[str, tuple[Question, Costs, dict[int, asyncio.Task[Evaluation | None]]]] = {}
        self._limits = Limits(plan.patience)
        self._measuring: dict[str, asyncio.Task[Evaluation | None]] = {}
        self._store = Store.open(plan.store_uri, create=True)
        self._busy = self._lives = self._failed_loads = 0
        self._wanted = len(first)
        self._notices: list[str] = []
        self._draining = False
        self._fatal = ""
        self._keeper: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # --- for the driver -------------------------------------------------------------------------------

    async def begin(self, trial: str, question: Question, costs: Costs = ()) -> None:
        """Tells what a trial is about, and what its tasks cost by the plan, before it starts."""
        self._trials[trial] = (question, costs, {})

    async def end(self, trial: str) -> None:
        """The trial is over."""
        self._trials.pop(trial, None)
        self._let_go(trial)

    async def start(self) -> None:
        """Begins to keep evaluators."""
        for actor in self._first:
            self._add(actor)
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def drain(self) -> None:
        """Finishes what is being measured; whoever still waits for an evaluator is sent home."""
        self._draining = True
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    async def status(self) -> Status:
        """How things stand."""
        unplaced = [time.monotonic() - place.created for place in self._places if not place.started]
        loaded = sum(place.loaded for place in self._places)
        notices, self._notices = tuple(self._notices), []
        return Status(
            wanted=self._wanted,
            evaluators=loaded,
            busy=self._busy,
            loading=len(self._places) - loaded,
            lives=self._lives,
            unplaced_seconds=max(unplaced, default=0.0),
            notices=notices,
            fatal=self._fatal,
        )

    # --- for the trials -------------------------------------------------------------------------------

    async def answer(self, trial: str, index: int) -> Evaluation | None:
        """The evaluation of the trial's task number `index`, or None: the study is stopping.

        A trial that was restarted asks again from 0 and gets the same answers.
        """
        while trial not in self._trials:  # the driver's `begin` is on its way, on another connection
            await asyncio.sleep(0.01)
        question, costs, answers = self._trials[trial]
        if index not in answers:
            cost = costs[index] if costs else 0
            answers[index] = asyncio.get_running_loop().create_task(
                self._once(question, question.tasks[index], trial, cost)
            )
        return await asyncio.shield(answers[index])

    async def _once(self, question: Question, task: Task, trial: str, cost: int) -> Evaluation | None:
        """Two questions that want the same evaluation at the same time share it."""
        key = task.key(self._plan.signature)
        if key not in self._measuring:
            self._measuring[key] = asyncio.get_running_loop().create_task(
                self._measured(question, task, trial, cost)
            )
        try:
            return await asyncio.shield(self._measuring[key])
        finally:
            if self._measuring.get(key) is not None and self._measuring[key].done():
                del self._measuring[key]

    async def _measured(self, question: Question, task: Task, trial: str, cost: int) -> Evaluation | None:
        why, lives = "", list[str]()
        while len(lives) < ATTEMPTS:
            place = await self._free_place(trial, lives)
            if place is None:
                return None
            life = place.life
            self._busy += 1
            try:
                reply = await self._within(place, question, task, trial, self._limits.seconds(task, cost))
            except ray.exceptions.RayError as error:
                self._lost(place)
                if not await self._is_alive(place.node):
                    self._notices.append(f"the node of evaluator {life} left; its task goes to another one")
                    continue  # not the task's doing
                reply = Reply(error=f"the evaluator died: {in_short(error)}")
            else:
                if not reply.sound:
                    self._lost(place)
                elif reply.evaluation is not None and _climbs(question, task):
                    self._keep_for(trial, place)
                else:
                    self._release(place)
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
                f"{question.name}: allocation {task.allocation.key} on rung {task.rung} failed on {life} "
                f"(attempt {len(lives)} of {ATTEMPTS}): {why}"
            )
        evaluation = failure(question, task, why, signature=self._plan.signature, trial=trial, life=lives[-1])
        try:
            await asyncio.to_thread(self._store.put, evaluation, task.allocation)
        except RaysenseError as error:
            await self._give_up(str(error))
            return None
        return evaluation

    # --- evaluators -----------------------------------------------------------------------------------

    async def _within(
        self, place: _Place, question: Question, task: Task, trial: str, seconds: float
    ) -> Reply:
        """An evaluator's answer, or that it took too long.

        Raises:
            ray.exceptions.RayError: It died.
        """
        answer = asyncio.ensure_future(_awaited(place.actor.measure.remote(question, task, trial)))
        done, _ = await asyncio.wait({answer}, timeout=seconds)
        if not done:
            answer.cancel()
            return Reply(error=f"no answer within {seconds:,.0f} s, the evaluator is replaced", sound=False)
        return answer.result()

    async def _free_place(self, trial: str, not_on: Sequence[str] = ()) -> _Place | None:
        """An evaluator for a trial's task; of several free ones not one of those on which it has failed."""
        kept = self._taken_back(trial)
        if self._draining:
            return None
        if kept is not None:
            return kept
        if self._idle:
            place = next((place for place in self._idle if place.life not in not_on), self._idle[0])
            self._idle.remove(place)
            return place
        waiter: asyncio.Future[_Place | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return await waiter

    def _release(self, place: _Place) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(place)
                return
        self._idle.append(place)

    def _keep_for(self, trial: str, place: _Place) -> None:
        timer = asyncio.get_running_loop().call_later(KEEP_SECONDS, self._let_go, trial)
        self._kept[trial] = place, timer

    def _taken_back(self, trial: str) -> _Place | None:
        if trial not in self._kept:
            return None
        place, timer = self._kept.pop(trial)
        timer.cancel()
        return place

    def _let_go(self, trial: str) -> None:
        if (place := self._taken_back(trial)) is not None:
            self._release(place)

    def _lost(self, place: _Place) -> None:
        self._places.discard(place)
        if place in self._idle:
            self._idle.remove(place)
        ray.kill(place.actor)

    async def _give_up(self, why: str) -> None:
        if not self._fatal:
            self._fatal = why
        await self.drain()

    async def _keep(self) -> None:
        """Once a second: as many evaluators as there is room for, each of them alive."""
        while not self._draining:
            nodes: list[dict[str, Any]] = await asyncio.to_thread(ray.nodes)
            self._wanted = self._plan.count or room(nodes, self._plan.cpus, self._plan.gpus)
            for place in [p for p in self._places if not p.started][
                : max(0, len(self._places) - self._wanted)
            ]:
                self._lost(place)  # its node left before it began
            for _ in range(self._wanted - len(self._places)):
                self._add(resident(self._plan))
            await asyncio.gather(*(self._check(place) for place in list(self._idle)))
            await asyncio.sleep(LOOK_SECONDS)

    def _add(self, actor: Any) -> None:
        place = _Place(actor, time.monotonic())
        self._places.add(place)
        self._tasks.add(task := asyncio.get_running_loop().create_task(self._bring_up(place)))
        task.add_done_callback(self._tasks.discard)

    async def _bring_up(self, place: _Place) -> None:
        patience = LOADS
        try:
            place.life, place.node = await place.actor.where.remote()
            place.started = True
            self._lives += 1
            reply: Reply = await place.actor.load.remote()
        except ray.exceptions.RayError as error:
            # A node that leaves takes all its evaluators with it: that alone is no reason to give up.
            patience = LOADS * max(1, self._wanted)
            reply = Reply(error=f"it died while loading: {in_short(error)}")
        if place not in self._places:
            return
        if not (reply.error or reply.fatal):
            self._failed_loads = 0
            place.loaded = True
            self._release(place)
            return
        self._lost(place)
        self._failed_loads += 1
        self._notices.append(f"evaluator {place.life} could not be loaded: {reply.error or reply.fatal}")
        if reply.fatal or (self._failed_loads >= patience and not any(p.loaded for p in self._places)):
            await self._give_up(reply.fatal or f"no evaluator can be loaded: {reply.error}")

    async def _check(self, place: _Place) -> None:
        """An idle evaluator that died is noticed here; a busy one where its answer is awaited."""
        try:
            await place.actor.where.remote()
        except ray.exceptions.RayError:
            self._lost(place)

    async def _is_alive(self, node: str) -> bool:
        nodes: list[dict[str, Any]] = await asyncio.to_thread(ray.nodes)
        return any(found["Alive"] and found["NodeID"] == node for found in nodes)


def _climbs(question: Question, task: Task) -> bool:
    """Whether the question's next task is the same allocation on another rung."""
    after = question.tasks.index(task) + 1
    return after < len(question.tasks) and question.tasks[after].allocation == task.allocation


async def _awaited(answer: Any) -> Reply:
    reply: Reply = await answer
    return reply
