"""How stages ask: large evaluations in shards first, candidates up the rungs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raysense.allocation import Allocation
from raysense.evaluation.shards import shards_of
from raysense.records import Evaluation, Question, Task
from raysense.strategies.context import SearchContext, candidate_of
from raysense.strategies.runner import Coroutine
from raysense.strategies.verdict import hopeless


def asked_for(context: SearchContext, question: Question) -> Coroutine:
    """A question; where an evaluation has too many images for one evaluator, all sample them first, side by side.

    What a stop rule may make needless is not sampled before. Returns the evaluations, in the order of the tasks.
    """
    asked: set[Task] = set()
    runs: list[tuple[list[Task], list[Task]]] = []  # parts, and the tasks that they are for
    for task in question.tasks:
        parts = [part for part in shards_of(context.study, task.allocation, task.rung) if part not in asked]
        asked.update(parts)
        if not runs or (parts and question.stop is not None):
            runs.append(([], []))
        runs[-1][0].extend(parts)
        runs[-1][1].append(task)
    found: list[Evaluation] = []
    for parts, tasks in runs:
        name = f"{question.name}/{len(found)}" if found else question.name
        if parts:
            yield [
                Question(f"{name}/shard {number}: {part.shard}", question.stage, (part,))
                for number, part in enumerate(parts, 1)
            ]
        evaluations = yield replace(question, name=name, tasks=tuple(tasks))
        found += evaluations
        if question.stop is not None and question.stop.says_stop(found[-1]):
            break
    return found


def judged(context: SearchContext, strategy: str, name: str, allocation: Allocation) -> Coroutine:
    """One candidate climbing the rungs; returns it."""
    tasks = (Task(allocation, "preview"), Task(allocation, "score"))
    stop = hopeless(context.bounds, context.study.rungs, context.study.own_specs)
    evaluations = yield from asked_for(context, Question(f"search/{name}", "search", tasks, stop))
    return candidate_of(context, strategy, allocation, evaluations[-1])


def judged_together(
    context: SearchContext, strategy: str, names: Sequence[str], allocations: Sequence[Allocation]
) -> Coroutine:
    """Candidates climbing the rungs side by side; returns them in order."""
    stop = hopeless(context.bounds, context.study.rungs, context.study.own_specs)
    last: dict[int, Evaluation] = {}
    climbing = list(range(len(allocations)))
    for rung in ("preview", "score"):
        asked: set[Task] = set()
        parts: list[Question] = []
        for number in climbing:
            for part in shards_of(context.study, allocations[number], rung):
                if part not in asked:
                    asked.add(part)
                    name = f"search/{names[number]}/{rung}/shard {len(parts)}: {part.shard}"
                    parts.append(Question(name, "search", (part,)))
        if parts:
            yield parts
        if climbing:
            found = yield [
                Question(f"search/{names[n]}/{rung}", "search", (Task(allocations[n], rung),))
                for n in climbing
            ]
            last |= {number: evaluations[-1] for number, evaluations in zip(climbing, found, strict=True)}
        climbing = [number for number in climbing if not stop.says_stop(last[number])]
    return [candidate_of(context, strategy, a, last[number]) for number, a in enumerate(allocations)]
