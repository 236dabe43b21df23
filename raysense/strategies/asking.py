"""How stages ask: large evaluations in shards first, candidates up the rungs."""

from __future__ import annotations

from dataclasses import replace

from raysense.allocation import Allocation
from raysense.evaluation.shards import parts_of
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
        parts = [part for part in parts_of(context.study, task.allocation, task.rung) if part not in asked]
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
                Question(f"{name}/part {number}: {part.part}", question.stage, (part,))
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
    stop = hopeless(context.bounds, context.study.rungs)
    evaluations = yield from asked_for(context, Question(f"search/{name}", "search", tasks, stop))
    return candidate_of(context, strategy, allocation, evaluations[-1])
