from __future__ import annotations

from pathlib import Path

import pytest

from raysense.cli import main
from raysense.results.compare import compare
from raysense.results.run import Run
from tests.conftest import REFERENCE
from tests.tables import edit


def test_a_study_is_like_itself() -> None:
    run = Run(str(REFERENCE))
    found = compare(run, run)
    assert not found.doubts
    assert found.settings.empty
    assert (found.figures["a"] == found.figures["b"]).all()
    assert (found.layers["a"] == found.layers["b"]).all()


def test_differences_and_doubts_are_named(reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(
        reference / "study.json",
        lambda record: record["definition"].update(name="other", pipeline="[red]<b>x</b>"),
    )
    (reference / "summary.json").unlink()
    assert main(["compare", str(REFERENCE), str(reference)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "[red]<b>x</b>" in shown
    assert "has not finished" in shown
    assert "different pipelines" in shown
    assert "not measured" in shown
