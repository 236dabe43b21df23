"""The two forms of an exported folder: plain, and compressed by a bit mask and the values that stay."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.export import tensor_files
from raysense.export.tensor_files import WIDTHS, Entry
from raysense.study.weight_files import Stored, tensors_in

RECORD = "allocation.json"
"""Stands in every exported folder: what was pruned, and what makes the folder ours to replace."""

SPARSE = ".raysense"
"""Suffix of a compressed weight file, after its own name."""

_MASK, _VALUES, _SHAPE = "/mask", "/values", "/shape"
_WORTH = 1 / 16
"""Share of zeros above which a mask pays: a bit a weight is an eighth of a byte, a value two or four bytes."""

_POWERS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)

ZSTD_LEVEL = 3
_FRAME = 1 << 26
_PIECE = 1 << 22


def compress(folder: Path, out: Path) -> None:
    """Write the compressed form of a pipeline's folder.

    Every tensor with enough zeros becomes a mask (one bit a value, in row-major order) and the values that stay;
    everything else is copied.

    Args:
        folder: A folder in diffusers' format.
        out: A folder that is not there yet.
    """
    for source in _files(folder):
        target = out / source.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix != ".safetensors":
            shutil.copyfile(source, target)
            continue
        entries = [
            entry for name, stored in tensors_in(source).items() for entry in _packed(source, name, stored)
        ]
        tensor_files.write(Path(f"{target}{SPARSE}"), entries, tensor_files.metadata_of(source))


def expand(folder: Path, out: Path) -> None:
    """Turn the compressed form back into the plain one, bit for bit.

    Args:
        folder: What `export` wrote with ``compressed``.
        out: A folder that is not there yet.

    Raises:
        RaysenseError: `folder` is no compressed export, or a file is damaged.
    """
    if not any(path.suffix == SPARSE for path in _files(folder)):
        raise RaysenseError(f"`{folder}` holds no compressed export (no *{SPARSE} file)")
    for source in _files(folder):
        target = out / source.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix != SPARSE:
            shutil.copyfile(source, target)
            continue
        try:
            entries = list(_unpacked(source, tensors_in(source)))
            tensor_files.write(target.with_suffix(""), entries, tensor_files.metadata_of(source))
        except Exception as error:  # safetensors raises its own, torch others: all mean the same to a reader
            raise RaysenseError(f"`{source}` is damaged ({error}); export it again") from error


def load_compressed(folder: str | Path, **arguments: Any) -> DiffusionPipeline:
    """Load a compressed export as an ordinary pipeline.

    Args:
        folder: What `export` wrote with ``compressed``.
        arguments: Passed on to ``DiffusionPipeline.from_pretrained``.

    Raises:
        RaysenseError: See `expand`.
    """
    with tempfile.TemporaryDirectory(prefix="raysense-expand-") as scratch:
        expand(Path(folder), Path(scratch) / "pipeline")
        # Not mapped from disk: the files are gone afterwards.
        return DiffusionPipeline.from_pretrained(Path(scratch) / "pipeline", **arguments)


def weight_bytes(folder: Path) -> int:
    """Bytes of all weight files below a folder."""
    return sum(path.stat().st_size for path in _files(folder) if path.suffix in (".safetensors", SPARSE))


def zstd_bytes(folder: Path, level: int = ZSTD_LEVEL) -> int:
    """Bytes of the same files after zstd, each file a stream of frames: it may be larger than memory."""
    codec = pa.Codec("zstd", compression_level=level)
    total = 0
    for path in _files(folder):
        if path.suffix in (".safetensors", SPARSE):
            with path.open("rb") as file:
                while frame := file.read(_FRAME):
                    total += codec.compress(frame).size
    return total


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def _packed(source: Path, name: str, stored: Stored) -> list[Entry]:
    """What stands for a tensor in the compressed form; it is read again for every entry that is written."""
    read = partial(tensor_files.read, source, name)
    if stored.dtype not in WIDTHS or not stored.size:
        return [Entry(name, stored.dtype, stored.shape, stored.size, read)]
    count = math.prod(stored.shape)
    kept = int(torch.count_nonzero(_stays(read())))  # a sum would make eight bytes of every truth value
    if (count - kept) / count <= _WORTH:
        return [Entry(name, stored.dtype, stored.shape, stored.size, read)]
    shape = torch.tensor(stored.shape, dtype=torch.int64)
    return [
        Entry(f"{name}{_MASK}", "U8", (-(-count // 8),), -(-count // 8), lambda: _mask(_stays(read()))),
        Entry(
            f"{name}{_VALUES}", stored.dtype, (kept,), kept * WIDTHS[stored.dtype], lambda: _values(read())
        ),
        Entry(f"{name}{_SHAPE}", "I64", tuple(shape.shape), shape.nbytes, lambda: shape),
    ]


def _stays(tensor: Tensor) -> Tensor:
    """Which values are not zero; bool, flat."""
    # Compared as integers: a negative zero is a value like others and must come back as it was.
    bits = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.contiguous().flatten().view(bits) != 0


def _values(tensor: Tensor) -> Tensor:
    # Piece by piece: what is chosen by truth values is looked up at indices of eight bytes each.
    pieces = torch.split(tensor.contiguous().flatten(), _PIECE)
    return torch.cat([piece[_stays(piece)] for piece in pieces])


def _mask(stays: Tensor) -> Tensor:
    padded = torch.zeros(-(-stays.numel() // 8) * 8, dtype=torch.uint8)
    padded[: stays.numel()] = stays
    return (padded.view(-1, 8) * _POWERS).sum(1, dtype=torch.uint8)


def _unpacked(source: Path, stored: Mapping[str, Stored]) -> Iterator[Entry]:
    """The tensors that a compressed file stands for."""
    for name, tensor in stored.items():
        base = name.removesuffix(_MASK)
        if base != name:
            values = stored[base + _VALUES]
            shape = tuple(tensor_files.read(source, base + _SHAPE).tolist())
            size = math.prod(shape) * WIDTHS[values.dtype]
            yield Entry(base, values.dtype, shape, size, partial(_full, source, base, shape))
        elif not name.endswith((_VALUES, _SHAPE)):
            yield Entry(
                name, tensor.dtype, tensor.shape, tensor.size, partial(tensor_files.read, source, name)
            )


def _full(source: Path, base: str, shape: tuple[int, ...]) -> Tensor:
    mask, values = (tensor_files.read(source, base + part) for part in (_MASK, _VALUES))
    stays = (mask.unsqueeze(1) & _POWERS).flatten()[: math.prod(shape)] != 0
    full = torch.zeros(stays.numel(), dtype=values.dtype)
    full[stays] = values
    return full.view(shape)
