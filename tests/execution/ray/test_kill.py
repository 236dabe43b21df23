"""SIGKILL at random moments, then resume: the same evaluations with the same values, none twice, none in half."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from raysense.execution.local import LocalExecutor
from raysense.records import Measure
from raysense.store import Store
from tests.execution.conftest import node_arguments
from tests.execution.curves import Chain
from tests.execution.killed_driver import LENGTH, LOOKAHEAD, WIDTH
from tests.execution.sleepers import Sleeper

VICTIMS = ("driver", "evaluator", "trial")


def values(uri: Path) -> dict[str, tuple[str, str, dict[str, Measure]]]:
    """What a store holds, by key; fails on duplicates."""
    found = Store.open(str(uri), create=True).evaluations()
    assert len({e.key for e in found}) == len(found)
    return {e.key: (e.trial, e.allocation, dict(e.measures)) for e in found}


def victim(kind: str, driver: subprocess.Popen[bytes], log: Path, rng: random.Random) -> int | None:
    """The process to kill; of the tests' own Ray only, never by a broad name."""
    if kind == "driver":
        return driver.pid
    ours = psutil.Process().children(recursive=True)
    if kind == "evaluator":
        pids = [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("load")]
        alive = [process.pid for process in ours if process.pid in pids]
        return rng.choice(alive) if alive else None
    # Ray names a worker's process after the class, or the method, of the actor it holds.
    trials = [
        process.pid for process in ours if named(process, "ray::ResourceTrainable", "ray::EvaluationTrial")
    ]
    return rng.choice(trials) if trials else None


def named(process: psutil.Process, *names: str) -> bool:
    try:
        return " ".join(process.cmdline()).startswith(names)
    except psutil.Error:
        return False


def play(kind: str, seed: int, address: str, folder: Path, nodes: Nodes | None = None) -> None:
    rng, uri, log = random.Random(seed), folder / "store", folder / "log"
    log.touch()
    gpus = "1" if nodes else "0"
    command = [sys.executable, "-m", "tests.execution.killed_driver", address, str(uri), str(log), gpus]
    after = rng.randrange(1, LENGTH * WIDTH - 8)  # evaluations stored before the blow
    struck = False
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as driver:
        while driver.poll() is None and not struck:
            if len(list((uri / "objects").glob("*.json"))) >= after:
                time.sleep(rng.random() * 0.15)
                if nodes is not None:
                    nodes.kill(rng)
                    nodes.add()
                    struck = True
                elif kind == "ctrl-c twice":
                    for _ in range(2):
                        driver.send_signal(signal.SIGINT)
                        time.sleep(0.1)
                    struck = True
                elif (pid := victim(kind, driver, log, rng)) is not None:
                    os.kill(pid, signal.SIGKILL)
                    struck = True
            time.sleep(0.01)
        driver.wait(240)
    assert struck
    values(uri)  # readable, whatever moment it was
    if kind in ("driver", "ctrl-c twice"):
        assert driver.returncode != 0
        time.sleep(1.0)  # evaluators of the dead driver finish or end; what they store counts
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=240)
    else:
        assert driver.returncode == 0

    reference = Chain(LENGTH, WIDTH)
    whole = Store.open(str(folder / "whole"), create=True)
    LocalExecutor(Sleeper()).run(reference, whole, signature="s", lookahead=LOOKAHEAD)
    assert values(uri) == values(folder / "whole")  # the same keys with equal values: tolerance 0
    assert not list((uri / "objects").iterdir())
    # At most what was in flight (two evaluators) was measured twice.
    measured = sum(line.startswith("eval") for line in log.read_text().splitlines())
    assert measured <= LENGTH * WIDTH + 2


def lives(log: Path) -> set[str]:
    """Processes that measured."""
    return {line.split()[1] for line in log.read_text().splitlines() if line.startswith("eval")}


class Nodes:
    """Nodes of the tests' cluster with a fake GPU each."""

    def __init__(self, cluster: Any, count: int) -> None:
        self._cluster = cluster
        self._nodes = list[Any]()
        for _ in range(count):
            self.add()

    def add(self) -> None:
        self._nodes.append(self._cluster.add_node(num_cpus=1, num_gpus=1, **node_arguments()))

    def kill(self, rng: random.Random) -> None:
        """SIGKILL, as when a machine is taken away: to the node's own process and all that it runs."""
        node = self._nodes.pop(rng.randrange(len(self._nodes)))
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for process in (raylet, *raylet.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._cluster.remove_node(node)  # what is left of its processes

    def close(self) -> None:
        for node in self._nodes:
            self._cluster.remove_node(node)


@pytest.fixture
def gpu_nodes(cluster: Any, local_ray: str) -> Iterator[Nodes]:
    nodes = Nodes(cluster, 2)
    yield nodes
    nodes.close()


@pytest.mark.parametrize(("kind", "seed"), [(kind, n) for n, kind in enumerate(VICTIMS)])
def test_killed_at_a_random_moment(kind: str, seed: int, local_ray: str, tmp_path: Path) -> None:
    play(kind, seed, local_ray, tmp_path)


@pytest.mark.long
def test_several_nodes_one_killed_one_joining_late(gpu_nodes: Nodes, local_ray: str, tmp_path: Path) -> None:
    """Their store is a shared folder; both first nodes and the late one measure."""
    play("node", 7, local_ray, tmp_path, gpu_nodes)
    assert len(lives(tmp_path / "log")) == 3


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "seed"), [(([*VICTIMS, "node", "ctrl-c twice"])[n % 5], 100 + n) for n in range(30)]
)
def test_killed_at_thirty_random_moments(
    kind: str, seed: int, local_ray: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    nodes = request.getfixturevalue("gpu_nodes") if kind == "node" else None
    play(kind, seed, local_ray, tmp_path, nodes)
