"""What an export leaves where it is stopped."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from raysense.cli import main
from raysense.export import write


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(uri: str, out: Path, **_: object) -> None:
        with write._scratch_beside(out) as scratch:
            (scratch / "half").write_text("of the weights")
            signal.raise_signal(number)

    monkeypatch.setattr(write, "export", stopped)
    assert main(["export", "run", "--out", str(tmp_path / "pruned")]) == 130
    assert list(tmp_path.iterdir()) == []
