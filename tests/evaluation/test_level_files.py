"""Level bytes on disk: the same masks, found again by the next life, made again where they are damaged."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from raysense.evaluation.level_files import SMALLEST, LevelFiles
from raysense.pruning.layers import Layer

LARGE = Layer("unet:a", "unet", "a", "conv2d", (64, 128, 3, 3), "unet:a")
SMALL = Layer("unet:b", "unet", "b", "linear", (8, 8), "unet:b")


def key(layer: Layer) -> str:
    return layer.path


def made(layer: Layer) -> tuple[Tensor, Tensor]:
    """A weight with its channels innermost where it has some, and its bytes."""
    weight = torch.empty(layer.shape)
    weight = weight.to(memory_format=torch.channels_last) if weight.ndim == 4 else weight
    levels = torch.arange(layer.n).remainder(256).to(torch.uint8).view(layer.shape)
    return weight, torch.empty_like(weight, dtype=torch.uint8).copy_(levels)


def never() -> Tensor:
    raise AssertionError("they are there")


def test_the_next_life_finds_what_this_one_made(tmp_path: Path) -> None:
    weight, levels = made(LARGE)
    first, second = LevelFiles(key, tmp_path / "levels"), LevelFiles(key, tmp_path / "levels")
    for files, make in ((first, lambda: levels), (second, never)):
        found = files.of(LARGE, weight, make)
        assert torch.equal(found, levels)
        assert found.stride() == weight.stride()
        files.give_back(found)
        assert torch.equal(found, levels)


@pytest.mark.parametrize("damage", ["byte", "short"])
def test_what_is_damaged_is_made_again(tmp_path: Path, damage: str) -> None:
    weight, levels = made(LARGE)
    LevelFiles(key, tmp_path).of(LARGE, weight, lambda: levels)
    data = bytearray((tmp_path / "a.levels").read_bytes())
    data[5] ^= 1
    (tmp_path / "a.levels").write_bytes(data if damage == "byte" else data[:-1])
    assert torch.equal(LevelFiles(key, tmp_path).of(LARGE, weight, lambda: levels), levels)
    assert torch.equal(LevelFiles(key, tmp_path).of(LARGE, weight, never), levels)


def test_small_layers_and_full_disks_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, levels = made(SMALL)
    assert SMALL.n < SMALLEST
    assert LevelFiles(key, tmp_path).of(SMALL, weight, lambda: levels) is levels
    monkeypatch.setattr("raysense.evaluation.level_files.SPARE", 1.0)
    weight, levels = made(LARGE)
    assert LevelFiles(key, tmp_path).of(LARGE, weight, lambda: levels) is levels
    assert list(tmp_path.iterdir()) == []


def test_what_others_put_into_the_folder_is_not_swept_nor_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temporary folder is everybody's; a folder that a user names may hold other files."""
    thesis, unused, damp = tmp_path / "thesis.tex", tmp_path / "a.levels", tmp_path / "b.levels"
    for file in (thesis, unused, damp):
        file.write_bytes(b"years of work")
    for file in (thesis, unused):
        os.utime(file, (0, 0))
    LevelFiles(key, tmp_path)
    assert sorted(tmp_path.iterdir()) == [damp, thesis]
    weight, levels = made(LARGE)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"raysense-levels-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    assert LevelFiles(key).of(LARGE, weight, lambda: levels) is levels  # in memory
    assert list((tmp_path / "elsewhere").iterdir()) == []
