"""A study's numbers in MLflow and TensorBoard: the real packages, read back; and what happens when they fail."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial

from raysense.cli import main
from raysense.execution.executor import EvaluatorSpec
from raysense.execution.logged_values import figures
from raysense.execution.ray.driver import RayExecutor, _name_of
from raysense.execution.ray.tracking import Tracker
from raysense.records import Evaluation, Measure
from raysense.store import Store
from raysense.study import Track
from tests.execution.curves import Curves

DENOMINATORS = {
    "zeros_before": 0, "n_selected": 100, "n_prunable": 100, "n_components": 200, "n_pipeline": 400,
}  # fmt: skip
TRIALS, LEVELS = 3, 4


def run(folder: Path, track: Track, **arguments: Any) -> Store:
    """A small study through Ray; its store."""
    spec = EvaluatorSpec("tests.execution.sleepers:sleeper", arguments)
    executor = RayExecutor(spec, evaluators=2, tracker=Tracker(track, "tiny", DENOMINATORS))
    store = Store.open(str(folder), create=True)
    assert executor.run(Curves(TRIALS, LEVELS), store, signature="s", lookahead=6).finished
    return Store.open(str(folder), create=True)


def expected(store: Store) -> dict[str, list[dict[str, float]]]:
    """By trial, the figures of its evaluations in order, from the Parquet rows alone."""
    level = {row["allocation"]: row["level"] for row in store.table("allocations").to_pylist()}
    found: dict[str, list[dict[str, float]]] = {}
    for evaluation in sorted(store.evaluations(), key=lambda evaluation: level[evaluation.allocation]):
        found.setdefault(evaluation.trial, []).append(figures(evaluation, DENOMINATORS))
    return found


@pytest.mark.usefixtures("local_ray")
def test_mlflow_shows_what_the_rows_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    rows = expected(run(tmp_path / "store", Track(mlflow=uri, experiment="mine"), fail_on="layer001=3"))
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {one.info.run_name for one in runs} == set(rows)
    assert len(rows) == TRIALS
    for one in runs:
        assert one.info.status == "FINISHED"
        assert one.data.params["stage"] == "sensitivity"
        assert one.data.params["trial"] == one.info.run_name
        assert one.data.params["rungs"] == "probe"
        assert one.data.tags["raysense.study"] == "tiny"
        evaluations = rows[one.info.run_name]
        for name in set().union(*evaluations):
            history = {m.step: m.value for m in client.get_metric_history(one.info.run_id, name)}
            by_step = {step: row[name] for step, row in enumerate(evaluations, 1) if name in row}
            assert history == by_step, name  # the very same numbers
    failed = [one for one in runs if one.data.params["trial"].endswith("layer001")]
    assert sum(m.value for m in client.get_metric_history(failed[0].info.run_id, "probe/failed")) == 1


@pytest.mark.usefixtures("local_ray")
def test_tensorboard_shows_what_the_rows_say(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = tmp_path / "board"
    rows = expected(run(tmp_path / "store", Track(tensorboard=str(board))))
    assert len(rows) == TRIALS
    for trial, evaluations in rows.items():
        events = EventAccumulator(str(board / "tiny" / trial))
        events.Reload()
        for name in set().union(*evaluations):
            shown = {event.step: event.value for event in events.Scalars(f"ray/tune/{name}")}
            by_step = {step: row[name] for step, row in enumerate(evaluations, 1)}
            assert shown == pytest.approx(by_step, rel=1e-6), name  # event files hold single precision


def test_a_package_that_cannot_be_imported_is_logged_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from raysense.execution.ray import tracking

    def broken(folder: Path) -> None:
        raise ImportError("half installed")

    monkeypatch.setattr(tracking, "_tensorboard", broken)
    with caplog.at_level(logging.WARNING, "raysense"), Tracker(Track(tensorboard="x"), "tiny", {}) as tracker:
        tracker.end(trial_of("a"), failed=False)
    assert "track.tensorboard: ImportError: half installed" in caplog.text


@pytest.mark.usefixtures("local_ray")
def test_a_failure_is_logged_once_and_changes_no_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING, "raysense"):
        store = run(tmp_path / "store", Track(tensorboard=str(tmp_path / "file")))
    assert len(store.table("evaluations")) == TRIALS * LEVELS
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("track.")]
    assert line.startswith("track.tensorboard: ")
    assert "The study goes on" in line
    other = Store.open(str(tmp_path / "plain"), create=True)
    plain = RayExecutor(EvaluatorSpec("tests.execution.sleepers:sleeper"), evaluators=2)
    assert plain.run(Curves(TRIALS, LEVELS), other, signature="s", lookahead=6).finished
    assert values(store) == values(other)


def trial_of(name: str) -> Trial:
    """A trial of Tune's of this name."""
    return Trial("x", stub=True, config={"trial": name}, trial_name_creator=_name_of)


def values(store: Store) -> set[tuple[str, float]]:
    return {(row["key"], row["value"]) for row in store.table("measures").to_pylist()}


def test_a_server_that_hangs_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from raysense.execution.ray import tracking

    let_go = threading.Event()

    class Hangs:
        def __init__(self, folder: Path) -> None: ...

        def setup(self) -> None:
            let_go.wait(60)

    monkeypatch.setattr(tracking, "_tensorboard", Hangs)
    monkeypatch.setattr(tracking, "WAIT_SECONDS", 0.1)
    trial = trial_of("search/a/0")
    try:
        with (
            caplog.at_level(logging.WARNING, "raysense"),
            Tracker(Track(tensorboard=str(tmp_path)), "tiny", {}) as tracker,
        ):
            tracker.start(trial)
            tracker.report(trial, EVALUATION)
            tracker.end(trial, failed=False)
    finally:
        let_go.set()
    assert "not everything is shown yet" in caplog.text


EVALUATION = Evaluation(
    key="k",
    trial="search/a/0",
    stage="search",
    allocation="a",
    rung="score",
    zeros=50,
    images=8,
    nfe=64,
    seconds=2.0,
    measures={
        "frechet_rise": Measure(3.0, 1.0, 5.0, 8, "x"),
        "kid_rise": Measure(float("nan"), 0.0, 1.0, 8, "x"),
    },
    collapsed="constant",
)


def test_figures_name_the_rung_and_leave_out_what_is_no_number() -> None:
    found = figures(EVALUATION, DENOMINATORS)
    assert found["score/frechet_rise"] == 3.0
    assert found["score/frechet_rise_ci_high"] == 5.0
    assert found["score/sparsity_components"] == 0.25
    assert found["score/collapsed"] == 1
    assert "score/kid_rise" not in found
    assert "score/sparsity_components" not in figures(EVALUATION, {})


def test_what_a_restarted_trial_reports_again_is_shown_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    name = "search/../../out side/0"  # a hostile name stays below the folder
    trial = trial_of(name)
    with Tracker(Track(tensorboard=str(tmp_path / "board")), "tiny", DENOMINATORS) as tracker:
        tracker.start(trial)
        tracker.report(trial, EVALUATION)
        tracker.start(trial)
        tracker.report(trial, EVALUATION)
        tracker.end(trial, failed=False)
    (file,) = tmp_path.rglob("events.out.*")
    assert file.is_relative_to(tmp_path / "board" / "tiny")
    events = EventAccumulator(str(file.parent))
    events.Reload()
    assert len(events.Scalars("ray/tune/score/frechet_rise")) == 1


@pytest.mark.parametrize(("key", "package"), [("mlflow", "mlflow"), ("tensorboard", "tensorboardX")])
def test_a_missing_package_names_the_extra_before_anything_starts(
    key: str,
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from importlib import util

    found = util.find_spec
    monkeypatch.setattr(
        util, "find_spec", lambda name, *rest: None if name == package else found(name, *rest)
    )
    out = tmp_path / "run"
    assert main(["search", "--set", f"track.{key}={tmp_path}/x", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert f"pip install 'raysense[{key}]'" in error
    assert len(error.splitlines()) == 1
    assert not out.exists()
