"""How stages ask: large evaluations in shards first, candidates up the rungs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raysense.allocation import Allocation
from raysense.evaluation.shards import shards_of
from raysense.records import Evaluation, EvaluationRequest, TrialSpec
from raysense.strategies.context import SearchContext, candidate_of
from raysense.strategies.runner import Coroutine
from raysense.strategies.verdict import hopeless


def asked_for(context: SearchContext, spec: TrialSpec) -> Coroutine:
    """A trial; where an evaluation has too many images for one evaluator, all sample them first, side by side.

    What a stop rule may make needless is not sampled before. Returns the evaluations, in the order of the requests.
    """
    asked: set[EvaluationRequest] = set()
    runs: list[
        tuple[list[EvaluationRequest], list[EvaluationRequest]]
    ] = []  # shards, and the requests that they are for
    for request in spec.requests:
        shards = [
            replace(shard, method=request.method, steps=request.steps)
            for shard in shards_of(context.study, request.allocation, request.rung)
        ]
        shards = [shard for shard in shards if shard not in asked]
        asked.update(shards)
        if not runs or (shards and spec.stop is not None):
            runs.append(([], []))
        runs[-1][0].extend(shards)
        runs[-1][1].append(request)
    found: list[Evaluation] = []
    for shards, requests in runs:
        name = f"{spec.name}/{len(found)}" if found else spec.name
        if shards:
            yield [
                TrialSpec(f"{name}/shard {number}: {shard.shard}", spec.stage, (shard,))
                for number, shard in enumerate(shards, 1)
            ]
        evaluations = yield replace(spec, name=name, requests=tuple(requests))
        found += evaluations
        if spec.stop is not None and spec.stop.says_stop(found[-1]):
            break
    return found


def judged(context: SearchContext, strategy: str, name: str, allocation: Allocation) -> Coroutine:
    """One candidate climbing the rungs; returns it."""
    requests = (EvaluationRequest(allocation, "preview"), EvaluationRequest(allocation, "score"))
    stop = hopeless(context.bounds, context.study.rungs, context.study.own_specs)
    evaluations = yield from asked_for(context, TrialSpec(f"search/{name}", "search", requests, stop))
    return candidate_of(context, strategy, allocation, evaluations[-1])


def judged_together(
    context: SearchContext, strategy: str, names: Sequence[str], allocations: Sequence[Allocation]
) -> Coroutine:
    """Candidates climbing the rungs side by side; returns them in order."""
    stop = hopeless(context.bounds, context.study.rungs, context.study.own_specs)
    last: dict[int, Evaluation] = {}
    climbing = list(range(len(allocations)))
    for rung in ("preview", "score"):
        asked: set[EvaluationRequest] = set()
        shards: list[TrialSpec] = []
        for number in climbing:
            for shard in shards_of(context.study, allocations[number], rung):
                if shard not in asked:
                    asked.add(shard)
                    name = f"search/{names[number]}/{rung}/shard {len(shards)}: {shard.shard}"
                    shards.append(TrialSpec(name, "search", (shard,)))
        if shards:
            yield shards
        if climbing:
            found = yield [
                TrialSpec(f"search/{names[n]}/{rung}", "search", (EvaluationRequest(allocations[n], rung),))
                for n in climbing
            ]
            last |= {number: evaluations[-1] for number, evaluations in zip(climbing, found, strict=True)}
        climbing = [number for number in climbing if not stop.says_stop(last[number])]
    return [candidate_of(context, strategy, a, last[number]) for number, a in enumerate(allocations)]
