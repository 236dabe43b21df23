"""SIGKILL at random moments, then resume: the same evaluations with the same values, none twice, none in half."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from raysense.cluster import run_in_process
from raysense.evaluation.records import Measure
from raysense.store import Store
from tests.cluster.curves import Chain
from tests.cluster.killed_driver import LENGTH, LOOKAHEAD, WIDTH
from tests.cluster.sleepers import Sleeper

VICTIMS = ("driver", "evaluator", "trial")


def values(uri: Path) -> dict[str, tuple[str, str, dict[str, Measure]]]:
    """What a store holds, by key; fails on duplicates."""
    found = Store.open(str(uri), create=True).evaluations()
    assert len({e.key for e in found}) == len(found)
    return {e.key: (e.question, e.allocation, dict(e.measures)) for e in found}


def victim(kind: str, driver: subprocess.Popen[bytes], log: Path, rng: random.Random) -> int | None:
    """The process to kill; of the driver's Ray only, never by a broad name."""
    if kind == "driver":
        return driver.pid
    if kind == "evaluator":
        pids = [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("load")]
        alive = [pid for pid in pids if psutil.pid_exists(pid)]
        return rng.choice(alive) if alive else None
    ours = psutil.Process().children(recursive=True)
    trials = [process.pid for process in ours if "QuestionTrial" in " ".join(process.cmdline()[:1])]
    return rng.choice(trials) if trials else None


def play(kind: str, seed: int, address: str, folder: Path) -> None:
    rng, uri, log = random.Random(seed), folder / "store", folder / "log"
    log.touch()
    command = [sys.executable, "-m", "tests.cluster.killed_driver", address, str(uri), str(log)]
    after = rng.randrange(1, LENGTH * WIDTH - 8)  # evaluations stored before the blow
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as driver:
        while driver.poll() is None:
            if len(list((uri / "objects").glob("*.json"))) >= after:
                time.sleep(rng.random() * 0.15)
                if (pid := victim(kind, driver, log, rng)) is not None:
                    os.kill(pid, signal.SIGKILL)
                    break
            time.sleep(0.01)
        driver.wait(240)
    values(uri)  # readable, whatever moment it was
    if kind == "driver":
        time.sleep(1.0)  # evaluators of the dead driver finish or end; what they store counts
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=240)
    else:
        assert driver.returncode == 0

    reference = Chain(LENGTH, WIDTH)
    whole = Store.open(str(folder / "whole"), create=True)
    run_in_process(reference, Sleeper(), whole, signature="s", lookahead=LOOKAHEAD)
    assert values(uri) == values(folder / "whole")  # the same keys with equal values: tolerance 0
    assert not list((uri / "objects").iterdir())
    # At most what was in flight (two evaluators) was measured twice.
    measured = sum(line.startswith("eval") for line in log.read_text().splitlines())
    assert measured <= LENGTH * WIDTH + 2


@pytest.mark.parametrize(("kind", "seed"), [(kind, n) for n, kind in enumerate(VICTIMS)])
def test_killed_at_a_random_moment(kind: str, seed: int, local_ray: str, tmp_path: Path) -> None:
    play(kind, seed, local_ray, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "seed"), [(VICTIMS[n % 3], 100 + n) for n in range(30)])
def test_killed_at_thirty_random_moments(kind: str, seed: int, local_ray: str, tmp_path: Path) -> None:
    play(kind, seed, local_ray, tmp_path)
