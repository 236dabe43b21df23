"""The same work over and over: memory, open files and threads stay what they were."""

from __future__ import annotations

import gc
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from raysense.evaluation.evaluator import Evaluator
from raysense.execution.local import LocalExecutor
from raysense.records import EvaluationRequest
from raysense.results.page import build
from raysense.results.run import Run
from raysense.store import Store
from raysense.store.disk import Disk
from raysense.study import load
from tests.conftest import REFERENCE
from tests.execution.curves import Chain
from tests.execution.sleepers import Sleeper
from tests.s3 import s3_server_apart

GROWTH_BYTES = 32 << 20
"""By how much memory may differ: allocators keep what they have, and not always the same."""


def used() -> tuple[int, int, int]:
    """Resident bytes, open files and sockets, threads."""
    gc.collect()
    me = psutil.Process()
    return me.memory_info().rss, me.num_fds(), me.num_threads()


def soak(work: Callable[[int], object], seconds: float) -> dict[str, float]:
    """Does it for so long; what has grown since the first third."""
    began, rounds, first = time.monotonic(), 0, (0, 0, 0)
    while (passed := time.monotonic() - began) < seconds or rounds < 6:
        if not first[0] and passed > seconds / 3 and rounds > 1:
            first = used()
        work(rounds)
        rounds += 1
    last = used()
    grown = [after - before for before, after in zip(first, last, strict=True)]
    found = {"seconds": round(passed), "rounds": rounds, "rss_mib": round(last[0] / 2**20)}
    found |= {
        "rss_growth_mib": round(grown[0] / 2**20, 1),
        "files_growth": grown[1],
        "threads_growth": grown[2],
    }
    print(f"\nsoak: {found}")
    assert grown[0] < GROWTH_BYTES, found
    assert grown[1] <= 1, found
    assert grown[2] <= 1, found
    return found


def a_study(uri: str) -> None:
    """A driver's whole life over a store."""
    store = Store.open(uri, create=True)
    store.begin({"name": "s"}, signature="s", denominators={"n_selected": 9})
    strategy = Chain(4, width=2)
    assert LocalExecutor(Sleeper()).run(strategy, store, signature="s", lookahead=2).finished
    again = Store.open(uri)
    assert len(again.known()) == len(again.table("evaluations")) == 8


def test_short_lives_of_many_drivers(tmp_path: Path) -> None:
    def work(number: int) -> None:
        a_study(str(tmp_path / "store"))
        shutil.rmtree(tmp_path / "store")

    soak(work, 4.0)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_an_hour_of_drivers_evaluations_and_pages(tmp_path: Path) -> None:
    """On disk and on S3, the real pipeline measured at ever other allocations, the page of the reference study."""
    soak_for(tmp_path, 3600.0)


def soak_for(folder: Path, seconds: float) -> dict[str, float]:
    """All of it for so long."""
    rng = random.Random(0)
    study = load(
        overrides=["rungs.probe={prompts: 4, timesteps: 2}", "rungs.preview.prompts=8", "sampling.steps=2"]
    )
    evaluator = Evaluator(study, str(folder / "evaluator"), threads=1)
    store = Store.open(str(folder / "evaluator"), create=True)
    run = Run(str(REFERENCE))
    with s3_server_apart() as bucket:

        def work(number: int) -> None:
            a_study(str(folder / "store"))
            shutil.rmtree(folder / "store")
            a_study(bucket.format("soak"))
            disk = Disk(bucket.format("soak"))
            for place in (
                "",
                "objects",
                *(f"tables/{name}" for name in ("evaluations", "measures", "samples")),
            ):
                disk.delete([f"{place}/{name}".lstrip("/") for name, _ in disk.names(place)])
            allocation = evaluator.grid.uniform(rng.uniform(0.05, 0.6))
            rung = rng.choice(("probe", "preview"))
            store.put(evaluator.evaluate(EvaluationRequest(allocation, rung)), dict(allocation))
            if number % 10 == 0:
                build(run, paint=False)

        return soak(work, seconds)
