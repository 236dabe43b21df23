"""Apply an allocation in place, touching only what changed; restore exactly.

A nested method's masks are one byte a weight: its *prune level*, the highest level at which it stays. Together with one
dense copy of the weights that is all there is to hold; switching a layer to another level is one pass over it.
"""

from __future__ import annotations

import logging
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import psutil
import torch
from torch import Tensor, nn

from raysense.allocation import Allocation, LevelGrid
from raysense.errors import RaysenseError
from raysense.pruning.layers import Inventory, Layer, live_weight
from raysense.pruning.patterns import Pattern, pattern_prune_levels
from raysense.pruning.ranking import prune_levels
from raysense.pruning.saliency import LayerStats, Method, find_method, score_layer

log = logging.getLogger(__name__)

Place = Literal["device", "host", "mapped"]
"""Where the dense master lies: beside the weights, in the host's memory, or in a memory-mapped file."""

_PLACES: dict[Place, str] = {
    "device": "beside the weights",
    "host": "in the host's memory",
    "mapped": "memory-mapped from disk, for want of free memory",
}

_CHUNK = 1 << 21
"""Weights masked at a time on a CPU: the bytes, widened, stay in the cache. A sixteenth of it cost twice the time."""

_SPARE = 0.5
"""Share of the free memory that the dense master may take; the rest is for activations."""

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)

_INTEGER = {2: torch.int16, 4: torch.int32}


class Pruner(ABC):
    """Keeps the live weights of the selected layers at an allocation, with a dense master to go back to.

    The live parameters stay the same tensors: only their values change, so compiled graphs stay valid. Others may give
    them new storage (diffusers casts Stable Diffusion XL's VAE to float32 for every decoding and back), so every
    write and every count looks up the parameter as it is now, and `rewrite_changed` tells whether it still holds what
    was written.

    Args:
        modules: Component name -> module, holding the dense weights.
        inventory: The selected layers.
        grid: Their levels.
        master: Where the dense master lies; chosen from the free memory by default, and logged.

    Attributes:
        current: The allocation that the live weights stand at.
        place: Where the master lies.
        described: The same in words, with its size.

    Raises:
        RaysenseError: Weights that are not of 16 or 32 bits, or that lie in memory with gaps.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        inventory: Inventory,
        grid: LevelGrid,
        master: Place | None = None,
    ) -> None:
        self._grid = grid
        # Modules stay the same; their parameters are looked up anew at every use.
        self._owners = {
            layer.address: modules[layer.component].get_submodule(layer.path) for layer in inventory.layers
        }
        live = {address: self._live(address) for address in self._owners}
        for address, weight in live.items():
            _check_weight(address, weight)
        self._choose(
            inventory
        )  # before there is a master: scores of a large layer take as much as some layers' weights
        self.place = master or choose_place(live)
        size = sum(weight.nbytes for weight in live.values())
        self.described = f"dense master of {size / 1e9:.2f} GB: {_PLACES[self.place]}"
        log.info("%s", self.described)
        self._master = {address: _keep(weight, self.place) for address, weight in live.items()}
        self._written = {address: self._mark(address) for address in self._owners}
        self.current = Allocation()
        self._zeros: dict[str, int] = {}

    def _choose(self, inventory: Inventory) -> None:  # noqa: B027 (methods that hold nothing choose nothing)
        """Decide which weights leave at which level, from the dense live weights."""

    def apply(self, allocation: Allocation) -> None:
        """Bring the live weights to an allocation, rewriting only layers whose level changes.

        Raises:
            RaysenseError: An unknown layer or a level out of range; nothing is changed then.
        """
        self._grid.validate(allocation)
        for leader in self._grid.addresses:
            if allocation[leader] != self.current[leader]:
                for address in self._grid.members(leader):
                    self._bring(address, allocation[leader])
        self.current = allocation

    def restore(self) -> None:
        """Bring back every dense weight, bit for bit."""
        for address in self._owners:
            self._bring(address, 0)
        self.current = Allocation()

    def count_zeros(self) -> int:
        """Zeros among the selected layers' live weights, counted: each layer once after it was written or moved."""
        stale = [a for a in self._owners if a not in self._zeros or self._mark(a) != self._written[a]]
        if stale:
            live = [self._live(address) for address in stale]
            # One wait for the device, not one a layer.
            found = torch.stack([torch.count_nonzero(weight) for weight in live]).tolist()
            for address, weight, nonzero in zip(stale, live, found, strict=True):
                self._zeros[address] = weight.numel() - nonzero
        return sum(self._zeros.values())

    def rewrite_changed(self) -> list[str]:
        """The layers whose live weights are not what was written last; they are written anew.

        Cheap: only weights that have new storage, or that somebody else changed in place, are compared.
        """
        changed = []
        for address in self._owners:
            if self._mark(address) == self._written[address]:
                continue
            level = self.current[self._grid.leader(address)]
            live = self._live(address)
            if not torch.equal(live, self._at_level(address, level).to(live)):
                changed.append(address)
            self._bring(address, level)
        return changed

    def _live(self, address: str) -> Tensor:
        """A layer's weight as the next forward pass will use it."""
        return self._parameter(address).data

    def _parameter(self, address: str) -> Tensor:
        return live_weight(self._owners[address])

    def _mark(self, address: str) -> tuple[int, torch.dtype, int]:
        """What changes when somebody else gives a weight new storage or other values."""
        weight = self._parameter(address)
        return weight.data_ptr(), weight.dtype, 0 if weight.is_inference() else weight._version

    def _bring(self, address: str, level: int) -> None:
        live, master = self._live(address), self._master[address]
        if live.dtype == master.dtype and live.stride() == master.stride():
            self._write(address, live, level)
        else:
            live.copy_(self._at_level(address, level))
        self._zeros.pop(address, None)
        self._written[address] = self._mark(address)

    def _at_level(self, address: str, level: int) -> Tensor:
        """A layer's weights at a level, in the type and the memory layout of the dense master."""
        target = torch.empty_like(self._master[address], device=self._live(address).device)
        self._write(address, target, level)
        return target

    @abstractmethod
    def _write(self, address: str, target: Tensor, level: int) -> None:
        """Write one layer's weights at a level into a tensor of the dense master's type and memory layout."""


class LevelKeeper(Protocol):
    """Keeps the bytes of a masker's layers somewhere else than in this process's own memory."""

    def of(self, layer: Layer, like: Tensor, make: Callable[[], Tensor]) -> Tensor:
        """The bytes of a layer, uint8 in the shape, the layout and on the device of its weight."""
        ...

    def give_back(self, levels: Tensor) -> None:
        """Called after a layer's bytes were read: memory that can be had again may be given up."""
        ...


class Masker(Pruner):
    """Prunes by a nested saliency method, with one byte a weight beside the dense master.

    Weights that are zero already leave first; an allocation that removes fewer than these leaves them zero.

    Args:
        modules: Component name -> module, holding the dense weights.
        inventory: The selected layers.
        grid: Their levels (those of `patterns.pattern_grid` for a pattern).
        saliency: Name, dotted path or the `Method` itself; or component -> name, one for each.
        statistics: Layer address -> what the method may use; needed by methods that need statistics.
        seed: The study's seed, for methods that draw.
        pattern: Keep n of every m weights instead of an unstructured choice.
        master: Where the dense master lies; chosen from the free memory by default, and logged.
        keeper: Keeps the bytes; in this process's memory by default.

    Raises:
        RaysenseError: Weights that are not finite or not of 16 or 32 bits, statistics that are missing, an
            unknown method.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        inventory: Inventory,
        grid: LevelGrid,
        saliency: str | Method | Mapping[str, str] = "magnitude",
        statistics: Mapping[str, LayerStats] | None = None,
        seed: int = 0,
        pattern: Pattern | None = None,
        master: Place | None = None,
        keeper: LevelKeeper | None = None,
    ) -> None:
        self._keeper = keeper

        def prune_level(layer: Layer) -> Tensor:
            weight = self._live(layer.address)
            make = partial(prune_levels_of, layer, weight, grid, saliency, statistics or {}, seed, pattern)
            return keeper.of(layer, weight, make) if keeper else make()

        self._prune_levels_of = prune_level
        super().__init__(modules, inventory, grid, master)
        del self._prune_levels_of  # it holds the statistics, and this object itself

    def _choose(self, inventory: Inventory) -> None:
        self._prune_levels = {layer.address: self._prune_levels_of(layer) for layer in inventory.layers}

    def _write(self, address: str, target: Tensor, level: int) -> None:
        # Whole components may be elsewhere than when the bytes were made: they are brought to the GPU and back.
        prune_level = self._prune_levels[address]
        mask_into(target, self._master[address], prune_level.to(target.device), level)
        if self._keeper is not None:
            self._keeper.give_back(prune_level)


def prune_levels_of(
    layer: Layer,
    weight: Tensor,
    grid: LevelGrid,
    saliency: str | Method | Mapping[str, str],
    statistics: Mapping[str, LayerStats],
    seed: int,
    pattern: Pattern | None,
) -> Tensor:
    """The byte of each weight of a layer: its prune level; uint8, in the weight's shape and layout.

    See `Masker` for the arguments; the weight is dense.
    """
    stats = statistics.get(layer.address, LayerStats(layer.address, layer.kind, seed=seed))
    chosen = saliency[layer.component] if isinstance(saliency, Mapping) else saliency
    scores = score_layer(find_method(chosen) if isinstance(chosen, str) else chosen, weight, stats)
    if pattern is None:
        prune_level = prune_levels(scores, grid.removed_by_level(layer.address))
    else:
        prune_level = pattern_prune_levels(scores, layer.kind, pattern)
    # In the weight's memory layout (it may be channels-last), so that masking is one linear pass.
    return torch.empty_like(weight, dtype=torch.uint8).copy_(prune_level)


def pruned(
    layer: Layer,
    weight: Tensor,
    level: int,
    grid: LevelGrid,
    method: str,
    stats: LayerStats,
    pattern: Pattern | None,
) -> Tensor:
    """A layer's weights at a level above 0: the same to the bit as `Masker.apply` leaves them.

    Args:
        layer: The layer.
        weight: Its dense weights, which stay as they are.
        level: The level.
        grid: The levels of all layers.
        method: Name or dotted path of what chooses.
        stats: What the method may use.
        pattern: See `Masker`.

    Raises:
        RaysenseError: Weights that are not finite, not of 16 or 32 bits, or a view with gaps.
    """
    _check_weight(layer.address, weight)
    levels = prune_levels_of(layer, weight, grid, method, {layer.address: stats}, stats.seed, pattern)
    found = torch.empty_like(weight)
    mask_into(found, weight, levels, level)
    return found


def mask_into(live: Tensor, master: Tensor, prune_level: Tensor, level: int) -> None:
    """Write the master into the live tensor with zeros where a weight's prune level is below `level`.

    The bits are moved as integers: exact for every value. One pass, and on a CPU far faster than `torch.where`.

    Args:
        live: The weights in use, 16 or 32 bits each.
        master: Their dense values, same shape, strides and dtype; may lie on another device.
        prune_level: uint8, same shape and strides, on the device of `live`.
        level: 0 for all of the master.
    """
    if level == 0 or master.device != live.device:
        live.copy_(master)
        master = live
    if level == 0:
        return
    integer = _INTEGER[live.element_size()]
    # ReLU's backward pass is the one fused operation that says: the source, or 0 where the byte is at most that.
    write = torch.ops.aten.threshold_backward.grad_input
    # A GPU widens the bytes as it reads them, and launches cost most there: one operation.
    if live.device.type != "cpu" or live.numel() <= _CHUNK:
        write(master.view(integer), prune_level, level - 1, grad_input=live.view(integer))
        return
    target, source, bytes_ = _flat(live).view(integer), _flat(master).view(integer), _flat(prune_level)
    for start in range(0, target.numel(), _CHUNK):
        part = slice(start, start + _CHUNK)
        write(source[part], bytes_[part], level - 1, grad_input=target[part])


def choose_place(weights: Mapping[str, Tensor]) -> Place:
    """Where a copy of these weights fits: the nearest place that then keeps half of its free memory."""
    size = sum(weight.nbytes for weight in weights.values())
    on_gpu = [weight.device for weight in weights.values() if weight.device.type == "cuda"]
    if on_gpu and fits_beside(size, torch.cuda.mem_get_info(on_gpu[0])[0]):
        return "device"
    if fits_beside(size, free_host_memory()):
        return "host"
    return "mapped"


def fits_beside(size: int, free: int) -> bool:
    """Whether a dense master of so many bytes leaves enough of a memory's free bytes for activations."""
    return size <= _SPARE * free


def free_host_memory() -> int:
    """Bytes that this process may still take: what the system has left, within its container's limit."""
    free = int(psutil.virtual_memory().available)
    for limit, used in _CGROUPS:
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or "max": no limit
            continue
    return max(free, 0)


def _keep(weight: Tensor, place: Place) -> Tensor:
    """A copy of the weight in the same memory layout."""
    if place == "device":
        return weight.clone(memory_format=torch.preserve_format)
    if place == "host":
        return torch.empty_like(weight, device="cpu").copy_(weight)
    with tempfile.NamedTemporaryFile(prefix="raysense-master-") as file:
        # The mapping outlives the file's name, so nothing is left behind however the process ends.
        _reserve(file.fileno(), weight.nbytes)
        flat = torch.from_file(file.name, shared=True, size=weight.numel(), dtype=weight.dtype)
    return flat.as_strided(weight.shape, weight.stride()).copy_(weight)


def _reserve(file: int, size: int) -> None:
    """Room for a file that is then written through a mapping, where a full disk would kill the process."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
        os.truncate(file, size)
    except OSError as error:
        raise RaysenseError(
            f"the dense copy of the weights fits neither into memory nor into `{tempfile.gettempdir()}` "
            f"({error.strerror}); set TMPDIR to a folder on a disk with room"
        ) from error


def _check_weight(address: str, weight: Tensor) -> None:
    if weight.element_size() not in _INTEGER:
        raise RaysenseError(
            f"{address}: weights of {weight.dtype} cannot be masked; load the pipeline in "
            "float32, float16 or bfloat16"
        )
    if torch.empty_like(weight, device="meta").stride() != weight.stride():
        raise RaysenseError(f"{address}: its weight is a view with gaps; make it contiguous before pruning")


def _flat(tensor: Tensor) -> Tensor:
    """A one-dimensional view in memory order."""
    return tensor.as_strided((tensor.numel(),), (1,))
