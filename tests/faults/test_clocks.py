"""A machine's clock that jumps by hours, to and fro, and one that differs from another's: rows as without.

What two drivers on a bucket make of clocks is in `tests.store.drivers`: offsets of days, clocks six times too fast.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
import torch

from raysense.evaluation.level_files import SMALLEST, LevelFiles
from raysense.pruning.layers import Layer
from raysense.store import Store, table_files
from raysense.store.disk import Disk
from tests.faults.test_disks import Story


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock shows another time of some days around today."""
    rng, now = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: now() + rng.uniform(-3e5, 3e5))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.usefixtures("jumping")
def test_a_study_while_the_clock_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage's clock too: what is being written looks ten minutes old to a compaction, and goes."""
    whole = Story(str(tmp_path / "whole"))
    whole.tell()
    monkeypatch.setattr(table_files, "_ORPHAN_SECONDS", -1e9)
    jumped = Story(str(tmp_path / "jumped"))
    jumped.tell()
    jumped.check()
    assert jumped.rows() == whole.rows()


def test_what_is_taken_away_while_it_is_written_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, replace, taken = Disk(str(tmp_path)), os.replace, []

    def late(source: str, target: str) -> None:
        if not taken:
            taken.append(source)
            os.unlink(source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    disk.write("objects/a.json", b"content")
    assert disk.read("objects/a.json") == b"content"
    assert taken
    assert list((tmp_path / "partial").iterdir()) == []


def test_level_files_that_a_machine_ahead_of_time_swept_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Layer("unet:a", "unet", "a", "linear", (256, SMALLEST // 256), "unet:a")
    weight = torch.zeros(layer.shape)
    levels = torch.arange(layer.n).remainder(256).to(torch.uint8).view(layer.shape)
    mine = LevelFiles(lambda layer: layer.path, tmp_path)
    held = mine.of(layer, weight, lambda: levels)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 1e6)
    LevelFiles(lambda layer: layer.path, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(held, levels)  # mapped: the kernel keeps it
    assert torch.equal(mine.of(layer, weight, lambda: levels), levels)


def test_a_store_whose_files_are_of_tomorrow_and_of_1970_is_read(tmp_path: Path) -> None:
    story = Story(str(tmp_path / "store"))
    story.tell()
    wanted = story.rows()
    for number, file in enumerate(sorted(path for path in (tmp_path / "store").rglob("*") if path.is_file())):
        os.utime(file, (number % 2 * 4e9, number % 2 * 4e9))
    assert story.rows() == wanted
    assert Store.open(story.uri).compact() == 0
    assert story.rows() == wanted
