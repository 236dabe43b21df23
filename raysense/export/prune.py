"""Bring a dense pipeline's folder to an allocation, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raysense.allocation import Allocation, LevelGrid
from raysense.export import tensor_files
from raysense.pipelines.load import load_component
from raysense.pruning.layers import Inventory, Layer, count_zeros, weight_of
from raysense.study.weight_files import INDEX, files_of, tensors_in

AtLevel = Callable[[Layer, Tensor, int], Tensor]
"""A layer, its dense weights, a level above 0 -> its weights at that level."""


def prune_folder(
    folder: Path,
    classes: dict[str, type[nn.Module]],
    inventory: Inventory,
    grid: LevelGrid,
    allocation: Allocation,
    at_level: AtLevel,
    dtype: torch.dtype,
) -> dict[str, int]:
    """Prune the weights of a folder where they stand.

    Args:
        folder: A dense pipeline in diffusers' format.
        classes: Component -> its class.
        inventory: The selected layers.
        grid: Their levels.
        allocation: What to bring the folder to.
        at_level: Gives a layer's weights at a level.
        dtype: The weights' type.

    Returns:
        Layer -> zeros, counted in what stands in the folder afterwards.

    Raises:
        RaysenseError: An unknown layer or a level out of range; nothing is changed then.
    """
    grid.validate(allocation)
    zeros: dict[str, int] = {}
    for component in dict.fromkeys(layer.component for layer in inventory.layers):
        layers = [layer for layer in inventory.layers if layer.component == component]
        levels = [allocation[grid.leader(layer.address)] for layer in layers]
        places = {name: file for file in files_of(folder / component, None) for name in tensors_in(file)}
        if all(_name(layer) in places for layer in layers):
            zeros |= _where_they_stand(places, layers, levels, at_level)
        else:  # the class renames its weights when it saves them
            zeros |= _in_memory(folder, component, classes[component], layers, levels, at_level, dtype)
    return zeros


def _where_they_stand(
    places: dict[str, Path], layers: Sequence[Layer], levels: Sequence[int], at_level: AtLevel
) -> dict[str, int]:
    zeros = {}
    for layer, level in zip(layers, levels, strict=True):
        file, name = places[_name(layer)], _name(layer)
        if level:
            tensor_files.overwrite(file, name, at_level(layer, tensor_files.read(file, name), level))
        zeros[layer.address] = count_zeros(tensor_files.read(file, name))
    return zeros


def _in_memory(
    folder: Path,
    component: str,
    cls: type[nn.Module],
    layers: Sequence[Layer],
    levels: Sequence[int],
    at_level: AtLevel,
    dtype: torch.dtype,
) -> dict[str, int]:
    module: Any = load_component(str(folder), component, cls, dtype)
    zeros = {}
    for layer, level in zip(layers, levels, strict=True):
        weight = weight_of({component: module}, layer).data
        if level:
            weight.copy_(at_level(layer, weight, level))
        zeros[layer.address] = count_zeros(weight)
    for file in (*files_of(folder / component, None), *(folder / component).glob(f"*{INDEX}")):
        file.unlink()  # an index of files that are no longer there would be believed
    module.save_pretrained(folder / component)
    return zeros


def _name(layer: Layer) -> str:
    return f"{layer.path}.weight"
