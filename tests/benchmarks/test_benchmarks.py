"""What CI asks of every benchmark (`make bench-quick` runs them all)."""

from __future__ import annotations

import json

import pytest

from benchmarks.__main__ import fault, names, run

WHOLE = {"benchmark": "a", "figures": {}, "bar": 1, "holds": True}


def test_a_benchmark_that_simulates_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"verdicts", "intervals", "search", "plan"} <= set(names())
    assert run("lookahead") == ""
    assert "lookahead" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "output", "words"),
    [
        (0, "done", "no JSON"),
        (0, "", "no JSON"),
        (0, "[1]", "lacks one of"),
        (0, json.dumps({**WHOLE, "benchmark": "b"}), "says that it is 'b'"),
        (0, json.dumps({k: v for k, v in WHOLE.items() if k != "bar"}), "lacks one of"),
        (2, json.dumps(WHOLE), "exit status 2"),
        (1, json.dumps(WHOLE), "exit status 1, but its bar holds"),
        (1, json.dumps({**WHOLE, "holds": False}), ""),
        (0, "words\n" + json.dumps(WHOLE), ""),
    ],
)
def test_how_a_benchmark_has_to_end(status: int, output: str, words: str) -> None:
    found = fault("a", status, output)
    assert words in found
    assert bool(found) is bool(words)
