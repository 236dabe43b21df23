"""2:4 exports on the framework's own kernels: which layers can take them, and a pipeline whose layers do.

A GPU of compute capability 8.0 or more multiplies in hardware by a weight with two zeros in every four along its
inputs; torch holds such a weight as a semi-structured tensor. Whether that makes a pipeline faster depends on shapes
and batch: ``python -m benchmarks.semi_structured FOLDER`` measures it, and nothing here claims it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.sparse import (
    SparseSemiStructuredTensor,
    SparseSemiStructuredTensorCUSPARSELT,
    SparseSemiStructuredTensorCUTLASS,
    to_sparse_semi_structured,
)

from raysense.errors import RaysenseError
from raysense.export.pack import RECORD, SPARSE, load_compressed
from raysense.pipelines.load import modules_of

PATTERN = "2:4"
CAPABILITY = (8, 0)
"""Least compute capability with such kernels: Ampere."""


@dataclass(frozen=True)
class Conversion:
    """What became of a pipeline's selected layers.

    Attributes:
        converted: Addresses of the layers that now run on the 2:4 kernels.
        left: Address -> why a layer stays as it is.
    """

    converted: tuple[str, ...]
    left: Mapping[str, str]

    def in_words(self) -> str:
        """How many were converted, and the reasons against the others with their counts."""
        lines = [f"{len(self.converted)} of {len(self.converted) + len(self.left)} layers on 2:4 kernels"]
        for reason in dict.fromkeys(self.left.values()):
            lines.append(f"  {sum(own == reason for own in self.left.values())} not: {reason}")
        return "\n".join(lines)


def load_semi_structured(
    folder: str | Path, *, device: str = "cuda", **arguments: Any
) -> tuple[DiffusionPipeline, Conversion]:
    """Load an export of a 2:4 study, plain or compressed, with every layer that can on the 2:4 kernels.

    Args:
        folder: What `raysense.export.export` wrote.
        device: A CUDA device of capability 8.0 or more.
        arguments: Passed on to ``DiffusionPipeline.from_pretrained``; ``torch_dtype=torch.float16``, say, as the
            kernels take no float32.

    Raises:
        RaysenseError: The device has no such kernels, or the folder is no export of a 2:4 study.
    """
    check_device(device)
    record = read_record(Path(folder))
    pipeline = load_either(folder, **arguments).to(device)
    return pipeline, convert(pipeline, list(record["zeros_by_layer"]))


def load_either(folder: str | Path, **arguments: Any) -> DiffusionPipeline:
    """Load an export, plain or compressed, as an ordinary pipeline."""
    if any(Path(folder).rglob(f"*{SPARSE}")):
        return load_compressed(folder, **arguments)
    return DiffusionPipeline.from_pretrained(folder, **arguments)


def read_record(folder: Path) -> dict[str, Any]:
    """What was exported.

    Raises:
        RaysenseError: `folder` is no export, or not of a 2:4 study.
    """
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if not isinstance(record.get("zeros_by_layer"), dict):
            raise ValueError("no `zeros_by_layer`")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise RaysenseError(
            f"`{folder}` holds no export of raysense ({RECORD}: {error}); give the folder that `raysense export` wrote"
        ) from None
    if record.get("pattern") != PATTERN:
        raise RaysenseError(
            f"`{folder}`: its study pruned without the pattern {PATTERN} (prune.pattern: {record.get('pattern')}), "
            "which the kernels need; load it with DiffusionPipeline.from_pretrained"
        )
    return record


def check_device(device: str) -> None:
    """Refuse a device without 2:4 kernels.

    Raises:
        RaysenseError: It is no CUDA device here, or too old a one.
    """
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        here = "" if torch.cuda.is_available() else ", and there is none on this machine"
        raise RaysenseError(
            f"device: {device}; 2:4 kernels need a CUDA device{here}. Load the export with "
            "DiffusionPipeline.from_pretrained, or raysense.export.load_compressed, to run it here"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        raise RaysenseError(
            f"device: {device} has compute capability {capability[0]}.{capability[1]}; 2:4 kernels need "
            f"{CAPABILITY[0]}.{CAPABILITY[1]} or more"
        )


def convert(pipeline: DiffusionPipeline, addresses: list[str]) -> Conversion:
    """Put every layer that can on the 2:4 kernels, in place."""
    modules = modules_of(pipeline)
    converted: list[str] = []
    left: dict[str, str] = {}
    for address in addresses:
        component, _, path = address.partition(":")
        module = modules[component].get_submodule(path)
        reason = why_not(module)
        if not reason:
            assert isinstance(module.weight, nn.Parameter)
            try:
                sparse = to_sparse_semi_structured(module.weight.detach().contiguous())
            except RuntimeError as error:  # torch built without the kernels, say
                reason = f"torch refuses: {' '.join(str(error).split())}"
            else:
                module.weight = nn.Parameter(sparse, requires_grad=False)
                converted.append(address)
                continue
        left[address] = reason
    return Conversion(tuple(converted), left)


def why_not(module: nn.Module) -> str:
    """Why a layer cannot run on the 2:4 kernels, its device aside; an empty text if it can."""
    if type(module) is not nn.Linear:
        return f"a {type(module).__name__}: only Linear layers have 2:4 kernels"
    weight, known = module.weight, _kernels()
    if weight.dtype not in known:
        return f"{_plain(weight.dtype)}: the kernels take {', '.join(map(_plain, known))}"
    rows, columns = known[weight.dtype].sparse_min_rows, known[weight.dtype].sparse_min_cols
    if weight.shape[0] % rows or weight.shape[1] % columns:
        return (
            f"{weight.shape[0]} x {weight.shape[1]} weights: the kernels take multiples of {rows} x {columns}"
        )
    if not follows(weight):
        return "its zeros do not follow 2:4"
    return ""


def follows(weight: Tensor) -> bool:
    """Whether every four weights along the inputs hold at least two zeros."""
    if weight.shape[-1] % 4:
        return False
    return bool(((weight.detach().reshape(-1, 4) == 0).sum(-1) >= 2).all())


def _kernels() -> Mapping[torch.dtype, Any]:
    """Least shapes by dtype, of the kernels that torch would take. It has no public name for them."""
    cutlass = SparseSemiStructuredTensor._FORCE_CUTLASS
    kernels = SparseSemiStructuredTensorCUTLASS if cutlass else SparseSemiStructuredTensorCUSPARSELT
    return {
        t: least
        for t, least in kernels._DTYPE_SHAPE_CONSTRAINTS.items()
        if t in (torch.float16, torch.bfloat16)
    }


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
