"""The live view, on a terminal and off it."""

from __future__ import annotations

import io

from rich.console import Console

from raysense.execution.progress import Snapshot
from raysense.execution.progress_view import LiveView, duration, lines

SNAPSHOT = Snapshot(
    stage="search", headline="34.2 % zeros, CLIP margin 0.004", done=30, replayed=10, failed=1, wanted=50,
    images=320, nfe=16_000, seconds=40.0, busy=7, evaluators=8,
)  # fmt: skip


def show(terminal: bool, *snapshots: Snapshot) -> str:
    out = io.StringIO()
    with LiveView(Console(file=out, force_terminal=terminal, width=120), plain_seconds=3600) as view:
        for snapshot in snapshots:
            view(snapshot)
    return out.getvalue()


def test_off_a_terminal_plain_lines_the_last_one_included() -> None:
    shown = show(False, SNAPSHOT, SNAPSHOT, Snapshot(done=50, wanted=50)).splitlines()
    assert len(shown) == 2
    assert shown[0] == (
        "stage: search · evaluations: 30 of about 50 done (10 from the store, 1 failed) · "
        "time: 40 s, about 40 s left · "
        "images: 320 (8.0 a second), 16000 NFE · evaluators: 7 of 8 busy · "
        "incumbent: 34.2 % zeros, CLIP margin 0.004"
    )
    assert "evaluations: 50 done" in shown[1]


def test_on_a_terminal_one_live_table() -> None:
    shown = show(True, SNAPSHOT)
    for text in ("search", "30 of about 50 done", "7 of 8 busy", "34.2 % zeros"):
        assert text in shown


def test_time_left_is_unknown_before_there_is_a_pace() -> None:
    assert Snapshot(wanted=5).seconds_left is None
    assert Snapshot(done=5, seconds=3.0).seconds_left is None
    assert Snapshot(done=5, replayed=5, wanted=9, seconds=3.0).seconds_left is None


def test_time_left_counts_nfe_where_they_are_known() -> None:
    begun = Snapshot(done=300, wanted=400, nfe=20_000, spent=30_000, wanted_nfe=100_000, seconds=100.0)
    assert begun.seconds_left == 350.0  # not the 33 s of a hundred evaluations as short as those before
    assert Snapshot(nfe=4_000, spent=90_000, wanted_nfe=100_000, seconds=9.0).seconds_left is None
    assert Snapshot(nfe=20_000, spent=120_000, wanted_nfe=100_000, seconds=9.0).seconds_left == 0.0


def test_durations_read_well() -> None:
    assert [duration(s) for s in (0.4, 59, 60, 3599, 3600, 11_100)] == [
        "0 s", "59 s", "1 min", "59 min", "1 h 00", "3 h 05",
    ]  # fmt: skip


def test_more_than_was_expected_is_not_called_a_part_of_it() -> None:
    assert dict(lines(Snapshot(done=316, wanted=269)))["evaluations"] == "316 done"
