"""Level bytes on disk: the same masks, found again by the next life, made again where they are damaged."""

from __future__ import annotations

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
    data = bytearray((tmp_path / "a").read_bytes())
    data[5] ^= 1
    (tmp_path / "a").write_bytes(data if damage == "byte" else data[:-1])
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
