"""One Ctrl-C, SIGTERM or SIGHUP ends a study within 20 s, whatever it is doing; a pool that dies is one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from raysense.store import Store
from tests.execution.conftest import node_arguments
from tests.execution.ray.test_kill import named

WITHIN = 20.0


class Driver:
    """A driver on the tests' Ray, measuring."""

    def __init__(self, address: str, folder: Path, seconds: float, early: str = "") -> None:
        self.uri, self.log = folder / "store", folder / "log"
        self.log.touch()
        command = [
            "-m",
            "tests.execution.stopped_driver",
            address,
            str(self.uri),
            str(self.log),
            str(seconds),
            early,
        ]
        self.process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def wait_for(self, words: str) -> None:
        until = time.monotonic() + 240
        while words not in self.log.read_text():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(0.5)

    def end(self) -> tuple[int, str, float]:
        began = time.monotonic()
        said = self.process.communicate(timeout=120)[0]
        return self.process.returncode, said, time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_takes_longer_than_a_machine_has_left_is_dropped(
    local_ray: str, tmp_path: Path, number: signal.Signals
) -> None:
    driver = Driver(local_ray, tmp_path, seconds=90)
    driver.wait_for("busy")
    driver.process.send_signal(number)
    status, said, seconds = driver.end()
    assert status == 130, said
    assert said.splitlines()[-1] == "stopped"  # in order: not by leaving Ray behind
    assert "Traceback" not in said
    assert seconds < WITHIN
    assert Store.open(str(driver.uri), create=True).evaluations() == []


def test_what_is_in_flight_is_finished_if_it_is_quick(local_ray: str, tmp_path: Path) -> None:
    driver = Driver(local_ray, tmp_path, seconds=0.3)
    driver.wait_for("eval")
    driver.process.send_signal(signal.SIGTERM)
    status, said, seconds = driver.end()
    assert (status, said.splitlines()[-1]) == (130, "stopped")
    assert seconds < WITHIN
    measured = sum(line.startswith("eval") for line in driver.log.read_text().splitlines())
    assert len(Store.open(str(driver.uri), create=True).evaluations()) == measured


def test_a_signal_before_the_first_trial(local_ray: str, tmp_path: Path) -> None:
    # Tune asks for a first trial without ever giving the run a turn: for ten minutes.
    status, said, seconds = Driver(local_ray, tmp_path, seconds=0.3, early="yes").end()
    assert (status, said.splitlines()[-1]) == (130, "stopped"), said
    assert seconds < WITHIN + 15  # of these it takes most to begin


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_ray_starts(tmp_path: Path, number: signal.Signals) -> None:
    driver = Driver("", tmp_path, seconds=0.3)
    me, until = psutil.Process(driver.process.pid), time.monotonic() + 60
    while not me.children():  # Ray's head comes first
        assert driver.process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    driver.process.send_signal(number)
    status, said, seconds = driver.end()
    assert (status, said.splitlines()[-1]) == (130, "stopped now"), said
    assert seconds < WITHIN


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_a_lost_head_is_one_sentence(tmp_path: Path, name: str) -> None:
    """With it all is gone that could finish or start a trial: Tune would wait for ever, Ray's client for a minute."""
    driver = Driver("", tmp_path, seconds=0.3)
    driver.wait_for("eval")
    (process,) = [p for p in psutil.Process(driver.process.pid).children(recursive=True) if p.name() == name]
    os.kill(process.pid, signal.SIGKILL)
    status, said, seconds = driver.end()
    assert status == 2, said
    assert len(said.strip().splitlines()) == 1, said
    assert f"{name}, a process of the Ray on this machine, was killed by SIGKILL" in said
    assert "--resume" in said
    assert seconds < WITHIN


def test_a_killed_pool_is_one_sentence(local_ray: str, tmp_path: Path) -> None:
    driver = Driver(local_ray, tmp_path, seconds=0.3)
    driver.wait_for("eval")
    (pool,) = [p for p in psutil.Process().children(recursive=True) if named(p, "ray::EvaluatorPool")]
    os.kill(pool.pid, signal.SIGKILL)
    status, said, _ = driver.end()
    assert status == 2
    assert len(said.strip().splitlines()) == 1, said
    line = said
    assert "has died" in line
    assert "--resume" in line


@pytest.mark.long
def test_a_lost_head_of_a_cluster_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's client waits for it, for a while that clusters may set; it is given up shortly before."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0, **node_arguments()})
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "30")
    try:
        driver = Driver(cluster.address, tmp_path, seconds=0.3)
        driver.wait_for("eval")
        cluster.head_node.kill_gcs_server()
        status, said, seconds = driver.end()
    finally:
        cluster.shutdown()
    assert status == 2, said
    assert len(said.strip().splitlines()) == 1, said
    assert "the head of the Ray cluster has not answered for " in said
    assert "--resume" in said
    assert 10 < seconds < 45
