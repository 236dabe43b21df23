"""Pruning with weight update: what leaves is made up for by what stays (the Optimal Brain Surgeon family).

``sparsegpt`` is the general form; with Hessians whose denoising steps are weighted (`statistics.StepWeight`)
it is the diffusion form. Everything is calibrated against the dense pipeline, so (layer, level) alone
determines the weights.

Sources: Frantar & Alistarh, "SparseGPT" (ICML 2023), algorithm 1; Zhu et al., "OBS-Diff" (arXiv 2510.06751).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from raysense.allocation import LevelGrid
from raysense.errors import RaysenseError
from raysense.names import UPDATING
from raysense.pruning.layers import Inventory, Layer, all_finite
from raysense.pruning.masks import Place, Pruner
from raysense.pruning.patterns import Pattern
from raysense.pruning.saliency import from_output_rows, output_rows
from raysense.registry import declaration_of, find

LEVELS = 16
"""The levels of a grid for these methods: each is a full copy of the layer on disk."""

_MOST_DAMPING = 100.0


@dataclass(frozen=True)
class Factor:
    """What the update needs of a Hessian.

    Attributes:
        upper: U with UᵀU = (H + damping)⁻¹ for each group, float64 (groups, columns, columns).
        damping: What was added to the Hessian's diagonal, as a share of its mean.
        note: Anything that departed from the plan, for the row; empty otherwise.
    """

    upper: Tensor
    damping: float
    note: str = ""


def factorise(hessian: Tensor, damping: float = 0.01) -> Factor:
    """Factor the inverse of a layer's Hessian.

    Args:
        hessian: (groups, columns, columns), see `statistics.InputMoments`.
        damping: Share of the diagonal's mean that is added to it; raised tenfold until H can be factored.

    Raises:
        RaysenseError: It cannot be factored with any damping up to 100.
    """
    scale = hessian.diagonal(dim1=1, dim2=2).double().mean(dim=1)
    scale = torch.where(scale > 0, scale, 1.0)[:, None]
    used = damping
    while used <= _MOST_DAMPING:
        upper = _inverse_factor(hessian, used * scale)
        if upper is not None:
            return Factor(upper, used, f"damping {damping:g} -> {used:g}" if used > damping else "")
        used *= 10
    raise RaysenseError(
        f"hessian: cannot be factored even with damping {_MOST_DAMPING:g}; calibrate with more prompts"
    )


def _inverse_factor(hessian: Tensor, damping: Tensor) -> Tensor | None:
    """U with UᵀU = (H + damping)⁻¹, or None where there is none; never holds more than two matrices in 64 bits.

    One of the widest convolutions of Stable Diffusion 2 has 4.2 GB of them.

    Args:
        hessian: (groups, columns, columns).
        damping: What is added to each group's diagonal, float64 (groups, 1).
    """
    matrix: Tensor = hessian.to(torch.float64, copy=True)
    matrix.diagonal(dim1=1, dim2=2).add_(damping)
    matrix, failed = torch.linalg.cholesky_ex(matrix)
    if failed.any():
        return None
    matrix = torch.cholesky_inverse(matrix)
    matrix, failed = torch.linalg.cholesky_ex(matrix, upper=True)
    if failed.any() or not all_finite(matrix):
        return None
    return matrix


def prune_with_update(
    weight: Tensor,
    factor: Factor,
    zeros: int,
    kind: str,
    *,
    pattern: Pattern | None = None,
    block: int | None = None,
) -> Tensor:
    """Remove exactly `zeros` weights, column by column, updating the columns to the right of each.

    A weight's score is (w / Uᵢᵢ)², and removing it adds −(w / Uᵢᵢ)·Uᵢⱼ to the weights j > i of its row.
    Scores are taken anew for each block of columns; every block loses the same share. Weights that are zero
    already leave first and stay zero.

    Args:
        weight: The dense weight.
        factor: Of its Hessian.
        zeros: How many weights leave; ignored where there is a pattern, which says it itself.
        kind: The layer's kind.
        pattern: Keep n of every m columns in each row; for linear maps and kernels of size 1.
        block: Columns that are scored together; by default a sixteenth of them, at most 128: scores that
            are not renewed within a narrow layer cost more than they save.

    Returns:
        The new weight, in the shape and dtype of the dense one.

    Raises:
        RaysenseError: A factor that does not fit, weights that are not finite, or a pattern for a kernel
            larger than 1.
    """
    dense = output_rows(weight.detach(), kind)
    groups, columns = factor.upper.shape[0], factor.upper.shape[-1]
    if dense.shape[1] != columns or dense.shape[0] % groups:
        raise RaysenseError(
            f"hessian: {groups} of {columns} columns do not fit a weight of shape {tuple(weight.shape)}"
        )
    if not torch.isfinite(dense).all():
        raise RaysenseError("weight: holds NaN or infinity; mend the checkpoint before pruning")
    if pattern and kind != "transformers_conv1d" and columns != weight.shape[1]:
        raise RaysenseError(
            f"pattern: {pattern.keep}:{pattern.of} with weight update needs a kernel of size 1"
        )
    block = block or min(max(columns // 16, 1), 128)
    parts = dense.reshape(groups, -1, columns)
    filled = [0, *torch.count_nonzero(parts.flatten(1), dim=1).cumsum(0).tolist()]
    extra = max(zeros - (dense.numel() - filled[-1]), 0)
    shares = _split(extra, filled)
    pruned = [
        _prune_rows(part, upper, share, pattern, block)
        for part, upper, share in zip(parts, factor.upper, shares, strict=True)
    ]
    return from_output_rows(torch.cat(pruned), weight.shape, kind).contiguous()


def solve_levels(
    layer: Layer, weight: Tensor, factor: Factor, grid: LevelGrid, pattern: Pattern | None = None
) -> Iterator[tuple[int, Tensor]]:
    """(level, weights) for each level above 0 of this layer, every one solved from the dense weight."""
    for level in range(1, grid.top(grid.leader(layer.address)) + 1):
        zeros = grid.removed(layer.address, level)
        yield level, prune_with_update(weight, factor, zeros, layer.kind, pattern=pattern)


Update = Callable[[Tensor, Tensor, int, str], Tensor]
"""Weight, Hessian (groups, columns, columns), zeros, kind of the layer -> the new weight, see `raysense.saliency`."""


@dataclass(frozen=True)
class Updater:
    """A method that updates the weights that stay.

    Attributes:
        name: What a study calls it.
        weighted_steps: Whether early denoising steps count more in its Hessians.
        own: The user's function; None for `prune_with_update`.
    """

    name: str
    weighted_steps: bool = False
    own: Update | None = None


def find_updater(name: str) -> Updater:
    """The method of this name, or the user's own at a dotted path, with what its decorator says.

    Raises:
        RaysenseError: No such method, or its decorator says that it scores weights.
    """
    if name in UPDATING:
        return Updater(name, UPDATING[name])
    own: Update = find(name, "saliency")
    said = declaration_of(own)
    if said is not None and said.kind == "saliency" and not said.facts["updates_weights"]:
        raise RaysenseError(
            f"saliency: the decorator of {name!r} does not say `updates_weights=True`, but the study's "
            "`prune.updates_weights` does; leave that out"
        )
    return Updater(name, bool(said and said.facts.get("weighted_steps")), own)


def solve(
    updater: Updater,
    layer: Layer,
    weight: Tensor,
    hessian: Tensor,
    grid: LevelGrid,
    damping: float,
    pattern: Pattern | None = None,
) -> tuple[dict[int, Tensor], str]:
    """A layer's weights at each level above 0, each from the dense weight, and what departed from the plan.

    Args:
        updater: The method.
        layer: The layer.
        weight: Its dense weight.
        hessian: Of its inputs, see `activations.InputMoments`.
        grid: The layers' levels.
        damping: See `factorise`.
        pattern: See `prune_with_update`.

    Raises:
        RaysenseError: What the user's own method gave is no such weight; see also `factorise`.
    """
    if updater.own is None:
        factor = factorise(hessian, damping)
        return dict(solve_levels(layer, weight, factor, grid, pattern)), factor.note
    levels = range(1, grid.top(grid.leader(layer.address)) + 1)
    wanted = {level: grid.removed(layer.address, level) for level in levels}
    return {level: updated(updater, weight, hessian, zeros, layer) for level, zeros in wanted.items()}, ""


def updated(updater: Updater, weight: Tensor, hessian: Tensor, zeros: int, layer: Layer) -> Tensor:
    """What the user's own method makes of a weight, held to the contract.

    Raises:
        RaysenseError: Another shape or type, values that are not finite, another number of zeros.
    """
    assert updater.own is not None
    found = updater.own(weight.clone(), hessian.clone(), zeros, layer.kind)
    where = f"saliency: {updater.name} must give, for {zeros} zeros in {layer.address},"
    if not isinstance(found, Tensor) or found.shape != weight.shape or found.dtype != weight.dtype:
        got = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise RaysenseError(f"{where} {weight.dtype} {tuple(weight.shape)}, but gave {got}")
    if not torch.isfinite(found).all():
        raise RaysenseError(f"{where} finite weights, but gave NaN or infinity")
    least = max(zeros, int((weight == 0).sum()))
    if (counted := int((found == 0).sum())) != least:
        raise RaysenseError(f"{where} exactly {least} zeros, but gave {counted}")
    return found.detach().contiguous()


def check_pattern(layers: Sequence[Layer]) -> None:
    """Refuse layers that cannot follow a pattern and have their weights updated.

    Raises:
        RaysenseError: A kernel larger than 1: its columns are not input channels alone.
    """
    for layer in layers:
        if layer.kind.startswith("conv") and any(size > 1 for size in layer.shape[2:]):
            raise RaysenseError(
                f"pattern: {layer.address} has a kernel of {'×'.join(map(str, layer.shape[2:]))}, but with weight "
                "update a pattern needs kernels of size 1; set `prune.kinds: [linear]`, exclude it, or choose "
                "a method without update"
            )


def hessian_bytes(layer: Layer, module: nn.Module) -> int:
    """Memory of a layer's Hessians, float32."""
    columns = layer.shape[0] if layer.kind == "transformers_conv1d" else layer.n // layer.shape[0]
    groups = module.groups if layer.kind.startswith("conv") else 1
    assert isinstance(groups, int)
    return 4 * groups * columns**2


def hessian_passes(
    modules: Mapping[str, nn.Module], layers: Sequence[Layer], limit: int
) -> list[tuple[Layer, ...]]:
    """Split the layers, in order, into passes whose Hessians fit into `limit` bytes.

    Raises:
        RaysenseError: A layer whose Hessians alone are larger.
    """
    passes: list[tuple[Layer, ...]] = []
    room = 0
    for layer in layers:
        size = hessian_bytes(layer, modules[layer.component].get_submodule(layer.path))
        if size > limit:
            raise RaysenseError(
                f"hessian memory: {layer.address} needs {size / 1e9:.2f} GB, but the limit is "
                f"{limit / 1e9:.2f} GB; raise it or exclude the layer"
            )
        if size > room:
            passes.append(())
            room = limit
        passes[-1] += (layer,)
        room -= size
    return passes


class Substituter(Pruner):
    """Prunes by writing stored weights, one slice for each (layer, level).

    Args:
        modules: Component name -> module, holding the dense weights.
        inventory: The selected layers.
        grid: Their levels, at most `LEVELS`.
        load: (layer address, level of its leader) -> the layer's weights at that level.
        master: Where the dense master lies; chosen from the free memory by default, and logged.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        inventory: Inventory,
        grid: LevelGrid,
        load: Callable[[str, int], Tensor],
        master: Place | None = None,
    ) -> None:
        super().__init__(modules, inventory, grid, master)
        self._load = load

    def _write(self, address: str, target: Tensor, level: int) -> None:
        source = self._load(address, level) if level else self._master[address]
        if source.shape != target.shape or source.dtype != target.dtype:
            raise RaysenseError(
                f"slices: {address} at level {level} is {source.dtype} {tuple(source.shape)}, the layer "
                f"{target.dtype} {tuple(target.shape)}; solve the levels again"
            )
        target.copy_(source)


def _split(extra: int, filled: Sequence[int]) -> list[int]:
    """Share `extra` weights out over parts in proportion to what they hold (cumulative, from 0)."""
    return [
        extra * stop // max(filled[-1], 1) - extra * start // max(filled[-1], 1)
        for start, stop in pairwise(filled)
    ]


def _prune_rows(dense: Tensor, upper: Tensor, extra: int, pattern: Pattern | None, block: int) -> Tensor:
    """Algorithm 1 of SparseGPT on one matrix (rows, columns): `extra` entries leave beyond its zeros."""
    weight = dense.double()
    was_zero = dense == 0
    gone = was_zero.clone()
    columns = weight.shape[1]
    if pattern:
        block = max(block // pattern.of, 1) * pattern.of
    edges = [*range(0, columns, block), columns]
    before = [0, *torch.count_nonzero(dense, dim=0).cumsum(0).tolist()]
    shares = _split(extra, [before[edge] for edge in edges])
    for (start, stop), share in zip(pairwise(edges), shares, strict=True):
        scores = (weight[:, start:stop] / upper.diagonal()[start:stop]).square()
        scores.masked_fill_(was_zero[:, start:stop], -1.0)
        if pattern:
            gone[:, start:stop] |= _pattern_choice(scores, pattern)
        else:
            count = share + int(was_zero[:, start:stop].sum())
            chosen = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
            chosen[scores.flatten().argsort(stable=True)[:count]] = True
            gone[:, start:stop] = chosen.view_as(scores)
        errors = torch.zeros_like(scores)
        for i in range(start, stop):
            # A weight that was zero is held at zero like one that leaves: updates may have moved it.
            errors[:, i - start] = torch.where(gone[:, i], weight[:, i] / upper[i, i], 0.0)
            weight[:, i:stop] -= errors[:, i - start, None] * upper[i, i:stop]
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    return _exact(weight, gone, dense.dtype)


def _pattern_choice(scores: Tensor, pattern: Pattern) -> Tensor:
    """Which entries of each row leave under the pattern; columns beyond the last whole m stay."""
    whole = scores.shape[1] // pattern.of * pattern.of
    sets = scores[:, :whole].reshape(len(scores), -1, pattern.of)
    ranks = sets.argsort(dim=2, stable=True).argsort(dim=2)
    choice = torch.zeros_like(scores, dtype=torch.bool)
    choice[:, :whole] = (ranks < pattern.of - pattern.keep).reshape(len(scores), whole)
    return choice


def _exact(weight: Tensor, gone: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights in their own precision, zero exactly where they are gone.

    What stays but rounds to zero becomes the smallest normal number: it is not counted as pruned.
    """
    rounded = weight.to(dtype)
    tiny = torch.full_like(rounded, torch.finfo(dtype).tiny).copysign(rounded)
    return torch.where(rounded == 0, tiny, rounded).masked_fill(gone, 0.0)
