"""Relative paths mean beside the study file; what users named is shown as it is."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from raysense.errors import RaysenseError
from raysense.execution.progress import Snapshot
from raysense.execution.progress_view import LiveView
from raysense.results.summary import render
from raysense.study import load
from raysense.terminal import say

REFERENCE = Path(__file__).parents[2] / "reports" / "reference"

STUDY = """
name: s
pipeline: weights
prompts: captions.jsonl
constraints: {clip_score: {max_drop: 0.1}}
metrics:
  reference: {path: ~/photos}
  clip: {model: "local-dir:scorer"}
  features: {extractor: "open_clip:local-dir:../scorer"}
"""


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder, elsewhere = tmp_path / "it's a [study] #1%20 ü", tmp_path / "elsewhere"
    (folder / "weights").mkdir(parents=True)
    elsewhere.mkdir()
    (folder / "captions.jsonl").write_text(
        "".join(json.dumps({"prompt": f"a {i}"}) + "\n" for i in range(600))
    )
    (folder / "study.yaml").write_text(STUDY)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(elsewhere)
    return folder


def test_paths_of_a_study_file_mean_beside_it(beside: Path) -> None:
    study = load(beside / "study.yaml")
    assert study.pipeline == str(beside / "weights")
    assert study.prompts == str(beside / "captions.jsonl")
    assert study.metrics.reference.path == str(beside.parent / "home/photos")
    assert study.metrics.clip.model == f"local-dir:{beside / 'scorer'}"
    assert study.metrics.features.extractor == f"open_clip:local-dir:{beside.parent / 'scorer'}"
    again = beside.parent / "again.yaml"
    again.write_text(study.to_yaml())
    assert load(again) == study


def test_paths_on_the_command_line_mean_the_working_folder(
    beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("captions.jsonl").write_text("")
    study = load(
        beside / "study.yaml",
        ["prompts=captions.jsonl", "pipeline=org/name", "metrics.clip.pretrained=x"],
    )
    assert study.prompts == str(Path.cwd() / "captions.jsonl")
    assert (study.pipeline, study.metrics.clip.pretrained) == ("org/name", "x")
    monkeypatch.chdir(beside)
    assert load(None, ["prompts=captions.jsonl"]).prompts == str(beside / "captions.jsonl")
    assert load(Path("study.yaml")) == load(beside / "study.yaml")


def test_what_lies_in_the_working_folder_only_is_not_taken_for_what_is_beside_the_study(beside: Path) -> None:
    (beside / "captions.jsonl").rename("captions.jsonl")
    with pytest.raises(
        RaysenseError, match=r"`prompts: captions\.jsonl` means beside the study.*elsewhere/capt"
    ):
        load(beside / "study.yaml")
    Path("captions.jsonl").unlink()
    assert load(beside / "study.yaml").prompts == str(beside / "captions.jsonl")  # the error will name it


@pytest.mark.parametrize("out", ["runs/it's a [test] #1%20", "runs/[/x]", "runs/[bold]x[/bold]", "[red]"])
def test_what_users_named_is_printed_letter_by_letter(out: str) -> None:
    text = io.StringIO()
    console = Console(file=text, width=60)
    render(json.loads((REFERENCE / "summary.json").read_text()), out, console)
    assert f"Summary: {out}/summary.json\n" in text.getvalue()
    say(console, f"a {out} b", whole=True)
    assert f"a {out} b\n" in text.getvalue()
    terminal = io.StringIO()
    with LiveView(Console(file=terminal, force_terminal=True, width=200)) as live:
        live(Snapshot(headline=f"{out} is best", message=out))
    assert f"{out} is best" in terminal.getvalue()


PLUGIN = "def sharpness(images, prompts, dense):\n    return images.mean((1, 2, 3))\n"

METRICS = """
name: s
constraints: {clip_score: {max_drop: 0.1}}
metrics: {custom: {one: own_beside.sharpness, two: own_here.sharpness}}
rungs: {preview: {prompts: 8}, score: {prompts: 8}, validation: {prompts: 8}}
sampling: {steps: 1}
"""


def test_plugins_beside_the_study_and_in_the_working_folder_are_found(beside: Path) -> None:
    """By the installed command, not only by `python -m`, which puts the working folder first."""
    (beside / "own_beside.py").write_text(PLUGIN)
    Path("own_here.py").write_text(PLUGIN)
    (beside / "study.yaml").write_text(METRICS)
    command = ["try", beside / "study.yaml", "--sparsity", "0.3", "--rung", "preview"]
    program = Path(sys.executable).with_name("raysense")
    done = subprocess.run([program, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "one_drop" in done.stdout
    assert "two_drop" in done.stdout
