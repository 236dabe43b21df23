"""Low-rank adapters (LoRA) added to a pipeline's weights before anything is measured.

diffusers' own converters read the file, whatever trainer wrote it; the products are added here, so that each tensor of
the file is known to have found its layer: libraries pass over what does not fit. Hu et al., "LoRA: Low-Rank Adaptation
of Large Language Models", arXiv 2106.09685: W + weight · alpha / rank · B A.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raysense.errors import RaysenseError
from raysense.study import Lora

_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_NAME = re.compile(
    r"(.*?)(?:\.lora_linear_layer|\.lora|(_lora))?\.(down|up|lora_down|lora_up|lora_A|lora_B)\.weight(\.alpha)?"
)
_OUT = {"to_out": "to_out.0"}
_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def fuse(pipeline: type, modules: Mapping[str, nn.Module], lora: Lora) -> str:
    """Add an adapter to the weights of the layers that it was trained for.

    Args:
        pipeline: The pipeline's class: it knows the forms of its adapters' files.
        modules: Its components.
        lora: The adapter.

    Returns:
        What was done, a sentence.

    Raises:
        RaysenseError: The file cannot be read, or not all of it fits this pipeline.
    """
    found, tensors, alphas = _matched(pipeline, modules, lora)
    for name, layer in found.items():
        down, up = (tensors[name + end].float().flatten(1) for end in (_DOWN, _UP))
        scale = lora.weight * alphas.get(name, len(down)) / len(down)
        with torch.no_grad():
            change = (up @ down).reshape(layer.weight.shape) * scale
            layer.weight.copy_((layer.weight.float() + change).to(layer.weight.dtype))
    name = os.path.basename(lora.path)
    return f"adapter `{name}` of strength {lora.weight:g} is part of the weights of {len(found)} layers"


def refuse_misfit(pipeline: type, modules: Mapping[str, nn.Module], lora: Lora) -> None:
    """Refuse what `fuse` would refuse; `modules` may be without weights.

    Raises:
        RaysenseError: See `fuse`.
    """
    _matched(pipeline, modules, lora)


def _matched(
    pipeline: type, modules: Mapping[str, nn.Module], lora: Lora
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, float]]:
    """An adapter's layers by name, its matrices, and its alphas."""
    tensors, alphas = read(pipeline, lora.path)
    pairs = {name.removesuffix(_DOWN) for name in tensors if name.endswith(_DOWN)}
    left = [name for name in tensors if name.removesuffix(_DOWN).removesuffix(_UP) not in pairs]
    if not pairs or left or any(name + _UP not in tensors for name in pairs):
        raise RaysenseError(
            f"`lora`: `{lora.path}` holds {'other things than' if pairs else 'no'} pairs of low-rank matrices "
            f"({', '.join(sorted(left)[:3])}); raysense adds plain LoRA only: merge it with the tool that made it"
        )
    found = {}
    for name in sorted(pairs):
        layer = _layer(modules, name)
        down, up = tensors[name + _DOWN], tensors[name + _UP]
        fits = layer is not None and layer.weight.numel() == up.flatten(1).shape[0] * down.flatten(1).shape[1]
        if layer is None or not fits:
            why = "it has none of that name" if layer is None else "its weight has another shape"
            raise RaysenseError(
                f"`lora`: `{lora.path}` was made for another base than this {pipeline.__name__}: it changes `{name}`, "
                f"but {why}; give an adapter of this pipeline"
            )
        found[name] = layer
    return found, tensors, alphas


def read(pipeline: type, path: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """An adapter's matrices by ``component.layer.lora_A.weight`` and ``….lora_B.weight``, and its alphas by layer.

    Raises:
        RaysenseError: See `fuse`.
    """
    if not hasattr(pipeline, "lora_state_dict"):
        raise RaysenseError(f"`lora`: diffusers knows no adapters for {pipeline.__name__}; leave `lora` out")
    if not os.path.isfile(path) or not path.lower().endswith(".safetensors"):
        raise RaysenseError(f"`lora`: `{path}` is no .safetensors file that is there; give an adapter's file")
    reader: Any = pipeline
    try:
        given = reader.lora_state_dict(path, use_safetensors=True, local_files_only=True)
    except Exception as error:  # of the library's own making
        raise RaysenseError(
            f"`lora`: `{path}` could not be read as an adapter of {pipeline.__name__}: "
            f"{' '.join(str(error).split())[:160]}"
        ) from None
    state, more = given if isinstance(given, tuple) else (given, None)
    named = {_plain_name(name): value for name, value in {**state, **(more or {})}.items()}
    alphas = {name.removesuffix(".alpha"): float(v) for name, v in named.items() if name.endswith(".alpha")}
    return {name: value for name, value in named.items() if not name.endswith(".alpha")}, alphas


def _plain_name(name: str) -> str:
    """The name of one of an adapter's tensors as peft writes it; of an alpha, its layer's name and ``.alpha``."""
    match = _NAME.fullmatch(name.replace(".processor.", "."))
    if match is None:
        return name
    layer, is_old, side, alpha = match.groups()
    component = layer.partition(".")[0]
    if is_old:
        old, _, last = layer.rpartition(".")
        layer = f"{old}.{(_TEXT if component.startswith('text_encoder') else _OUT).get(last, last)}"
    if alpha:
        return f"{layer}.alpha"
    return layer + (_DOWN if side in ("down", "lora_down", "lora_A") else _UP)


def _layer(modules: Mapping[str, nn.Module], name: str) -> Any:
    component, _, path = name.partition(".")
    module = modules.get(component)
    for own in (
        path,
        path.removeprefix("text_model."),
        f"text_model.{path}",
    ):  # as transformers' versions have it
        try:
            layer = module.get_submodule(own) if module is not None else None
        except AttributeError:
            continue
        if layer is not None and isinstance(getattr(layer, "weight", None), Tensor):
            return layer
    return None
