"""The first-study guide, typed in by somebody new: every command of it, in its order, in an empty folder."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

from raysense.cli import main
from tests.conftest import REPORTS

GUIDE = Path(__file__).parents[1] / "docs/guides/first-study.md"

QUICK = {"plan": ["--speed", "30"], "report": ["--images", "2"]}
"""What a command is given beside what the guide says, so that nothing is measured and little is painted."""


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line]


def test_every_command_of_the_guide_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said: dict[str, str] = {}
    for program, name, *arguments in commands():
        assert program == "raysense"
        if (
            name == "search"
        ):  # minutes; tests/test_end_to_end.py runs one, the committed run stands in for this one
            study, _, out = arguments
            assert Path(study).is_file()
            shutil.copytree(REPORTS / "quickstart", out)
            continue
        assert main([name, *arguments, *QUICK.get(name, [])]) == 0, capsys.readouterr().err
        said[name] = " ".join(capsys.readouterr().out.split())
    assert list(said) == ["init", "validate", "plan", "report", "resolve", "export"]
    assert "max_drop: 0.01" in said["validate"]
    assert "NFE" in said["plan"]
    assert "<html" in Path("reports/runs/quickstart/report.html").read_text(encoding="utf-8")
    assert "predict" in said["resolve"].lower()
    pruned = DiffusionPipeline.from_pretrained("pruned")
    assert pruned("a big cat on a red background", num_inference_steps=1).images[0].size == (32, 32)
