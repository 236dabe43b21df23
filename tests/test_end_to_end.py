"""What a user does: the command line, the main job on Ray, resume, bad input."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DiffusionPipeline

import raysense as rs
from raysense.allocation import Allocation
from raysense.cli import main
from raysense.errors import RaysenseError
from raysense.evaluation.evaluator import Evaluator
from raysense.export.pack import load_compressed, weight_bytes
from raysense.export.write import export
from raysense.names import BUNDLED_PIPELINES
from raysense.pipelines.origin import pipeline_folder
from raysense.pipelines.sample import call_pipeline
from raysense.prompts.sets import load_prompts
from raysense.records import EvaluationRequest
from raysense.results.pictures import Strip, strips, thumbnails
from raysense.results.run import Run

TINY = [
    "name=tiny",
    "search.granularity=component",
    "search.bisections=2",
    "search.rounds=1",
    "search.offspring=2",
    "search.levels=3",
    "search.strategies=[uniform, owl, solver]",
    "prune.saliency=[wanda, magnitude]",
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
        assert metric["ci_low"] <= metric["value"] <= metric["ci_high"]
        assert metric["n"] == 12
        assert metric["extractor"]
    assert summary["dense"]["clip_score"]["n"] == 12
    for name in ("constraints", "evaluations", "images", "nfe", "seconds"):
        assert summary[name]
    assert summary["budget"]["nfe"] == summary["nfe"]
    assert summary["budget"]["stopped"] is None
    for rung in ("score", "validation"):
        front = summary["front"][rung]["clip_score_drop"]
        assert [c["value"] for c in front] == sorted(c["value"] for c in front)
        assert front[-1]["sparsity_components"] == max(c["sparsity_components"] for c in front)
    passed = {c["allocation"] for c in summary["validated"] if c["feasible"]}
    assert {c["allocation"] for c in summary["runners_up"]} == passed - {summary["allocation"]}


def test_the_tables_hold_every_evaluation_once_answered_by_tune_trials(finished: Path) -> None:
    evaluations = pd.read_parquet(finished / "tables" / "evaluations")
    assert len(evaluations) == summary_of(finished)["evaluations"]
    assert evaluations["key"].is_unique
    assert set(evaluations["stage"]) == {"baseline", "sensitivity", "search", "validation"}
    assert (evaluations["ray_trial"] != "in-process").all()
    assert (evaluations["ray_trial"] != "").all()
    dense = evaluations["allocation"] == Allocation().key
    (method,) = set(evaluations[~dense]["method"])  # the selection has one outcome for all evaluators
    assert re.fullmatch("text_encoder: (wanda|magnitude), unet: (wanda|magnitude)", method)
    assert set(evaluations[dense]["method"]) == {"wanda or magnitude"}  # whoever measured it, and when
    (calibration,) = evaluations[evaluations["rung"] == "calibration"].to_dict("records")
    inputs, recorded, probes = 4 * 4 * 2, 4 * (4 + 2) * 2, 2 * 2 * 3 * 4 * 2 * 2
    assert calibration["nfe"] == inputs + recorded + probes
    compared = pd.read_parquet(finished / "tables" / "measures").query("key == @calibration['key']")
    assert compared["metric"].str.startswith("contest/").sum() == 2 * 2 * 3
    assert evaluations["nfe"].sum() == summary_of(finished)["nfe"]
    measures = pd.read_parquet(finished / "tables" / "measures")
    assert set(measures["key"]) == set(evaluations["key"])
    allocations = pd.read_parquet(finished / "tables" / "allocations")
    winner = allocations[allocations["allocation"] == summary_of(finished)["allocation"]]
    # A layer that moves with another has no row of its own; its zeros stand with the layer that leads it.
    assert winner["zeros"].sum() == summary_of(finished)["zeros"]


def _winner(shown: Sequence[Strip]) -> Strip:
    return next(strip for strip in shown if strip.kind == "winner")


def test_from_the_tables_to_a_page_an_export_and_its_images(finished: Path, tmp_path: Path) -> None:
    """Zeros, metrics and images agree from the study's rows to what a user samples from the exported pipeline."""
    summary, run = summary_of(finished), Run(str(finished))
    for query in sorted((Path(__file__).parents[1] / "reports" / "queries").glob("*.sql")):
        assert len(run.sql(query.read_text())) > 0, query
    page = (finished / "report.html").read_text()
    assert f"{summary['sparsity_components']:.1%}" in page
    assert f"{summary['zeros']:,}" in page
    shown = strips(run, run.candidates(), 6, paint=False)  # the pictures on the page
    assert {"dense", "winner"} <= {strip.kind for strip in shown}
    assert shown[-1].note.endswith("not measured"), "the winner's proportions, where a person sees the damage"
    beyond, won = (np.abs(s.pixels.astype(int) - shown[0].pixels).mean() for s in (shown[-1], _winner(shown)))
    assert beyond > won

    out = tmp_path / "pruned"
    exported = raysense("export", str(finished), "--out", str(out))
    assert exported.returncode == 0, exported.stderr
    pipeline = DiffusionPipeline.from_pretrained(out)
    zeros = run.layer_sparsity(run.allocation(summary["allocation"])).set_index("layer")["zeros"]
    record = json.loads((out / "allocation.json").read_text())
    for layer, count in zeros.items():
        component, path = str(layer).split(":")
        weight = getattr(pipeline, component).get_submodule(path).weight
        assert int((weight == 0).sum()) == record["zeros_by_layer"][layer] >= count
    assert record["zeros"] == summary["zeros"] == sum(record["zeros_by_layer"].values())
    prompts = load_prompts("bundled").validation[:6]
    images = call_pipeline(pipeline, prompts, [0] * 6, run.study.sampling)
    winner = _winner(shown)
    assert np.abs(thumbnails(images).numpy().astype(int) - winner.pixels.astype(int)).max() <= 1

    study = run.study.model_copy(update={"pipeline": str(out)})
    again = Evaluator(study, str(tmp_path / "again")).evaluate(EvaluationRequest(Allocation(), "validation"))
    assert again.zeros == summary["zeros"]
    assert again.measures["clip_score"].value == pytest.approx(
        summary["metrics"]["clip_score"]["value"], abs=1e-4
    )


def test_a_compressed_export_is_smaller_and_comes_back_bit_for_bit(finished: Path, tmp_path: Path) -> None:
    plain = export(str(finished), tmp_path / "plain")
    small = export(str(finished), tmp_path / "small", compressed=True)
    assert small.zeros == plain.zeros == summary_of(finished)["zeros"]
    assert small.sizes["compressed"] == weight_bytes(tmp_path / "small")
    assert small.sizes["pruned"] == weight_bytes(tmp_path / "plain")
    assert small.sizes["compressed"] < small.sizes["pruned"] == small.sizes["dense"]
    assert small.sizes["compressed, zstd"] < small.sizes["pruned, zstd"] < small.sizes["dense, zstd"]
    one, two = DiffusionPipeline.from_pretrained(tmp_path / "plain"), load_compressed(tmp_path / "small")
    for component in ("text_encoder", "unet", "vae"):
        ours, theirs = getattr(one, component).state_dict(), getattr(two, component).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_export_learns_what_the_cache_has_lost(finished: Path, tmp_path: Path) -> None:
    """Which method prunes which component, and what Wanda ranks by, stand in the cache."""
    kept = export(str(finished), tmp_path / "kept")
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "cache")
    again = export(str(tmp_path / "run"), tmp_path / "again")
    assert (again.zeros, again.sizes) == (kept.zeros, kept.sizes)
    for file in sorted(kept.out.rglob("*.safetensors")):
        assert file.read_bytes() == (again.out / file.relative_to(kept.out)).read_bytes()


def test_the_dense_pipeline_is_exported_with_its_own_rows(finished: Path, tmp_path: Path) -> None:
    dense = export(str(finished), tmp_path / "dense", allocation=Allocation().key)
    record = json.loads((dense.out / "allocation.json").read_text())
    assert record["rung"] == "validation"
    assert record["saliency"] == "wanda or magnitude"
    assert record["measures"]["clip_score"]["n"] > 0
    assert dense.sizes["pruned"] == dense.sizes["dense"]


def test_an_export_overwrites_nothing_and_names_what_is_wrong(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "thesis.tex").write_text("years of work")
    for arguments, words in (
        (["--out", str(there)], "is there already"),
        (["--out", str(there), "--force"], "holds no export of raysense"),
        (["--out", str(tmp_path / "new"), "--allocation", "0123"], "no such allocation"),
    ):
        assert main(["export", str(finished), *arguments]) == 2
        assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "thesis.tex"]


def test_resuming_a_finished_study_measures_nothing_and_says_the_same(finished: Path) -> None:
    before = summary_of(finished)
    files = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != "driver.lock"}
    (start,) = before["starts"]
    assert 0 < start["seconds"] == pytest.approx(before["seconds"], abs=5)  # taken a moment apart
    again = raysense("search", *with_set(TINY), "--out", str(finished), "--resume")
    assert again.returncode == 0, again.stderr
    *waiting, line = again.stdout.splitlines()
    assert all(
        text.startswith(("Loading …", "Reading …", "Reading what")) for text in waiting
    )  # on a busy machine
    removed = before["sparsity_components"]
    assert (
        line == f"Finished already ({removed:.1%} removed); nothing to do. Page: {finished / 'report.html'}"
    )
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert summary_of(finished) == before


def test_a_finished_study_is_not_overwritten(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", *with_set(TINY), "--out", str(finished)]) == 2
    assert "add --resume" in capsys.readouterr().err


def test_another_definition_is_refused_with_the_difference(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", *with_set([*TINY, "seed=7"]), "--out", str(finished), "--resume"]) == 2
    assert "seed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--set", "prune.components=[unett]"], ["unett", "unet"]),
        (["--set", "pipeline=nobody/nothing"], ["`pipeline`", "nobody/nothing"]),
        (["--set", "prune.saliency=magic"], ["magic", "magnitude"]),
        (["--set", "search.strategies=[magic]"], ["search.strategies", "magic", "uniform"]),
        (["--set", "prune.include=[nowhere*]"], ["nowhere*"]),
        (["--set", "rungs.score.prompts=100000"], ["`rungs.score.prompts` must be ≤"]),
        (["--set", "metrics.features.extractor=magic"], ["magic"]),
        (["none.yaml"], ["none.yaml"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_input_gives_one_error_and_leaves_nothing(
    args: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["search", *with_set(TINY), *args, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    for word in words:
        assert word in said
    assert not out.exists()


def test_a_bound_that_the_dense_pipeline_misses_is_refused_with_its_value(tmp_path: Path) -> None:
    bound = "constraints={clip_score: {min: 0.99}}"
    study = rs.Study.load(overrides=[*TINY, "prune.saliency=magnitude", "search.strategies=[uniform]", bound])
    with pytest.raises(RaysenseError, match="the dense pipeline itself has clip_score"):
        rs.search(study, tmp_path / "run", in_process=True, progress=False)


def test_help_shows_examples() -> None:
    assert "examples:" in raysense("search", "--help").stdout


def test_layers_prints_the_inventory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers"]) == 0
    shown = capsys.readouterr().out
    assert "text_encoder" in shown
    assert "unet" in shown


@pytest.mark.parametrize("name", BUNDLED_PIPELINES)
def test_the_bundled_pipelines_load_with_plain_diffusers(name: str) -> None:
    absent = {"text_encoder_3": None, "tokenizer_3": None} if name == "bundled-transformer" else {}
    pipeline = DiffusionPipeline.from_pretrained(pipeline_folder(name), **absent)
    images = pipeline("a big cat on a red background", num_inference_steps=2).images
    assert images[0].size == (32, 32)
