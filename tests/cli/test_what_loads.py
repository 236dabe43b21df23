"""What a command loads, and how long it takes to answer: in CPU time, as the machine may be busy with other things."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raysense.cli import COMMANDS
from tests.conftest import REFERENCE

ROOT = Path(__file__).parents[2]

WITHOUT_TORCH = ("compare", "query", "resolve", "schema", "validate")
"""Commands that read tables and answer; every other one reads tensors, or loads or looks into a pipeline."""

PROGRAM = """
import io, json, sys, time
from contextlib import redirect_stdout
from raysense.cli import main
with redirect_stdout(io.StringIO()):
    status = main(sys.argv[1:])
heavy = [name for name in ("torch", "ray", "diffusers", "transformers") if name in sys.modules]
print(json.dumps([status, heavy, time.process_time()]))
"""


def ran(*arguments: str) -> tuple[int, list[str], float]:
    """Exit status, heavy modules that were loaded, and CPU seconds since the interpreter began."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True, cwd=ROOT
    )
    status, heavy, seconds = json.loads(done.stdout)
    return int(status), list(heavy), float(seconds)


@pytest.mark.parametrize("command", WITHOUT_TORCH)
def test_it_answers_without_torch_and_ray(command: str) -> None:
    run = str(REFERENCE)
    arguments = {
        "compare": [run, run],
        "query": [run, "SELECT count(*) FROM evaluations"],
        "resolve": [run, "--set", "constraints.clip_score.max_drop=0.02"],
    }.get(command, [])
    status, heavy, _ = ran(command, *arguments)
    assert status == 0
    assert not heavy
    assert command in COMMANDS


def test_validate_answers_in_a_second() -> None:
    assert min(ran("validate")[2] for _ in range(3)) <= 1


def test_raysense_is_imported_in_an_instant() -> None:
    program = "import time; t = time.process_time(); import raysense; print(time.process_time() - t)"

    def seconds() -> float:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert min(seconds() for _ in range(3)) <= 0.15
