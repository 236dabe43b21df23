"""One decision for search, rows, queries and frames; whatever the metric, whatever the folder is called."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pytest

from raysense.errors import RaysenseError
from raysense.feasibility import Budget, is_feasible, utilisation
from raysense.records import Evaluation, Measure
from raysense.results.run import Run
from raysense.store import Store
from raysense.strategies.verdict import quality_budget
from raysense.study import Study, revise
from raysense.study import load as load_study
from tests.conftest import REPORTS

DENOMINATORS = {
    "zeros_before": 0,
    "n_selected": 100,
    "n_prunable": 100,
    "n_components": 100,
    "n_pipeline": 200,
}


def study_of(*overrides: str) -> Study:
    return revise(load_study(), ["constraints={clip_score: {max_drop: 0.01}}", *overrides])


@pytest.fixture
def custom() -> Study:
    return study_of(
        "metrics.custom={sharpness: my_metrics.sharpness}",
        "constraints.custom={sharpness: {max_drop: 0.1, min: 0.5}}",
        "metrics.also=[ssim]",
    )


def evaluation(trial: str, rung: str, zeros: int, **measures: float) -> Evaluation:
    stage, _, _ = trial.partition("/")
    number = abs(hash((trial, rung, zeros))) % 16**8
    found = {name: Measure(value, value - 0.001, value + 0.001, 16, "x") for name, value in measures.items()}
    sample = {"prompt_id": "1", "prompt": "a cat", "seed": 0, "clip_score": 0.3, "clip_score_drop": 0.001}
    return Evaluation(
        key=f"{number:016x}",
        trial=trial,
        stage=stage,
        allocation=f"{zeros:016x}",
        rung=rung,
        measures=found,
        zeros=zeros,
        images=16,
        nfe=32,
        seconds=0.1,
        samples=[] if stage == "sensitivity" else [sample, {**sample, "prompt_id": "2"}],
    )


def judged(trial: str, rung: str, zeros: int, drop: float, sharpness: float, ssim: float) -> Evaluation:
    return evaluation(
        trial, rung, zeros, clip_score=0.3 - drop, clip_score_drop=drop, closeness=1 - drop, ssim=ssim,
        sharpness=sharpness, sharpness_drop=0.7 - sharpness,
    )  # fmt: skip


ROWS = [
    judged("baseline/score", "score", 0, 0.0, 0.7, 1.0),
    judged("search/solver/1", "score", 40, 0.002, 0.69, 0.95),
    judged("search/solver/2", "score", 60, 0.004, 0.45, 0.9),  # too blurred
    judged("search/uniform/1", "score", 30, 0.02, 0.695, 0.5),  # another content
    judged("validation/solver/1", "validation", 40, 0.003, 0.68, 0.94),
    *(evaluation("sensitivity/unet:a", "probe", zeros, probe_error=zeros / 500) for zeros in (20, 40)),
]


@pytest.fixture
def store(custom: Study, tmp_path: Path) -> Store:
    folder = tmp_path / "metric=clip" / "key=x"  # what hive partitioning reads as columns
    store = Store.open(str(folder), create=True)
    store.begin(
        custom.model_dump(mode="json"),
        signature="s",
        denominators=DENOMINATORS,
        budget=quality_budget(custom),
    )
    layer = {
        "layer": "unet:a",
        "component": "unet",
        "block": "a",
        "kind": "Linear",
        "weights": 100,
        "step": 1,
    }
    store.write_table("layers", pa.Table.from_pylist([{**layer, "levels": 95, "group": "unet:a"}]))
    for row in ROWS[:3]:
        store.put(row, {"unet:a": row.zeros} if row.zeros else {})
    store.compact()
    for row in ROWS[3:]:
        store.put(row, {"unet:a": row.zeros})
    return store


WANTED = {
    ("dense", "score"): True,
    ("solver", "score", 40): True,
    ("solver", "score", 60): False,
    ("uniform", "score"): False,
    ("solver", "validation"): True,
}


@pytest.mark.parametrize("compacted", [False, True])
def test_rows_say_who_proposed_them_and_whether_they_are_inside(store: Store, compacted: bool) -> None:
    if compacted:
        store.compact()
    rows = {row["trial"]: row for row in store.table("evaluations").to_pylist()}
    assert {name: row["feasible"] for name, row in rows.items()} == {
        "baseline/score": True,
        "search/solver/1": True,
        "search/solver/2": False,
        "search/uniform/1": False,
        "validation/solver/1": True,
        "sensitivity/unet:a": None,
    }
    strategies = {name: row["strategy"] for name, row in rows.items()}
    assert strategies["baseline/score"] == "dense"
    assert strategies["search/solver/2"] == strategies["validation/solver/1"] == "solver"
    assert strategies["sensitivity/unet:a"] == ""
    used = {name: row["constraint_utilisation"] for name, row in rows.items()}
    assert used["baseline/score"] == pytest.approx(0.1)  # the interval's worse end: 0.001 of 0.01
    assert used["search/solver/2"] == pytest.approx(0.251 / 0.1)  # the drop in sharpness
    assert used["search/uniform/1"] == pytest.approx(2.1)
    assert used["sensitivity/unet:a"] is None


def test_every_query_runs_over_a_study_with_a_custom_constraint(store: Store) -> None:
    run = Run(store.uri)
    for query in sorted((REPORTS / "queries").glob("*.sql")):
        assert len(run.sql(query.read_text())), query.name
    bounds = run.sql("FROM bounds").sort_values("field").to_dict("records")
    assert bounds == [
        {"field": "constraints.clip_score.max_drop", "metric": "clip_score_drop", "is_upper": True, "bound": 0.01},
        {"field": "constraints.custom.sharpness.max_drop", "metric": "sharpness_drop", "is_upper": True, "bound": 0.1},
        {"field": "constraints.custom.sharpness.min", "metric": "sharpness", "is_upper": False, "bound": 0.5},
    ]  # fmt: skip
    methods = run.sql((REPORTS / "queries" / "methods.sql").read_text()).set_index("strategy")
    assert methods["percent_search"].to_dict() == {
        "solver": 40.0,
        "uniform": pytest.approx(float("nan"), nan_ok=True),
    }
    assert run.candidates().query("feasible")["zeros"].to_list() == [0, 40, 40]


def test_fronts_go_the_right_way(store: Store) -> None:
    """Each is what no other beats in sparsity and in the metric, whichever way that is good."""
    run = Run(store.uri)
    for metric in ("ssim", "sharpness", "closeness", "clip_score"):
        found = run.front(metric)
        assert list(found[metric]) == sorted(found[metric], reverse=True), metric
        assert found["zeros"].iloc[0] == 0, metric
        assert found["zeros"].iloc[-1] == 60, metric
    assert list(run.front("clip_score_drop")["zeros"]) == [0, 40, 60]


def test_a_folder_whose_name_looks_like_a_partition_hides_no_column(store: Store) -> None:
    """Our own readers, and the lines that README gives for others."""
    store.compact()
    run = Run(store.uri)
    wanted = {
        "clip_score",
        "clip_score_drop",
        "closeness",
        "ssim",
        "sharpness",
        "sharpness_drop",
        "probe_error",
    }
    assert set(run.table("measures")["metric"]) == wanted
    assert set(run.sql("SELECT metric FROM measures")["metric"]) == wanted
    files = f"{store.uri}/tables/measures/*.parquet"
    found = duckdb.sql(f"SELECT DISTINCT metric FROM read_parquet('{files}', hive_partitioning = false)").df()
    assert set(found["metric"]) == wanted
    frame = pd.read_parquet(f"{store.uri}/tables/measures", partitioning=None)
    assert set(frame["metric"]) == wanted
    assert frame["key"].nunique() == len(ROWS)


def test_the_store_decides_as_the_search_does(custom: Study) -> None:
    budget = quality_budget(custom)
    assert Budget.from_fields(budget.to_fields()).to_fields() == budget.to_fields()
    for row in ROWS[:5]:
        assert budget.judged(row)["feasible"] is is_feasible(row, custom.constraints.bounds())
    wide = Budget(budget.bounds, {"score": 50.0})
    assert wide.judged(ROWS[1])["feasible"] is False  # 0.002 ± 0.05
    assert wide.judged(ROWS[4])["feasible"] is True  # the stretch is the score rung's
    broken = dataclasses.replace(ROWS[1], collapsed="all black")
    assert budget.judged(broken) == {"feasible": False, "constraint_utilisation": None}
    failed = dataclasses.replace(ROWS[1], failed="out of memory", measures={})
    assert budget.judged(failed) == {"feasible": None, "constraint_utilisation": None}


@pytest.mark.parametrize(
    ("constraint", "measures", "used"),
    [
        ("{clip_score: {min: 0.2}}", {"clip_score": 0.28, "clip_score_drop": 0.02}, 0.021 / 0.1),
        ("{frechet: {max: 300}}", {"frechet": 250.0, "frechet_rise": 50.0}, 50.001 / 100),
        ("{closeness: {min: 0.8}}", {"closeness": 0.9}, 0.101 / 0.2),
        ("{lpips: {max: 0.2}}", {"lpips": 0.1}, 0.101 / 0.2),
        ("{clip_score: {max_drop: 0.1}, lpips: {max: 0.2}}", {"clip_score_drop": 0.08, "lpips": 0.1}, 0.81),
    ],
)
def test_utilisation_counts_from_the_dense_pipeline(
    constraint: str, measures: dict[str, float], used: float
) -> None:
    bounds = study_of(f"constraints={constraint}").constraints.bounds()
    assert utilisation(evaluation("search/x/1", "score", 1, **measures), bounds) == pytest.approx(used)


@pytest.mark.parametrize(
    "name",
    ["clip_score", "frechet_rise", "sharp_drop", "sharp_ci_low", "sharp_n", "key", "prompt", "prompt_id", "seed",
     "value", "feasible", "strategy", "zeros", "rung", "sparsity_components", "n_components", "constraint_utilisation"],
)  # fmt: skip
def test_a_custom_metric_may_not_be_called_like_a_column_or_a_measure(name: str) -> None:
    with pytest.raises(RaysenseError, match=f"`metrics.custom.{name}` must not "):
        study_of(f"metrics.custom={{{name}: my_metrics.sharpness}}")
