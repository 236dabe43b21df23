"""A run's folder is data: whatever its study names, reading it imports nothing of that."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from raysense import plugins
from raysense.cli import main
from raysense.results.page import build
from raysense.results.pictures import evaluator_of
from raysense.results.run import Run
from raysense.store.checksummed_json import seal
from tests.tables import edit

CODE = """
import raysense
raise SystemExit("somebody else's code runs")
"""
NAMES = ("nobodys.saliency", "nobodys.metric", "nobodys.extractor")


@pytest.fixture
def foreign(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose study names code, which lies beside it, in the working folder, and in its store."""

    def change(fields: dict[str, Any]) -> None:
        definition = fields["definition"]
        definition["prune"]["saliency"] = NAMES[0]
        definition["metrics"]["custom"] = {"sharp": NAMES[1]}
        definition["metrics"]["features"]["extractor"] = NAMES[2]
        definition["search"]["strategies"] = [*definition["search"]["strategies"], "nobodys.strategy"]

    edit(reference / "study.json", change)
    for folder in (reference, tmp_path):
        (folder / "nobodys.py").write_text(CODE)
    record = {"folders": [str(reference)], "files": {"nobodys.py": CODE}}
    (reference / "plugins.json").write_bytes(seal(record, indent=1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return reference


def test_no_command_that_reads_imports_what_a_study_names(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(foreign, tmp_path / "other")
    for command in (
        ["query", str(foreign), "SELECT count(*) AS n FROM evaluations"],
        ["check", str(foreign)],
        ["compare", str(foreign), str(other)],
        ["resolve", str(foreign), "--set", "prune.max_layer_sparsity=0.5"],
        ["report", str(foreign), "--out", str(tmp_path / "page.html")],
    ):
        assert main(command) == 0, (command, capsys.readouterr())
    said = "runs code that the study names: nobodys.extractor"
    assert said in (tmp_path / "page.html").read_text()
    assert "--run-code" in (tmp_path / "page.html").read_text()
    assert "nobodys" not in sys.modules


def test_from_python_too(foreign: Path) -> None:
    run = Run(str(foreign))
    assert len(run.table("evaluations")) == len(run.sql("SELECT * FROM evaluations"))
    assert NAMES[0] in run.study.prune.methods
    assert run.candidates() is not None
    assert "nobodys" in build(run)
    assert "nobodys" not in sys.modules


def test_what_runs_code_says_whose(foreign: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert [entry.split(" ")[0] for entry in plugins.code_of(Run(str(foreign)).study)] == sorted(
        [*NAMES, "nobodys.strategy"]
    )
    with caplog.at_level(logging.WARNING), pytest.raises((SystemExit, Exception)):
        evaluator_of(Run(str(foreign)))
    assert "this runs code that the study names: nobodys.extractor (" in caplog.text
    assert "nobodys.py" in caplog.text
    study = Run(str(foreign)).study.model_copy(update={"pickled": True})
    assert plugins.code_of(study)[-1] == f"pickled weights of {study.pipeline}"
