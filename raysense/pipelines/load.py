"""Load a `DiffusionPipeline` from the bundle, a folder or the hub, ready to be pruned and sampled."""

from __future__ import annotations

import importlib
import logging
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from raysense.errors import RaysenseError
from raysense.study import BUNDLED

logger = logging.getLogger(__name__)


def pipeline_folder(source: str) -> str:
    """The folder or hub id behind `source`, which may be ``bundled``."""
    return str(files("raysense.bundled") / "pipeline") if source == BUNDLED else source


def load_pipeline(
    source: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    channels_last: bool = False,
) -> DiffusionPipeline:
    """Load a pipeline for inference.

    Args:
        source: ``bundled``, a folder in diffusers' format, or a hub id.
        revision: A hub commit, branch or tag.
        dtype: ``float32``, ``bfloat16`` or ``float16``, for every component.
        device: A torch device.
        channels_last: Lay out the weights of two-dimensional convolutions with channels innermost.

    Raises:
        RaysenseError: Nothing loadable is there.
    """
    folder = pipeline_folder(source)
    # Progress bars of the loaders would break up the study's own live view.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder, revision=revision, dtype=getattr(torch, dtype), low_cpu_mem_usage=False
        )
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        looked = "as a folder" if Path(folder).exists() else "as a folder (there is none) and as a hub id"
        raise RaysenseError(
            f"`pipeline` must be `bundled`, a folder in diffusers' format or a hub id within reach, but "
            f"`{source}` could not be loaded {looked}: {reason}"
        ) from None
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    for module in modules_of(pipeline).values():
        module.requires_grad_(False)
        module.eval()
        if channels_last:
            for weight in module.parameters():
                if weight.ndim == 4:
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return pipeline


def empty_components(source: str, *, revision: str | None = None) -> dict[str, nn.Module]:
    """A pipeline's modules as its configuration describes them, without weights: nothing large is downloaded.

    Args:
        source: See `load_pipeline`.
        revision: See `load_pipeline`.

    Returns:
        Component name -> module on the meta device.

    Raises:
        RaysenseError: No configuration is there, or it names a class that is not diffusers' or transformers'.
    """
    folder = pipeline_folder(source)
    try:
        index = DiffusionPipeline.load_config(folder, revision=revision)
        found = {
            name: _empty(folder, name, entry[0], entry[1], revision)
            for name, entry in index.items()
            if isinstance(entry, (list, tuple))
            and len(entry) == 2
            and entry[0] in ("diffusers", "transformers")
        }
    except (OSError, ValueError, ImportError, AttributeError, KeyError) as error:
        raise RaysenseError(
            f"`pipeline`: the configuration of `{source}` could not be read: {' '.join(str(error).split())[:200]}"
        ) from None
    return {name: module for name, module in found.items() if module is not None}


def _empty(folder: str, name: str, library: str, class_name: str, revision: str | None) -> nn.Module | None:
    """One component without weights; None if it is no module."""
    kind: Any = getattr(importlib.import_module(library), class_name)
    is_module: bool = isinstance(kind, type) and issubclass(kind, nn.Module)
    if not is_module:
        return None
    with torch.device("meta"):
        if library == "diffusers":
            module: nn.Module = kind.from_config(kind.load_config(folder, subfolder=name, revision=revision))
        else:
            module = kind(kind.config_class.from_pretrained(folder, subfolder=name, revision=revision))
    return module


def modules_of(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    """The components of `pipeline` that are modules, by name."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def denoiser_of(pipeline: DiffusionPipeline) -> nn.Module:
    """The component that the sampling loop calls at every step: the U-Net or the transformer.

    Raises:
        RaysenseError: The pipeline has neither.
    """
    modules = modules_of(pipeline)
    for name in ("unet", "transformer", "prior"):
        if name in modules:
            return modules[name]
    raise RaysenseError(
        f"`pipeline`: found no denoiser (`unet`, `transformer` or `prior`) among the components {sorted(modules)}"
    )


def compile_denoiser(pipeline: DiffusionPipeline, backend: str = "inductor") -> None:
    """Compile the denoiser's `forward` in place, so that weights may change and hooks on it still run.

    The graph takes the weights as inputs: masking them in place compiles nothing anew. (`nn.Module.compile`
    would compile the hooks in and overlook those that are added later.) Hooks on the modules *inside* do not run.

    Args:
        pipeline: Whose denoiser.
        backend: Of `torch.compile`.
    """
    denoiser = denoiser_of(pipeline)
    denoiser.forward = torch.compile(denoiser.forward, backend=backend)
