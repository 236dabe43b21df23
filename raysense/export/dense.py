"""A study's dense pipeline as a folder, written one tensor at a time: the weights are never all in memory."""

from __future__ import annotations

import json
import math
import shutil
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from raysense.export import tensor_files
from raysense.export.tensor_files import TYPES, Entry
from raysense.pipelines.load import (
    empty_components,
    left_out,
    load_component,
    load_for,
    quiet_loaders,
    use_scheduler,
)
from raysense.pipelines.origin import Origin, local_folder
from raysense.study import Study
from raysense.study.weight_files import INDEX, Stored, chosen_variant, files_of, tensors_in


def write_dense(study: Study, out: Path) -> None:
    """Write a study's pipeline, dense, in its type and with its scheduler, as ``save_pretrained`` would.

    A component whose files hold its weights as its class names them is copied tensor by tensor. One whose weights have
    to be computed, renamed or kept in another type is loaded whole; with adapters, or from a single file, all are.

    Args:
        study: The study.
        out: The folder; not there yet.

    Raises:
        RaysenseError: The pipeline cannot be loaded.
    """
    origin = Origin.of(study)
    if origin.is_file or origin.lora:
        load_for(study).save_pretrained(out)
        return
    folder = local_folder(origin)
    empty = empty_components(origin)
    with quiet_loaders():
        rest = left_out(DiffusionPipeline.load_config(folder))
        pipeline = DiffusionPipeline.from_pretrained(folder, **empty, **rest)
        if study.sampling.scheduler is not None:
            use_scheduler(pipeline, study.sampling.scheduler)
        # Those that a class's signature makes optional were loaded all the same.
        pipeline.register_modules(**empty)
        for name, module in empty.items():
            # The pipeline saves everything else, and asks each component to save itself.
            module.save_pretrained = partial(_save, study, Path(folder), name, module)  # type: ignore[assignment]
        pipeline.save_pretrained(out)


def _save(study: Study, folder: Path, name: str, module: nn.Module, out: str) -> None:
    """Write one component."""
    origin, kind, target = Origin.of(study), getattr(torch, study.dtype), Path(out)
    found = files_of(folder / name, chosen_variant(folder / name, origin.variant))
    files = {file: tensors_in(file) for file in found}
    if not _as_its_class_names_them(module, files, kind):
        whole: Any = load_component(str(folder), name, type(module), kind, origin)
        whole.save_pretrained(target)
        return
    target.mkdir(parents=True)
    configuration = json.loads((folder / name / "config.json").read_text(encoding="utf-8"))
    _write_json(target / "config.json", _of_type(configuration, study.dtype))
    if (folder / name / "generation_config.json").is_file():
        shutil.copyfile(folder / name / "generation_config.json", target / "generation_config.json")
    where: dict[str, str] = {}
    total = 0
    for file, tensors in files.items():
        entries = [_cast(file, tensor, stored, kind) for tensor, stored in tensors.items()]
        plain = _without(file.name, origin.variant)
        tensor_files.write(target / plain, entries, tensor_files.metadata_of(file))
        where |= dict.fromkeys(tensors, plain)
        total += sum(entry.size for entry in entries)
    if any("-of-" in plain for plain in where.values()):  # even a single one is found by its index only
        stem = min(where.values()).split("-0")[0]
        index = {"metadata": {"total_size": total}, "weight_map": where}
        _write_json(target / f"{stem}.safetensors{INDEX}", index)


def _as_its_class_names_them(
    module: nn.Module, files: dict[Path, dict[str, Stored]], kind: torch.dtype
) -> bool:
    """Whether files hold every weight of a component once, under its own name, in its shape, and nothing else."""
    stored = {name: tensor for tensors in files.values() for name, tensor in tensors.items()}
    if sum(map(len, files.values())) != len(stored):
        return False
    own = module.state_dict(keep_vars=True)
    kept = [getattr(module, name, None) for name in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")]
    if any(kept) and kind != torch.float32:
        return False
    if any(name not in own or tensor.shape != tuple(own[name].shape) for name, tensor in stored.items()):
        return False
    names: defaultdict[int, set[str]] = defaultdict(set)  # a weight that two modules share is stored once
    for name, tensor in own.items():
        names[id(tensor)].add(name)
    if any(_is_float(tensor) and tensor.dtype not in TYPES.values() for tensor in stored.values()):
        return False
    there = {weight: len(shared & set(stored)) for weight, shared in names.items()}
    # Under two names it may stand only where it is never pruned: as T5's embedding does in older files.
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    return all(count == 1 or (count > 1 and weight in embeddings) for weight, count in there.items())


def _is_float(stored: Stored) -> bool:
    return stored.dtype.startswith(("F", "BF"))


def _cast(file: Path, name: str, stored: Stored, kind: torch.dtype) -> Entry:
    """A tensor in the study's type, if it holds weights."""
    make = partial(tensor_files.read, file, name)
    if stored.dtype not in TYPES.values() or stored.dtype == TYPES[kind]:
        return Entry(name, stored.dtype, stored.shape, stored.size, make)
    size = math.prod(stored.shape) * kind.itemsize
    return Entry(name, TYPES[kind], stored.shape, size, lambda: make().to(kind))


def _of_type(configuration: Any, dtype: str) -> Any:
    """A configuration with its notes of the weights' type, as transformers writes them, set to `dtype`."""
    if not isinstance(configuration, dict):
        return configuration
    return {
        key: dtype if key in ("dtype", "torch_dtype") and value is not None else _of_type(value, dtype)
        for key, value in configuration.items()
    }


def _without(name: str, variant: str | None) -> str:
    return name if variant is None else name.replace(f".{variant}", "", 1)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
