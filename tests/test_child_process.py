"""Work in a process of its own: answers, progress, errors, and an end without a word."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from raysense.child_process import Child
from raysense.errors import RaysenseError

PROGRAM = """
import os, sys, time
from raysense.child_process import answer
from raysense.errors import RaysenseError

def work(order, say):
    print("a library's own line")
    say("progress", "counting")
    if order["what"] == "refuse":
        raise RaysenseError("`x` is wrong")
    if order["what"] == "die":
        os._exit(7)
    if order["what"] == "orphan":
        print(os.getpid(), file=open(order["file"], "w"))
        while time.sleep(0.02) is None:
            say("progress", "speaks to nobody")
    if order["what"] == "hang":
        time.sleep(600)
    say("doubled", 2 * order["number"])

answer(work)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "a_program_apart.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    return "a_program_apart"


def test_it_answers_and_says_what_it_does(program: str) -> None:
    told: list[str] = []
    with Child(program, {"what": "double", "number": 21}) as child:
        assert child.awaited("doubled", told.append, "starting") == 42
    assert told[0] == "starting"


def test_what_is_wrong_is_said_in_its_own_words(program: str) -> None:
    with Child(program, {"what": "refuse"}) as child, pytest.raises(RaysenseError, match="`x` is wrong"):
        child.awaited("doubled", print, "starting")


def test_an_end_without_a_word_is_noticed(program: str) -> None:
    with Child(program, {"what": "die"}) as child, pytest.raises(RaysenseError, match="status 7"):
        child.awaited("doubled", print, "starting")


def test_it_never_falls_silent_and_ends_with_its_context(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raysense.child_process.SAID_SECONDS", 0.2)
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        if len([line for line in told if line.startswith("counting")]) == 3:
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Child(program, {"what": "hang"}) as child:
        child.awaited("doubled", tell, "starting")
    assert time.monotonic() - began < 60
    assert child._process.returncode is not None


def test_it_leaves_when_whoever_ordered_is_killed(program: str, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    order = {"what": "orphan", "file": str(file)}
    parent = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from raysense.child_process import Child;"
    parent += f"Child({program!r}, {order!r}).awaited('doubled', print, 'starting')"
    with (
        (tmp_path / "said").open("w") as said,
        subprocess.Popen([sys.executable, "-c", parent], stdout=said, stderr=said) as process,
    ):
        until = time.monotonic() + 60
        while not (file.exists() and file.read_text().strip()):
            assert time.monotonic() < until
            time.sleep(0.02)
        process.kill()
    child = int(file.read_text())
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert "Traceback" not in (tmp_path / "said").read_text()
