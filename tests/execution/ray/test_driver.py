"""The real path: Tune trials, evaluator pool, resident evaluators, on a local Ray."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import raysense
from raysense.allocation import Allocation
from raysense.cli import main
from raysense.errors import RaysenseError
from raysense.execution.executor import EvaluatorSpec
from raysense.execution.local import LocalExecutor
from raysense.execution.progress import Outcome, Snapshot
from raysense.execution.ray.actor import EvaluatorActor, PoolSpec
from raysense.execution.ray.driver import RayExecutor
from raysense.execution.ray.pool import room
from raysense.execution.ray.time_limits import SLOWER, UNKNOWN_SECONDS, TimeLimits
from raysense.records import CALIBRATION, Evaluation, EvaluationRequest, TrialSpec
from raysense.store import Store
from raysense.strategies.base import Strategy
from tests.execution.curves import Chain, Climbs, Curves
from tests.execution.sleepers import Sleeper

SPEC = EvaluatorSpec("tests.execution.sleepers:sleeper")
ROW = Evaluation(measures={}, zeros=0, images=0, nfe=0, seconds=0.0)

pytestmark = pytest.mark.usefixtures("local_ray")


def run(strategy: Strategy, uri: Path, count: int = 2, **arguments: Any) -> Outcome:
    options = {name: arguments.pop(name) for name in ("gpus", "patience") if name in arguments}
    on_progress = arguments.pop("on_progress", None)
    spec = EvaluatorSpec(arguments.pop("target", "tests.execution.sleepers:sleeper"), arguments)
    executor = RayExecutor(spec, evaluators=count, **options)
    store = Store.open(str(uri), create=True)
    return executor.run(strategy, store, signature="s", lookahead=6, on_progress=on_progress)


def rows(uri: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = Store.open(str(uri), create=True).table("evaluations").to_pylist()
    return found


def test_rows_join_with_tunes_own_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every trial that Tune ran was asked for, every one of its reports a row, and no row comes from elsewhere."""
    from ray import tune

    grids: list[Any] = []
    fit = tune.Tuner.fit

    def kept(self: Any) -> Any:
        grids.append(fit(self))
        return grids[-1]

    monkeypatch.setattr(tune.Tuner, "fit", kept)
    strategy, reference = Curves(6, 4, stop_above=3.0), Curves(6, 4, stop_above=3.0)
    log = tmp_path / "log"
    seen: list[Snapshot] = []
    outcome = run(strategy, tmp_path / "store", log=str(log), seconds=0.1, on_progress=seen.append)
    assert outcome.finished

    ref = Store.open(str(tmp_path / "ref"), create=True)
    LocalExecutor(Sleeper()).run(reference, ref, signature="s", lookahead=6)
    assert strategy.told == reference.told

    stored = rows(tmp_path / "store")
    reports = {result.metrics["trial_id"]: result.metrics["training_iteration"] for result in grids[0]}
    trials = {result.metrics["trial_id"]: result.config["trial"] for result in grids[0]}
    assert {trial: sum(row["ray_trial"] == trial for row in stored) for trial in reports} == reports
    assert all(trials[row["ray_trial"]] == row["trial"] for row in stored)

    lines = [line.split() for line in log.read_text().splitlines()]
    loads = [line[1] for line in lines if line[0] == "load"]
    measured = [line[1] for line in lines if line[0] == "eval"]
    assert len(loads) == len(set(loads)) == 2  # loaded once per life
    assert len(measured) == len(stored) == outcome.snapshot.measured
    assert {row["evaluator"].split("-")[-2] for row in stored} <= set(loads)
    assert max(snapshot.evaluators for snapshot in seen) == 2
    assert seen[-1].done == len(stored)

    # Resumed, the study is answered by the store, and needs no cluster.
    again = Curves(6, 4, stop_above=3.0)
    assert run(again, tmp_path / "store", log=str(log)).snapshot.measured == 0
    assert again.told == strategy.told
    assert len(grids) == 1


def test_requests_that_fail_or_kill_are_failed_rows_and_the_study_goes_on(tmp_path: Path) -> None:
    strategy = Curves(5, 3)
    outcome = run(strategy, tmp_path, fail_on="layer001=2", die_on="layer003=1")
    assert outcome.finished
    assert outcome.snapshot.failed == 2
    failed = {row["trial"][-3:]: row["failed"] for row in rows(tmp_path) if row["failed"]}
    assert failed["001"] == "ValueError: cannot measure unet:layer001=2"
    assert failed["003"].startswith("the evaluator died")
    assert len(rows(tmp_path)) == 15


def test_an_evaluator_that_raised_is_replaced_and_its_request_goes_elsewhere(tmp_path: Path) -> None:
    """One evaluator's context breaks; it would turn every request that it is given into a failure."""
    strategy = Curves(8, 4)
    outcome = run(
        strategy,
        tmp_path / "store",
        poison_on="layer001=2",
        once=str(tmp_path / "once"),
        seconds=0.1,
    )
    assert outcome.finished
    assert outcome.snapshot.failed == 0
    assert len(rows(tmp_path / "store")) == 32


def test_an_evaluator_that_hangs_is_replaced(tmp_path: Path) -> None:
    strategy = Curves(8, 4)
    outcome = run(
        strategy,
        tmp_path / "store",
        hang_on="layer005=2",
        once=str(tmp_path / "once"),
        seconds=0.05,
        patience=3.0,
    )
    assert outcome.finished
    assert outcome.snapshot.failed == 0
    assert len(rows(tmp_path / "store")) == 32


def test_time_limits_follow_the_plan_and_what_was_seen() -> None:
    limits, dense = TimeLimits(600.0), Allocation()
    score, probe = EvaluationRequest(dense, "score"), EvaluationRequest(dense, "probe")
    assert limits.seconds(score, 1000) == UNKNOWN_SECONDS  # nothing is known yet
    limits.seen(replace(ROW, rung="probe", seconds=10.0, nfe=100))
    assert limits.seconds(probe, 100) == 600.0
    assert limits.seconds(score, 10_000) == SLOWER * 1000.0  # as slow a pace as the probe's
    limits.seen(replace(ROW, rung="score", seconds=1.0, nfe=0))  # put together from what was there
    assert limits.seconds(score, 10_000) == SLOWER * 1000.0
    assert limits.seconds(EvaluationRequest(dense, CALIBRATION), 100) == UNKNOWN_SECONDS


def test_want_of_memory_leaves_the_evaluator_in_place(tmp_path: Path) -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    class Raises:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def evaluate(self, request: EvaluationRequest) -> Evaluation:
            raise self.error

    trial_spec = TrialSpec("q", "search", (EvaluationRequest(Allocation(), "score"),))
    sound = {}
    for error in (OutOfMemoryError("2 GiB"), MemoryError(), RuntimeError("illegal access"), ValueError()):
        resident = EvaluatorActor(PoolSpec(SPEC, str(tmp_path), "s", 1, 1, 0, raysense.__version__, True))
        resident._store = Store.open(str(tmp_path), create=True)
        resident._evaluator = Raises(error)
        sound[type(error).__name__] = resident.measure(trial_spec, trial_spec.requests[0], "t").sound
    assert sound == {
        "OutOfMemoryError": True,
        "MemoryError": True,
        "RuntimeError": False,
        "ValueError": False,
    }


def test_ctrl_c_once_finishes_what_is_in_flight(tmp_path: Path) -> None:
    strategy = Chain(30, width=2)

    def interrupt() -> None:
        while len(list((tmp_path / "objects").glob("*.json"))) < 5:
            time.sleep(0.05)
        os.kill(os.getpid(), 2)

    thread = threading.Thread(target=interrupt)
    thread.start()
    outcome = run(strategy, tmp_path, seconds=0.3)
    thread.join()
    assert not outcome.finished
    stored = rows(tmp_path)
    assert 5 <= len(stored) < 30
    assert outcome.snapshot.done == len(stored)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gpus": 1.0}, "gpus_per_evaluator: 1.*no node of the cluster has them"),
        ({"target": "no.such:thing"}, "no.such:thing.*importable on every worker"),
        ({"load_seconds": "soon"}, "no evaluator can be loaded: TypeError"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RaysenseError, match=message):
        run(Curves(2, 2), tmp_path, count="auto", **arguments)  # type: ignore[arg-type]
    with Store.open(str(tmp_path), create=True).lock():
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "cluster.gpus_per_evaluator=1"], "gpus_per_evaluator: 1"),
        (["--out", "/proc/nobody/run"], "cannot write"),
    ],
)
def test_the_command_line_says_it_in_one_line_and_exits_with_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the cluster that this process is connected to, which has no GPU; and on a disk that takes no files."""
    assert main(["search", "--out", str(tmp_path / "run"), *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith("raysense: error: ")
    assert message in line
    assert "Traceback" not in line


def test_trial_processes_are_kept_for_the_next_trial(tmp_path: Path) -> None:
    """A chain leaves no trial pending; Tune alone would end idle processes and start others again and again."""
    before = trial_processes()
    seen: set[int] = set()
    run(Chain(16), tmp_path, seconds=0.1, on_progress=lambda snapshot: seen.update(trial_processes()))
    assert (
        1 <= len(seen - before) <= 4
    )  # 3 run at once; one more may be asked for before there is an idle one


class KillsIdleTrials(Chain):
    """Between its third trial and its fourth the processes of trials are killed, when none has anything to do."""

    def ask(self) -> TrialSpec | None:
        if self.asked == 3:
            for process in trial_processes():
                os.kill(process, signal.SIGKILL)
        return super().ask()


def test_an_idle_trial_process_that_dies_is_replaced(tmp_path: Path) -> None:
    """Tune gives up the trial that is given to such a process, whatever failures it allows."""
    executor = RayExecutor(SPEC, evaluators=1)
    store = Store.open(str(tmp_path), create=True)
    assert executor.run(KillsIdleTrials(5, 2), store, signature="s", lookahead=1).finished
    assert len(rows(tmp_path)) == 10


def test_a_candidate_climbs_to_its_next_rung_on_the_same_evaluator(tmp_path: Path) -> None:
    """It has sampled some of that rung's images; the trials that wait for an evaluator wait a moment longer."""
    run(Climbs(12), tmp_path, seconds=0.1)
    evaluators: dict[str, set[str]] = {}
    for row in rows(tmp_path):
        evaluators.setdefault(row["trial"], set()).add(row["evaluator"])
    assert len(evaluators) == 12
    assert len(set.union(*evaluators.values())) == 2
    assert all(len(used) == 1 for used in evaluators.values())


def test_a_worker_that_sees_another_folder_than_the_driver_is_refused(tmp_path: Path) -> None:
    """A node whose `--out` is a folder of its own would keep its rows to itself."""
    spec = EvaluatorSpec("tests.execution.sleepers:sleeper", {})
    plan = PoolSpec(
        spec, str(tmp_path), "s", count=1, cpus=1, gpus=0, version=raysense.__version__, begun=True
    )
    assert "a folder that every machine sees" in EvaluatorActor(plan).load().fatal
    Store.open(str(tmp_path), create=True).begin({}, signature="s")
    assert not EvaluatorActor(plan).load().fatal


def trial_processes() -> set[int]:
    """Tune's trials on this machine that descend from this process."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            # Named after its class, and after Tune's for it while it is in a method.
            if " ".join(process.cmdline()).startswith(("ray::EvaluationTrial", "ray::ResourceTrainable")):
                found.add(process.pid)
    return found


def test_a_worker_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raysense, "__version__", "9.9.9")
    with pytest.raises(RaysenseError, match=r"the driver 9\.9\.9\. Install the same version on every node"):
        run(Curves(2, 2), tmp_path)


def test_storage_that_vanishes_stops_the_study(tmp_path: Path) -> None:
    uri = tmp_path / "store"

    def vanish(snapshot: Snapshot) -> None:
        if snapshot.done and not uri.is_symlink() and uri.is_dir():
            uri.rename(tmp_path / "gone")
            uri.write_text("")

    with pytest.raises(RaysenseError, match="cannot"):
        run(Curves(40, 4), uri, seconds=0.1, on_progress=vanish)


def test_a_strategys_own_error_stops_clean(tmp_path: Path) -> None:
    class Faulty(Chain):
        def ask(self) -> Any:
            if self.asked == 3:
                raise ValueError("no such layer")
            return super().ask()

    with pytest.raises(ValueError, match="no such layer"):
        run(Faulty(9), tmp_path)


def test_the_number_of_evaluators_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(RaysenseError, match="evaluators: 0"):
        run(Chain(1), tmp_path, count=0)


def test_room_counts_what_fits_on_living_nodes() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 3.0, "GPU": 4.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
        {"Alive": True, "Resources": {"CPU": 64.0}},
    ]
    assert room(nodes, 1, 1) == 2 + 3
    assert room(nodes, 0, 0.5) == 4 + 8
    assert room(nodes, 4, 0) == 2 + 0 + 16
