"""The two forms of an exported folder: plain, and compressed by a bit mask and the values that stay."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from raysense.errors import RaysenseError

RECORD = "allocation.json"
"""Stands in every exported folder: what was pruned, and what makes the folder ours to replace."""

SPARSE = ".raysense"
"""Suffix of a compressed weight file, after its own name."""

_MASK, _VALUES, _SHAPE = "/mask", "/values", "/shape"
_WORTH = 1 / 16
"""Share of zeros above which a mask pays: a bit a weight is an eighth of a byte, a value two or four bytes."""

ZSTD_LEVEL = 3
_FRAME = 1 << 26


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
        stored: dict[str, Tensor] = {}
        with safe_open(source, "pt") as file:
            about = file.metadata()
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                stored |= _packed(name, file.get_tensor(name))
        save_file(stored, f"{target}{SPARSE}", about)


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
            with safe_open(source, "pt") as file:
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                about = file.metadata()
            save_file(_unpacked(stored), target.with_suffix(""), about)
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


def _packed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    bits = {2: torch.int16, 4: torch.int32}.get(tensor.element_size())
    if bits is None or not tensor.is_floating_point():
        return {name: tensor}
    # Compared as integers: a negative zero is a value like others and must come back as it was.
    stays = tensor.contiguous().flatten().view(bits) != 0
    if float((~stays).float().mean() if stays.numel() else 0.0) <= _WORTH:
        return {name: tensor}
    padded = torch.zeros(-(-stays.numel() // 8) * 8, dtype=torch.uint8)
    padded[: stays.numel()] = stays.to(torch.uint8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    mask = (padded.view(-1, 8) * weights).sum(1, dtype=torch.int64).to(torch.uint8)
    return {
        f"{name}{_MASK}": mask,
        f"{name}{_VALUES}": tensor.contiguous().flatten()[stays],
        f"{name}{_SHAPE}": torch.tensor(tensor.shape, dtype=torch.int64),
    }


def _unpacked(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith(_MASK):
            base = name.removesuffix(_MASK)
            values, shape = stored[base + _VALUES], stored[base + _SHAPE].tolist()
            powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
            stays = (tensor.unsqueeze(1) & powers).flatten()[: int(torch.tensor(shape).prod())] != 0
            full = torch.zeros(stays.numel(), dtype=values.dtype)
            full[stays] = values
            tensors[base] = full.view(shape)
        elif not name.endswith((_VALUES, _SHAPE)):
            tensors[name] = tensor
    return tensors
