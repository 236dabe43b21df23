"""A single file of weights: which configuration it belongs to, what it holds of each component. No weight is read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import FromOriginalModelMixin
from diffusers.loaders import single_file_model as loader
from diffusers.loaders import single_file_utils as converters
from torch import Tensor, nn
from transformers import PreTrainedModel

from raysense.errors import RaysenseError
from raysense.hub import pipeline_index
from raysense.pipelines.origin import CONFIGURATION, Origin, listed, pipeline_folder
from raysense.study import weight_files as files

LATENT = "model.diffusion_model."
"""How a denoiser's tensors are called in single files of latent diffusion."""


def configuration_folder(origin: Origin) -> str:
    """The folder, or hub id, of a pipeline's configuration; no weights are fetched."""
    return configuration_of(origin) if origin.is_file else pipeline_folder(origin.source)


def configuration_of(origin: Origin) -> str:
    """The folder with the configuration that a single file belongs to; fetched from the hub, or its cache.

    Raises:
        RaysenseError: The file is none that diffusers knows, or the configuration cannot be had.
    """
    path = pipeline_folder(origin.source)
    files.single_file(Path(path), origin.pickled)
    place = origin.config
    if place is None:
        tensors = tensors_of(origin)
        # diffusers takes what it does not know for Stable Diffusion 1.
        if converters.infer_diffusers_model_type(tensors) == "v1" and not any(
            name.startswith(LATENT) for name in tensors
        ):
            raise RaysenseError(
                f"`pipeline`: the single file `{path}` is no checkpoint of a pipeline that diffusers recognises (its "
                f"tensors are {', '.join(sorted(tensors)[:3])} …); set `config` to the pipeline that it belongs to, or "
                "give a folder in diffusers' format"
            )
        place = str(converters.fetch_diffusers_config(tensors)["pretrained_model_name_or_path"])
    if os.path.isdir(place):
        return place
    from huggingface_hub import snapshot_download

    try:
        pipeline_index(place, None)
    except RaysenseError as error:
        raise RaysenseError(
            f"`config`: the single file `{path}` needs the configuration of `{place}`, which cannot be had ({error}); "
            "give a folder that holds it"
        ) from None
    return str(snapshot_download(place, allow_patterns=CONFIGURATION))


def tensors_of(origin: Origin) -> dict[str, Tensor]:
    """The file's tensors by name, without their values; those of a pickled file, which is read."""
    path = Path(pipeline_folder(origin.source))
    if path.suffix.lower() != files.SAFE:
        found: dict[str, Tensor] = converters.load_single_file_checkpoint(str(path))
        return found
    return {name: torch.empty(stored.shape, device="meta") for name, stored in files.tensors_in(path).items()}


def not_in_it(origin: Origin, folder: str, kind: str, empty: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """The components of which a single file holds nothing, and which its configuration's folder has the weights of.

    Args:
        origin: The file.
        folder: Of its configuration.
        kind: The pipeline's class, for messages.
        empty: The pipeline's components, without weights.

    Raises:
        RaysenseError: The file holds a component in part only, or in another shape; or one is nowhere.
    """
    tensors = tensors_of(origin)
    path = pipeline_folder(origin.source)
    misfit = f"`pipeline`: the single file `{path}` is no {kind} as `{folder}` describes one"
    remedy = "set `config` to the pipeline that it belongs to"
    elsewhere = []
    for name, module in empty.items():
        there, wrong = _held(name, module, folder, tensors)
        if wrong:
            raise RaysenseError(f"{misfit}: {wrong}; {remedy}")
        if not there:
            elsewhere.append(name)
    if len(elsewhere) == len(empty):
        first = ", ".join(sorted(tensors)[:3])
        raise RaysenseError(f"{misfit}: it holds nothing of it (its tensors are {first} …); {remedy}")
    nowhere = [name for name in elsewhere if not files.weights_in(Path(folder) / name)]
    if nowhere:
        raise RaysenseError(
            f"`pipeline`: the single file `{path}` holds no weights of {', '.join(f'`{name}`' for name in nowhere)}, "
            f"and neither does `{folder}`; set `config` to a folder of a {kind} that has them"
        )
    return tuple(elsewhere)


def _held(name: str, module: nn.Module, folder: str, tensors: Mapping[str, Tensor]) -> tuple[bool, str]:
    """Whether a file holds something of a component, and what is wrong with it, or an empty text."""
    if isinstance(module, PreTrainedModel):  # its tensors are counted where they are read
        is_clip = converters.is_clip_model_in_single_file(type(module), tensors)
        return is_clip or converters.is_t5_in_single_file(tensors), ""
    if not isinstance(module, FromOriginalModelMixin):
        return False, ""
    own = module.state_dict()
    try:
        named = _as_diffusers_names_them(name, module, folder, tensors, own)
    except (NotImplementedError, RuntimeError):  # it asks for values: what is wrong shows where they are read
        return True, ""
    except Exception as error:  # whatever the converter meets in a file of another kind
        return True, f"diffusers' converter for `{name}` fails ({type(error).__name__}: {str(error)[:120]})"
    if not named.keys() & own.keys():
        return False, ""
    passed_over = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    problems = {
        "it lacks": [path for path in own if path not in named],
        "it has in another shape": [
            path for path in own if path in named and named[path].shape != own[path].shape
        ],
        "it has besides": [
            path
            for path in named
            if path not in own and not any(re.search(known, path) for known in passed_over)
        ],
    }
    told = [f"{what} {listed(names)} of `{name}`" for what, names in problems.items() if names]
    return True, ", ".join(told)


def _as_diffusers_names_them(
    name: str, module: Any, folder: str, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """A file's tensors as a component of diffusers' names them, by diffusers' own converter."""
    if own.keys() == tensors.keys():
        return tensors
    known: Any = loader
    kind = known._get_single_file_loadable_mapping_class(type(module))
    if kind is None:
        return {}
    convert = known.SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"]
    configuration = type(module).load_config(folder, subfolder=name)
    found: Mapping[str, Tensor] = convert(config=configuration, checkpoint=dict(tensors))
    return found
