"""The count of attacks: what it prints, and that it sees what is bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import attacks


def test_it_counts_and_ends_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert attacks.main(["--quick", "--only", "cache_entries"]) == 0
    found = json.loads(capsys.readouterr().out.strip().rpartition("\n")[2])
    assert found["figures"] == {"cache_entries": {"tried": 21, "bad": 0}}
    assert found["holds"] is True


def test_what_goes_wrong_and_what_cannot_be_tried_are_two_things(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(count: int, folder: Path) -> attacks.Result:
        raise AssertionError("lost a row")

    def absent(count: int, folder: Path) -> attacks.Result:
        pytest.skip("no disk can be mounted here")

    monkeypatch.setattr(
        attacks, "ATTACKS", {"a": attacks.Attack(wrong, 3, 1), "b": attacks.Attack(absent, 3, 1)}
    )
    assert attacks.main([]) == 1
    out = capsys.readouterr().out
    assert "lost a row" in out
    assert json.loads(out.strip().rpartition("\n")[2])["figures"] == {
        "a": {"tried": 3, "bad": 1},
        "b": {"not tried": "no disk can be mounted here"},
    }


def test_elements_that_a_name_brings_are_seen() -> None:
    def elements(text: str) -> list[tuple[str, tuple[str, ...]]]:
        return attacks._Elements(f'<p title="{text}">x</p>').found

    assert elements("harmless") == elements("&lt;b&gt;") != elements('"><b>')
    assert elements("x' y") == elements("harmless") != elements('" onload="hacked()')
