from __future__ import annotations

import json
from pathlib import Path

import pytest

from raysense.cli import main
from raysense.report.compare import compare
from raysense.report.frames import Run
from tests.report.conftest import REFERENCE


def test_a_study_is_like_itself() -> None:
    run = Run(str(REFERENCE))
    found = compare(run, run)
    assert not found.doubts
    assert found.settings.empty
    assert (found.figures["a"] == found.figures["b"]).all()
    assert (found.layers["a"] == found.layers["b"]).all()


def test_differences_and_doubts_are_named(reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((reference / "study.json").read_text())
    record["definition"] |= {"name": "other", "pipeline": "[red]<b>x</b>"}
    (reference / "study.json").write_text(json.dumps(record))
    (reference / "summary.json").unlink()
    assert main(["compare", str(REFERENCE), str(reference)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "[red]<b>x</b>" in shown
    assert "has not finished" in shown
    assert "different pipelines" in shown
    assert "not measured" in shown
