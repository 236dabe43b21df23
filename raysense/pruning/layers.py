"""Find the prunable layers of any pipeline: the inventory, with its denominators.

Layers are found by what a module *is* (a linear map or a convolution), never by what it is called, so every
architecture that `diffusers` and `transformers` build from these modules is covered.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from raysense.allocation import block_of
from raysense.errors import RaysenseError

Granularity = Literal["layer", "block", "component"]

KINDS: dict[str, type[nn.Module]] = {
    "linear": nn.Linear,
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
    "transformers_conv1d": Conv1D,
}
"""Kind -> module class. Subclasses count; norms, biases, embeddings and transposed convolutions never do."""


AT_REST = "weights_at_rest"
"""Attribute of a module whose parameters are placeholders between its calls: name -> the tensor that they come from."""


@dataclass(frozen=True)
class Layer:
    """One prunable weight tensor.

    Attributes:
        address: ``component:module.path``.
        component: Name in ``pipeline.components``.
        path: The module's path inside the component.
        kind: A key of `KINDS`.
        shape: The weight's shape.
        block: Address of the block it belongs to, see `block_of`.
    """

    address: str
    component: str
    path: str
    kind: str
    shape: tuple[int, ...]
    block: str

    @property
    def n(self) -> int:
        """Weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Inventory:
    """The selected layers and the denominators that every sparsity is counted against.

    Attributes:
        layers: The selected layers, in network order.
        n_selected: Weights of the selected layers.
        n_prunable: Weights of all Linear and convolution layers of the study's components, selected or not.
        n_components: All parameters of those components that take part in making an image, shared ones once.
        n_pipeline: All parameters of the pipeline, shared ones once.
        zeros_before: Zeros that the selected layers have before pruning (0 for weights without values, on
            the meta device).
    """

    layers: tuple[Layer, ...]
    n_selected: int
    n_prunable: int
    n_components: int
    n_pipeline: int
    zeros_before: int

    @property
    def sizes(self) -> tuple[tuple[str, int], ...]:
        """(address, weights) of each selected layer: what a `LevelGrid` is built from."""
        return tuple((layer.address, layer.n) for layer in self.layers)

    def sparsities(self, zeros: int) -> dict[str, float]:
        """Counted zeros of the selected layers over each denominator."""
        return {
            "sparsity_selected": zeros / self.n_selected,
            "sparsity_prunable": zeros / self.n_prunable,
            "sparsity_components": zeros / self.n_components,
            "sparsity_pipeline": zeros / self.n_pipeline,
        }

    def groups(self, granularity: Granularity) -> dict[str, tuple[str, ...]]:
        """Group address -> addresses of the layers that move together, in network order."""
        address_of = {
            "layer": lambda layer: layer.address,
            "block": lambda layer: layer.block,
            "component": lambda layer: layer.component,
        }
        if granularity not in address_of:
            raise RaysenseError(f"granularity: {granularity!r} is not one of {', '.join(address_of)}")
        groups: dict[str, list[str]] = {}
        for layer in self.layers:
            groups.setdefault(address_of[granularity](layer), []).append(layer.address)
        return {group: tuple(addresses) for group, addresses in groups.items()}


def take_inventory(
    components: Mapping[str, object],
    *,
    select: Sequence[str],
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    kinds: Sequence[str] | None = None,
    idle: Collection[str] = (),
) -> Inventory:
    """List the prunable layers of some components and count all denominators.

    A tensor that several modules share counts once, under its first address; one that an embedding shares
    (a tied output head) is an embedding and never prunable. Works on the meta device.

    Args:
        components: ``pipeline.components``; what is not a module is passed over.
        select: Names of the study's components.
        include: Globs; a layer is selected if one matches. With a colon a glob is matched against the
            layer's address, without one against its path.
        exclude: Globs; a layer that one matches is left out.
        kinds: Keys of `KINDS`; all of them by default.
        idle: Addresses of modules that never run when an image is made: their weights are in no denominator but the
            whole pipeline's.

    Raises:
        RaysenseError: An unknown component or kind, a glob that matches nothing, a quantised weight, or
            nothing prunable.
    """
    modules = {name: part for name, part in components.items() if isinstance(part, nn.Module)}
    for name in select:
        if name not in modules:
            raise RaysenseError(
                f"components: {name!r} is not a module of this pipeline; "
                f"it has {', '.join(modules) or 'none'}"
            )
    for kind in kinds or ():
        if kind not in KINDS:
            raise RaysenseError(f"kinds: {kind!r} is unknown; choose from {', '.join(KINDS)}")
    chosen_modules = {name: modules[name] for name in select}
    found = [(layer, weight) for layer, weight in find_layers(chosen_modules) if layer.address not in idle]
    if not found:
        raise RaysenseError(
            f"components: nothing prunable in {', '.join(select) or 'an empty selection'}; "
            f"the pipeline has {', '.join(modules)}"
        )
    chosen = _chosen(found, include, exclude, kinds)
    return Inventory(
        layers=tuple(layer for layer, _ in chosen),
        n_selected=sum(layer.n for layer, _ in chosen),
        n_prunable=sum(layer.n for layer, _ in found),
        n_components=sum(parameters_at_work(chosen_modules, idle).values()),
        n_pipeline=_count_parameters(modules.values()),
        zeros_before=sum(count_zeros(weight) for _, weight in chosen if not weight.is_meta),
    )


def _chosen(
    found: Sequence[tuple[Layer, Tensor]],
    include: Sequence[str],
    exclude: Sequence[str],
    kinds: Sequence[str] | None,
) -> list[tuple[Layer, Tensor]]:
    """The prunable layers that a study selects.

    Raises:
        RaysenseError: A glob that matches nothing, or nothing is left.
    """
    for field, globs in (("include", include), ("exclude", exclude)):
        for glob in globs:
            if not any(_matches(layer, glob) for layer, _ in found):
                raise RaysenseError(
                    f"{field}: {glob!r} matches none of the {len(found)} prunable layers, such as "
                    f"{found[0][0].address}; `raysense layers` lists them all"
                )
    chosen = [
        (layer, weight)
        for layer, weight in found
        if any(_matches(layer, glob) for glob in include)
        and not any(_matches(layer, glob) for glob in exclude)
        and (kinds is None or layer.kind in kinds)
    ]
    if not chosen:
        kinds_there = ", ".join(sorted({layer.kind for layer, _ in found}))
        raise RaysenseError(
            f"include, exclude, kinds: together they leave none of the {len(found)} prunable layers "
            f"(their kinds: {kinds_there}); select more"
        )
    return chosen


def find_layers(modules: Mapping[str, nn.Module]) -> Iterator[tuple[Layer, Tensor]]:
    """Every prunable layer of some components with its weight, in network order, shared tensors once."""
    seen = {
        id(module.weight)
        for part in modules.values()
        for module in part.modules()
        if isinstance(module, nn.Embedding)
    }
    for component, part in modules.items():
        for path, module in part.named_modules():
            kind = next((kind for kind, cls in KINDS.items() if isinstance(module, cls)), None)
            weight = getattr(module, "weight", None)
            if kind is None or not isinstance(weight, Tensor) or id(weight) in seen:
                continue
            address = f"{component}:{path}"
            if not weight.is_floating_point():
                raise RaysenseError(
                    f"components: {address} holds {weight.dtype} weights; "
                    f"load {component} without quantisation"
                )
            seen.add(id(weight))
            yield Layer(address, component, path, kind, tuple(weight.shape), block_of(address)), weight


def weight_of(modules: Mapping[str, nn.Module], layer: Layer) -> Tensor:
    """The live weight of a layer."""
    return live_weight(modules[layer.component].get_submodule(layer.path))


def live_weight(module: nn.Module) -> Tensor:
    """The weight that the module's next call uses: its parameter, or what that is brought from (`AT_REST`)."""
    waiting: Mapping[str, Tensor] = vars(module).get(AT_REST, {})
    weight = waiting.get("weight", module.weight)
    assert isinstance(weight, Tensor)
    return weight


def count_zeros(weight: Tensor) -> int:
    """Zeros of a tensor, counted."""
    return weight.numel() - int(torch.count_nonzero(weight))


def all_finite(weight: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity: one pass without a copy, NaN being its own largest value."""
    return not weight.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(weight))).all())


def render_tree(inventory: Inventory) -> str:
    """The inventory as a text tree: components, blocks, layers, with counts and the denominators."""
    lines = []
    for component, members in _by(inventory.layers, "component").items():
        lines.append(f"{component}  {_count(members)}")
        for block, layers in _by(members, "block").items():
            if layers[0].address == block:
                lines.append(f"├─ {_describe(layers[0], layers[0].path)}")
                continue
            lines.append(f"├─ {block.split(':', 1)[1]}  {_count(layers)}")
            lines += [f"│  ├─ {_describe(layer, layer.address[len(block) + 1 :])}" for layer in layers]
    lines += [
        "",
        f"selected    {inventory.n_selected:>15,} weights in {len(inventory.layers)} layers",
        f"prunable    {inventory.n_prunable:>15,} weights (Linear and convolutions of the components)",
        f"components  {inventory.n_components:>15,} parameters (the objective's denominator)",
        f"pipeline    {inventory.n_pipeline:>15,} parameters",
    ]
    return "\n".join(lines)


def _matches(layer: Layer, glob: str) -> bool:
    return fnmatchcase(layer.address if ":" in glob else layer.path, glob)


def parameters_at_work(modules: Mapping[str, nn.Module], idle: Collection[str] = ()) -> dict[str, int]:
    """Parameters of each component without those that only idle modules hold; shared ones once, where they are first.

    Args:
        modules: Components.
        idle: Addresses of modules that never run.
    """
    seen: set[int] = set()
    counts = dict.fromkeys(modules, 0)
    for name, component in modules.items():
        for path, part in component.named_modules():
            for weight in part.parameters(recurse=False):
                if f"{name}:{path}" not in idle and id(weight) not in seen:
                    seen.add(id(weight))
                    counts[name] += weight.numel()
    return counts


def _count_parameters(parts: Iterable[nn.Module]) -> int:
    return sum({id(p): p.numel() for part in parts for p in part.parameters()}.values())


def _by(layers: Iterable[Layer], attribute: str) -> dict[str, list[Layer]]:
    sets: dict[str, list[Layer]] = {}
    for layer in layers:
        sets.setdefault(getattr(layer, attribute), []).append(layer)
    return sets


def _count(layers: Sequence[Layer]) -> str:
    noun = "layer" if len(layers) == 1 else "layers"
    return f"{sum(layer.n for layer in layers):,} weights in {len(layers)} {noun}"


def _describe(layer: Layer, name: str) -> str:
    return f"{name}  {layer.kind} {'×'.join(map(str, layer.shape))}  {layer.n:,}"
