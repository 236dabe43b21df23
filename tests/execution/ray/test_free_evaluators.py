"""Who takes an evaluator: whoever has waited longest, a candidate that climbs its own, nobody once the run stops."""

from __future__ import annotations

import asyncio

import pytest

from raysense.execution.ray import free_evaluators
from raysense.execution.ray.free_evaluators import FreeEvaluators, PooledEvaluator


def evaluator(life: str) -> PooledEvaluator:
    return PooledEvaluator(actor=None, created=0.0, life=life)


def test_whoever_has_waited_longest_gets_the_next_one() -> None:
    async def run() -> list[str]:
        free, got = FreeEvaluators(), list[str]()

        async def wait(trial: str) -> None:
            found = await free.take(trial)
            assert found is not None
            got.append(f"{trial} {found.life}")

        waiting = [asyncio.ensure_future(wait(trial)) for trial in ("a", "b")]
        await asyncio.sleep(0)
        for life in ("one", "two"):
            free.release(evaluator(life))
        await asyncio.gather(*waiting)
        return got

    assert asyncio.run(run()) == ["a one", "b two"]


def test_a_task_that_failed_goes_elsewhere_if_it_can() -> None:
    async def run() -> list[str]:
        free = FreeEvaluators()
        for life in ("one", "two"):
            free.release(evaluator(life))
        found = [await free.take("a", not_on=["one"]), await free.take("b", not_on=["one"])]
        return [one.life for one in found if one is not None]

    assert asyncio.run(run()) == ["two", "one"]


def test_what_is_kept_for_a_trial_is_its_own_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_evaluators, "KEEP_SECONDS", 0.02)

    async def run() -> None:
        free, own, again = FreeEvaluators(), evaluator("own"), evaluator("again")
        free.keep_for("a", own)
        assert free.idle == []
        assert await free.take("a") is own
        free.keep_for("a", again)
        await asyncio.sleep(0.1)
        assert free.idle == [again]

    asyncio.run(run())


def test_nobody_gets_one_once_it_drains() -> None:
    async def run() -> None:
        free = FreeEvaluators()
        waiting = asyncio.ensure_future(free.take("a"))
        await asyncio.sleep(0)
        free.drain()
        assert await waiting is None
        free.release(evaluator("late"))
        assert await free.take("b") is None

    asyncio.run(run())
