"""What a user does: the command line, the main job on Ray, resume, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from diffusers import DiffusionPipeline

from raysense.pipelines.load import pipeline_folder

TINY = [
    "name=tiny",
    "search.granularity=component",
    "search.bisections=2",
    "search.rounds=1",
    "search.offspring=2",
    "search.levels=3",
    "search.strategies=[uniform, owl, solver]",
    "prune.saliency=wanda",
    "prune.calibration.prompts=4",
    "rungs.probe={prompts: 4, timesteps: 2}",
    "rungs.preview.prompts=8",
    "rungs.score.prompts=12",
    "rungs.validation.prompts=12",
    "sampling.steps=4",
    "constraints={clip_score: {max_drop: 0.5}}",
]


def raysense(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raysense.cli", *args], capture_output=True, text=True, cwd=cwd, check=False
    )


def with_set(values: list[str]) -> list[str]:
    return [part for value in values for part in ("--set", value)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    done = raysense("search", *with_set(TINY), "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of the parameters of the studied components can go" in " ".join(done.stdout.split())
    assert f"Page:    {out / 'report.html'}" in done.stdout
    assert (out / "report.html").stat().st_size > 500_000
    return out


def summary_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "summary.json").read_text()))


def test_the_summary_is_complete_and_consistent(finished: Path) -> None:
    summary = summary_of(finished)
    assert summary["feasible"] is True
    assert summary["sparsity_components"] == pytest.approx(summary["zeros"] / summary["n_components"])
    assert summary["sparsity_pipeline"] < summary["sparsity_components"] < summary["sparsity_prunable"]
    for metric in summary["metrics"].values():
        assert metric["low"] <= metric["value"] <= metric["high"]
        assert metric["n"] == 12
        assert metric["extractor"]
    assert summary["dense"]["clip_score"]["n"] == 12
    for name in ("constraints", "evaluations", "images", "cost", "seconds"):
        assert summary[name]


def test_the_tables_hold_every_evaluation_once_answered_by_tune_trials(finished: Path) -> None:
    evaluations = pd.read_parquet(finished / "tables" / "evaluations")
    assert len(evaluations) == summary_of(finished)["evaluations"]
    assert evaluations["key"].is_unique
    assert set(evaluations["stage"]) == {"baseline", "sensitivity", "search", "validation"}
    assert (evaluations["trial"] != "in-process").all()
    assert (evaluations["trial"] != "").all()
    assert set(evaluations["method"]) == {"wanda"}
    (calibration,) = evaluations[evaluations["rung"] == "calibration"].to_dict("records")
    assert calibration["cost"] == 4 * 4 * 2
    assert evaluations["cost"].sum() == summary_of(finished)["cost"]
    measures = pd.read_parquet(finished / "tables" / "measures")
    assert set(measures["key"]) == set(evaluations["key"])
    allocations = pd.read_parquet(finished / "tables" / "allocations")
    winner = allocations[allocations["allocation"] == summary_of(finished)["allocation"]]
    # A layer that moves with another has no row of its own; its zeros stand with the layer that leads it.
    assert winner["zeros"].sum() == summary_of(finished)["zeros"]


def test_resuming_a_finished_study_measures_nothing_and_says_the_same(finished: Path) -> None:
    before = summary_of(finished)
    again = raysense("search", *with_set(TINY), "--out", str(finished), "--resume")
    assert again.returncode == 0, again.stderr
    after = summary_of(finished)
    for name in ("zeros", "allocation", "metrics", "evaluations", "cost"):
        assert after[name] == before[name]


def test_a_finished_study_is_not_overwritten(finished: Path) -> None:
    refused = raysense("search", *with_set(TINY), "--out", str(finished))
    assert refused.returncode == 2
    assert "add --resume" in refused.stderr


def test_another_definition_is_refused_with_the_difference(finished: Path) -> None:
    changed = raysense("search", *with_set([*TINY, "seed=7"]), "--out", str(finished), "--resume")
    assert changed.returncode == 2
    assert "seed" in changed.stderr
    assert "Traceback" not in changed.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--set", "prune.components=[unett]"], ["unett", "unet"]),
        (["--set", "pipeline=nobody/nothing"], ["`pipeline`", "nobody/nothing"]),
        (["--set", "prune.saliency=magic"], ["magic", "magnitude"]),
        (["--set", "search.strategies=[magic]"], ["search.strategies", "magic", "uniform"]),
        (["--set", "prune.include=[nowhere*]"], ["nowhere*"]),
        (["--set", "rungs.score.prompts=100000"], ["`rungs.score.prompts` must be ≤"]),
        (["--set", "metrics.frechet.extractor=magic"], ["magic"]),
        (["none.yaml"], ["none.yaml"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_input_gives_one_error_and_leaves_nothing(
    args: list[str], words: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    refused = raysense("search", *with_set(TINY), *args, "--out", str(out))
    assert refused.returncode == 2, refused.stderr
    assert "Traceback" not in refused.stderr
    for word in words:
        assert word in refused.stderr
    assert not out.exists()


def test_a_bound_that_the_dense_pipeline_misses_is_refused_with_its_value(tmp_path: Path) -> None:
    bound = "constraints={clip_score: {min: 0.99}}"
    refused = raysense("search", *with_set([*TINY, bound]), "--out", str(tmp_path / "run"))
    assert refused.returncode == 2
    assert "the dense pipeline itself has clip_score" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_help_and_validate_answer_without_torch_and_ray() -> None:
    program = (
        "import sys, raysense.cli as c; c.main(['validate']);"
        "assert not {'torch', 'ray', 'diffusers'} & set(sys.modules), 'heavy'"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "max_drop" in done.stdout
    assert time.perf_counter() - began < 5
    assert "examples:" in raysense("search", "--help").stdout


def test_layers_prints_the_inventory() -> None:
    shown = raysense("layers")
    assert shown.returncode == 0, shown.stderr
    assert "text_encoder" in shown.stdout
    assert "unet" in shown.stdout


def test_the_bundled_pipeline_loads_with_plain_diffusers() -> None:
    pipeline = DiffusionPipeline.from_pretrained(pipeline_folder("bundled"))
    images = pipeline("a big cat on a red background", num_inference_steps=2).images
    assert images[0].size == (32, 32)
