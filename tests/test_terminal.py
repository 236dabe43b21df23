"""Every command prints on every terminal."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time

import pytest
from rich.console import Console

from raysense.terminal import accept_any_text, patient, plain

ENVIRONMENTS = {
    "ascii": {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "strict": {"PYTHONIOENCODING": "utf-8:strict"},
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_commands_print_on_any_terminal(name: str) -> None:
    """In one process, which has to be new: the interpreter settles encodings when it starts."""
    program = """
from raysense.cli import main
from rich.console import Console
from rich.table import Table
bound = "constraints={clip_score: {max_drop: -1}}"
assert main(["validate", "--set", bound, "--set", "prompts=\\udcc3"]) == 2
table = Table("\\u2264 \\xd7")
table.add_row("\\u732b \\xe9")
Console().print(table)
print("\\u251c\\u2500 \\u732b", "caf\\udcc3")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env={**os.environ, **ENVIRONMENTS[name]},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert name == "strict" or (done.stdout + done.stderr).isascii()
    assert (b"must be >= 0" if name != "strict" else "must be ≥ 0".encode()) in done.stderr


def test_signs_keep_their_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    accept_any_text()
    print("├─ é ≤ 3 × 2 … 猫 \udcc3", flush=True)
    assert buffer.getvalue() == b"+- e <= 3 x 2 ... ? ?\n"
    assert plain("└") == "+"
    assert plain("ﬁ") == "fi"


def test_what_takes_long_is_said_again_and_again_and_what_is_over_soon_is_not() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100)
    with patient(console, "Reading …", seconds=30):
        pass
    assert out.getvalue() == ""
    with patient(console, "Reading …", seconds=0.05) as over:
        while out.getvalue().count("Reading …") < 3:
            time.sleep(0.01)
        over.set()
        time.sleep(0.2)
        said = out.getvalue()
        time.sleep(0.2)
        assert out.getvalue() == said
