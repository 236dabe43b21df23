from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from raysense.export import tensor_files
from raysense.export.tensor_files import Entry


def entries_of(path: Path) -> list[Entry]:
    return [
        Entry(name, stored.dtype, stored.shape, stored.size, lambda name=name: tensor_files.read(path, name))
        for name, stored in tensor_files.tensors_in(path).items()
    ]


def test_a_file_is_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {
        "wide": torch.randn(3, 5),
        "half": torch.randn(7, dtype=torch.float16),
        "brain": torch.randn(2, 1, 3, dtype=torch.bfloat16),
        "count": torch.tensor(9),
        "none": torch.zeros(0, 4),
        "mask": torch.tensor([1, 0, 3], dtype=torch.uint8),
    }
    save_file(tensors, tmp_path / "one", {"format": "pt"})
    tensor_files.write(
        tmp_path / "two", entries_of(tmp_path / "one"), tensor_files.metadata_of(tmp_path / "one")
    )
    back = load_file(tmp_path / "two")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert tensor_files.metadata_of(tmp_path / "two") == {"format": "pt"}


def test_one_tensor_is_overwritten_and_no_other(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4, 4), "b": torch.ones(3)}, tmp_path / "file")
    tensor_files.overwrite(tmp_path / "file", "a", torch.arange(16.0).view(4, 4).T)
    back = load_file(tmp_path / "file")
    assert torch.equal(back["a"], torch.arange(16.0).view(4, 4).T)
    assert torch.equal(back["b"], torch.ones(3))
    with pytest.raises(ValueError, match="b: 16 bytes, but the file has 12"):
        tensor_files.overwrite(tmp_path / "file", "b", torch.ones(4))


def test_a_tensor_that_is_not_what_was_announced_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a: 12 bytes, but 16 were announced"):
        tensor_files.write(tmp_path / "file", [Entry("a", "F32", (4,), 16, lambda: torch.ones(3))], {})
