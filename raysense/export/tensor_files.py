"""Files of tensors (.safetensors) larger than memory: read, changed and written one tensor at a time."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from raysense.study.weight_files import tensors_in

TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""The format's names of the types that weights can have."""

WIDTHS = {name: kind.itemsize for kind, name in TYPES.items()}
"""Bytes of a weight of these types."""


@dataclass(frozen=True)
class Entry:
    """A tensor that is to be written.

    Attributes:
        name: Its name.
        dtype: The format's name of its type.
        shape: Its shape.
        size: Its bytes.
        make: Gives it; called once, when its turn comes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    make: Callable[[], Tensor]


def metadata_of(path: Path) -> dict[str, str]:
    """What stands in a file's header beside the tensors."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def read(path: Path, name: str) -> Tensor:
    """A tensor of a file: a view of the mapped file that is let go with the last name of it; not to be written to."""
    with safe_open(path, "pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def write(path: Path, entries: Sequence[Entry], metadata: Mapping[str, str]) -> None:
    """Write a file, holding one tensor at a time.

    Args:
        path: The file.
        entries: Its tensors, in any order.
        metadata: What stands in its header beside them.
    """
    # As the library orders them: wide types first, so that every tensor is aligned.
    ordered = sorted(entries, key=lambda entry: (-_width(entry), entry.name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for entry in ordered:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [end, end + entry.size],
        }
        end += entry.size
    told = json.dumps(header, separators=(",", ":")).encode()
    told += b" " * (-len(told) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(told)) + told)
        for entry in ordered:
            content = _bytes(entry.make())
            if content.nbytes != entry.size:
                raise ValueError(f"{entry.name}: {content.nbytes} bytes, but {entry.size} were announced")
            file.write(content)


def overwrite(path: Path, name: str, tensor: Tensor) -> None:
    """Put other values in the place of a tensor's; type and shape stay."""
    place, content = tensors_in(path)[name], _bytes(tensor)
    if content.nbytes != place.size:
        raise ValueError(f"{name}: {content.nbytes} bytes, but the file has {place.size}")
    with path.open("r+b") as file:
        file.seek(place.start)
        file.write(content)


def _bytes(tensor: Tensor) -> memoryview:
    # As bytes: numpy has no bfloat16. A scalar cannot be seen as bytes before it is flat.
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


def _width(entry: Entry) -> int:
    count = math.prod(entry.shape)
    return entry.size // count if count else 0
