"""The files of a pipeline's folder: which weights are there, in which variant and form. No torch here."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysense import user_files
from raysense.errors import RaysenseError

LARGEST_CONFIGURATION = 1 << 24
"""Bytes of a configuration that are read."""

LARGEST_HEADER = 100_000_000
"""Bytes of a .safetensors file's header: the format's own limit."""

SAFE, PICKLED = ".safetensors", (".bin", ".ckpt", ".pt", ".pth")
"""Endings of files with weights: plain tensors, and pickles, whose loading can run code."""

INDEX = ".index.json"
"""Ending of the list of what stands in which of several weight files."""

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>[\w-]+?))?(?:-\d{5}-of-\d{5})?"
    r"(?:\.(?P<behind>\w+))?\.(?P<form>safetensors|bin)"
)


def configuration(file: Path) -> dict[str, Any]:
    """A pipeline's or a component's configuration.

    Raises:
        RaysenseError: It cannot be read, or is no JSON object.
    """
    try:
        content = json.loads(user_files.read(file, LARGEST_CONFIGURATION))
    except OSError as error:
        raise RaysenseError(f"`{file}` cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise RaysenseError(f"`{file}` is damaged: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict):
        raise RaysenseError(f"`{file}` is damaged: it holds no JSON object")
    return content


def unknown_pipeline(source: str, kind: object) -> str:
    """What is said of a pipeline whose ``model_index.json`` names no class of the installed diffusers."""
    named = f"the class {kind!r:.80}, which the installed diffusers does not have" if kind else "no class"
    return (
        f"`pipeline`: the model_index.json of `{source:.200}` names {named} (`_class_name`). Code that comes with a "
        "pipeline is not run: name the class of diffusers that samples these components, or install a diffusers that "
        "has it"
    )


def weights_in(folder: Path) -> dict[str, set[str]]:
    """The weights in a component's folder: variant, empty for the plain one -> ``safetensors``, ``bin`` or both."""
    found: dict[str, set[str]] = {}
    for file in folder.iterdir() if folder.is_dir() else ():
        if match := _WEIGHTS.fullmatch(file.name):
            found.setdefault(match["variant"] or match["behind"] or "", set()).add(match["form"])
    return found


def files_of(folder: Path, variant: str | None) -> list[Path]:
    """The .safetensors files with a component's weights of a variant, None for the plain ones."""
    matches = {file: match for file in sorted(folder.iterdir()) if (match := _WEIGHTS.fullmatch(file.name))}
    return [
        file
        for file, match in matches.items()
        if match["form"] == "safetensors" and (match["variant"] or match["behind"]) == variant
    ]


def chosen_variant(folder: Path, variant: str | None) -> str | None:
    """The variant to load from a component's folder: the one asked for where it is there, else the plain files."""
    return variant if variant in weights_in(folder) else None


def mistakes_in(folder: Path, components: Iterable[str], variant: str | None, pickled: bool) -> Iterator[str]:
    """Why the weights of some components cannot be loaded as a study says, a sentence each.

    Args:
        folder: The pipeline's.
        components: Those that hold weights; one without any files is passed over.
        variant: `Study.variant`.
        pickled: `Study.pickled`.
    """
    there = {name: weights for name in components if (weights := weights_in(folder / name))}
    variants = sorted({name for weights in there.values() for name in weights if name})
    if variant is not None and there and variant not in variants:
        have = f"its variants are {', '.join(variants)}" if variants else "it has none"
        yield f"`variant` is {variant!r}, but `{folder}` has no weights of that name ({have}); leave it out or name one"
        return
    for name, weights in there.items():
        if (folder / name / "config.json").is_file():
            yield from _quantised(folder / name, name)
        forms = weights.get(variant or "", weights.get(""))
        if forms is None:
            yield (
                f"`pipeline`: `{folder / name}` holds only the variant {', '.join(sorted(weights))} of its weights; "
                f"set `variant: {min(weights)}`"
            )
        elif "safetensors" not in forms and not pickled:
            yield (
                f"`pipeline`: `{folder / name}` holds pickled weights only (.bin); loading them can run code of their "
                "author: save them as .safetensors, or set `pickled: true` if you trust them"
            )


def _quantised(folder: Path, name: str) -> Iterator[str]:
    try:
        method = configuration(folder / "config.json").get("quantization_config")
    except RaysenseError as error:
        yield f"`pipeline`: {error}"
        return
    if method is None:
        return
    kind = method.get("quant_method", "unknown") if isinstance(method, Mapping) else "unknown"
    yield (
        f"`pipeline`: component `{name}` is quantised already ({kind}): its weights are packed codes, among which "
        "nothing can be pruned or counted. Give the pipeline before quantisation; prune first and quantise the export"
    )


def single_file(path: Path, pickled: bool) -> None:
    """Refuse a single file that cannot be a checkpoint.

    Raises:
        RaysenseError: It is pickled and that is not allowed, is of another kind, or is damaged.
    """
    ending = path.suffix.lower()
    if ending in PICKLED:
        if not pickled:
            raise RaysenseError(
                f"`pipeline`: the single file `{path}` is pickled; loading it can run code of its author: convert it "
                "to .safetensors, or set `pickled: true` if you trust it"
            )
    elif ending != SAFE:
        raise RaysenseError(
            f"`pipeline`: `{path}` is a file; give a folder in diffusers' format, a hub id, or a single file of "
            f"weights ({SAFE})"
        )
    else:
        try:
            names = tensor_names(path)
        except RaysenseError as error:
            raise RaysenseError(f"`pipeline`: the single file {error}") from None
        if not names:
            raise RaysenseError(f"`pipeline`: the single file `{path}` holds no tensors")


def tensor_names(path: Path) -> list[str]:
    """The names of the tensors in a .safetensors file, read from its header.

    Raises:
        RaysenseError: It is damaged.
    """
    return list(tensors_in(path))


@dataclass(frozen=True)
class Stored:
    """A tensor in a .safetensors file, as the file's header has it.

    Attributes:
        dtype: The format's name of its type, such as ``F16``.
        shape: Its shape.
        start: Where its bytes begin in the file.
        size: How many they are.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def tensors_in(path: Path) -> dict[str, Stored]:
    """Name -> tensor of a .safetensors file, read from its header, in the order of their bytes.

    Raises:
        RaysenseError: It is damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            (length,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
            if not 2 <= length <= min(LARGEST_HEADER, size):
                raise ValueError(f"its {size} bytes hold no header")
            header = json.loads(file.read(length))
        found = {}
        for name, entry in header.items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                found[name] = Stored(entry["dtype"], tuple(entry["shape"]), 8 + length + first, last - first)
        if any(tensor.start + tensor.size > size for tensor in found.values()):
            raise ValueError("it is cut off")
    except OSError as error:
        raise RaysenseError(f"`{path}` cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise RaysenseError(
            f"`{path}` is no .safetensors file: {' '.join(str(error).split())[:160]}"
        ) from None
    return dict(sorted(found.items(), key=lambda item: item[1].start))
