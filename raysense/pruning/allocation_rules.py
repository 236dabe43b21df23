"""Allocation rules: a total goes in, an allocation within one base step of it comes out.

Each rule says how many zeros every layer should get; `LevelGrid.nearest` turns that into levels. Limits are
respected by projection: what a layer may not take goes to the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raysense.allocation import Allocation, LevelGrid
from raysense.errors import RaysenseError
from raysense.pruning.layers import Granularity, Inventory, Layer, weight_of
from raysense.pruning.ranking import magnitude_counts
from raysense.pruning.saliency import LayerStats, wanda_tensor

AllocationRule = Callable[[int], Allocation]
"""Wanted zeros in the selected layers -> allocation."""

Counts = npt.NDArray[np.int64]

_BUCKETS = 1 << 15
"""One per bfloat16 value of a score that is not negative."""


def uniform(inventory: Inventory, grid: LevelGrid, zeros: int) -> Allocation:
    """One ratio for all selected layers."""
    return _by_shift({layer.address: 0.0 for layer in inventory.layers}, inventory, grid, zeros)


def in_proportion(
    layers: Sequence[Layer],
    inventory: Inventory,
    grid: LevelGrid,
    zeros: int,
    proportions: Mapping[str, float],
) -> Allocation:
    """One ratio for each component, the ratios in fixed proportions, and as large as the total asks.

    With the Linear layers alone this is the recipe of Ramesh & Zhao, "Efficient Pruning of Text-to-Image
    Models" (arXiv 2411.15113).

    Args:
        layers: Those that may be pruned, e.g. only the Linear ones.
        inventory: The selected layers.
        grid: Their levels.
        zeros: Requested total; more than these layers can lose gives what they can.
        proportions: Component -> its part; 1 where missing, 0 keeps a component dense.

    Raises:
        RaysenseError: No layers, or a component without any of them.
    """
    there = dict.fromkeys(layer.component for layer in layers)
    unknown = [component for component in proportions if component not in there]
    if unknown or not there:
        raise RaysenseError(
            f"proportions: {unknown[0] if unknown else 'no component'!r} has no such selected layers; "
            f"those that do: {', '.join(there) or 'none'}"
        )
    part = {component: proportions.get(component, 1.0) for component in there}
    free = [layer for layer in layers if part[layer.component] > 0]
    limits = {layer.address: grid.limit(layer.address) for layer in free}

    def wish(scale: float) -> dict[str, float]:
        ratios = {component: min(scale * share, grid.max_layer_sparsity) for component, share in part.items()}
        return {
            layer.address: _clip(layer.n * ratios[layer.component], limits[layer.address]) for layer in free
        }

    most = grid.max_layer_sparsity / min((share for share in part.values() if share > 0), default=1.0)
    # A layer that moves with others moves them all, hence the bound.
    total = min(
        zeros, sum(grid.zeros_at(leader, grid.top(leader)) for leader in {grid.leader(a) for a in limits})
    )
    return grid.nearest(_solve(wish, total, 0.0, most, falling=False), total, among=limits)


def erk(inventory: Inventory, grid: LevelGrid, zeros: int) -> Allocation:
    """Erdős–Rényi kernel: a layer's density is proportional to the sum of its dimensions over their product.

    Source: Evci et al., "Rigging the Lottery: Making All Tickets Winners" (ICML 2020), §3.
    """
    raw = {layer.address: sum(layer.shape) / math.prod(layer.shape) for layer in inventory.layers}
    limits = {layer.address: grid.limit(layer.address) for layer in inventory.layers}

    def wish(scale: float) -> dict[str, float]:
        return {a: _clip(n * (1 - scale * raw[a]), limits[a]) for a, n in inventory.sizes}

    return grid.nearest(_solve(wish, zeros, 0.0, 1 / min(raw.values()), falling=True), zeros)


def global_magnitude(
    inventory: Inventory, grid: LevelGrid, modules: Mapping[str, nn.Module]
) -> AllocationRule:
    """One magnitude threshold for all selected layers (thresholds to bfloat16, then to levels)."""
    return one_threshold(inventory, grid, cache(lambda: counts_below("global", inventory, modules)))


def lamp(inventory: Inventory, grid: LevelGrid, modules: Mapping[str, nn.Module]) -> AllocationRule:
    """One threshold on the layer-adaptive magnitude score of all selected layers.

    Source: Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning" (ICLR 2021), eq. 4.
    """
    return one_threshold(inventory, grid, cache(lambda: counts_below("lamp", inventory, modules)))


OUTLIER_TIMES, OUTLIER_SPREAD = 7.0, 0.08
"""OWL's M and λ: an outlier is above so many times the mean; sparsities lie within ±λ of the common ratio. Yin et al.
(see `owl`) choose them by the model; with these Stable Diffusion 2 was pruned (Ramesh & Zhao, arXiv 2411.15113)."""


def owl(
    inventory: Inventory,
    grid: LevelGrid,
    zeros: int,
    outliers: Mapping[str, float],
    spread: float = OUTLIER_SPREAD,
) -> Allocation:
    """Layers with more outliers are pruned less, all within ±`spread` of the common ratio.

    The outlier ratios are scaled to a range of ``2·spread`` and shifted so that the *weights* removed, not
    the mean of the ratios, meet the total, with each layer projected to its bounds.

    Source: Yin et al., "Outlier Weighed Layerwise Sparsity (OWL)" (ICML 2024, arXiv 2310.05175) and luuyin/OWL,
    whose unweighted centring is exact only for layers of equal size. They give all layers of a transformer block
    one ratio: so does this if `outliers` does.

    Args:
        inventory: The selected layers.
        grid: Their levels.
        zeros: Requested total.
        outliers: Layer -> outlier ratio, its own or its block's, see `outlier_ratios`.
        spread: λ, as a sparsity.
    """
    missing = [layer.address for layer in inventory.layers if layer.address not in outliers]
    if missing:
        raise RaysenseError(
            f"owl: no outlier ratio for {missing[0]} and {len(missing) - 1} more; collect `inputs` first"
        )
    low, high = min(outliers.values()), max(outliers.values())
    scale = 2 * spread / (high - low) if high > low else 0.0
    lean = {layer.address: -scale * (outliers[layer.address] - low) for layer in inventory.layers}
    return _by_shift(lean, inventory, grid, zeros)


def outlier_ratios(
    inventory: Inventory,
    modules: Mapping[str, nn.Module],
    statistics: Mapping[str, LayerStats],
    granularity: Granularity = "layer",
    times: float = OUTLIER_TIMES,
) -> dict[str, float]:
    """Layer -> share of the weights of its group whose |w|·‖x‖₂ exceeds `times` (M) the mean of the group.

    Args:
        inventory: The selected layers.
        modules: Component name -> module, dense.
        statistics: Layer -> mean squares of its inputs; in the place of norms, which are in proportion where all
            layers of a group see as many tokens.
        granularity: What a group is; ``block`` as published.
        times: M.
    """
    layers = {layer.address: layer for layer in inventory.layers}

    def scores(address: str) -> Tensor:
        return wanda_tensor(weight_of(modules, layers[address]).data, statistics[address])

    ratios: dict[str, float] = {}
    for members in inventory.groups(granularity).values():
        # One layer's scores at a time in memory, hence twice.
        n = sum(layers[address].n for address in members)
        mean = sum(float(scores(address).sum(dtype=torch.float64)) for address in members) / n
        outliers = sum(int((scores(address) > times * mean).sum()) for address in members)
        ratios |= dict.fromkeys(members, outliers / n)
    return ratios


def lamp_scores(weight: Tensor) -> Tensor:
    """w² over the sum of the squares of all weights of the layer that are not smaller."""
    squares, order = weight.float().square().flatten().sort()
    below = squares.double().cumsum(0) - squares
    rest = (squares.double().sum() - below).clamp_min(torch.finfo(torch.float64).tiny)
    scores = torch.empty_like(squares)
    scores[order] = (squares / rest).float()
    return scores.view(weight.shape)


def counts_below(
    rule: str,
    inventory: Inventory,
    modules: Mapping[str, nn.Module],
    tell: Callable[[int], None] | None = None,
) -> Counts:
    """What `one_threshold` needs to know of the weights, which must be dense.

    Args:
        rule: A key of `BY_THRESHOLD`.
        inventory: The selected layers.
        modules: Component name -> module.
        tell: Called after each layer with how many are counted.

    Returns:
        int64 (layers, buckets): how many of a layer's scores fall into a bfloat16 bucket or a lower one, for
        the buckets that any score falls into, and once more for all of them.
    """
    below = []
    for number, layer in enumerate(inventory.layers, 1):
        below.append(BY_THRESHOLD[rule](weight_of(modules, layer).data))
        if tell is not None:
            tell(number)
    counts = np.stack(below)
    steps = np.flatnonzero(np.diff(counts, axis=1, prepend=0).max(axis=0))
    return counts[:, [*steps.tolist(), -1]]


def one_threshold(inventory: Inventory, grid: LevelGrid, counts: Callable[[], Counts]) -> AllocationRule:
    """The zeros of each layer below the one threshold that gives the total, each layer up to its limit.

    Args:
        inventory: The selected layers.
        grid: Their levels.
        counts: Gives what `counts_below` gave; called when an allocation is asked for.
    """
    limits = np.array([grid.limit(layer.address) for layer in inventory.layers], dtype=np.int64)

    def family(zeros: int) -> Allocation:
        below = counts()
        totals = np.minimum(below, limits[:, None]).sum(axis=0)
        last = min(int(np.searchsorted(totals, zeros)), below.shape[1] - 1)
        upper = np.minimum(below[:, last], limits)
        lower = np.minimum(below[:, last - 1], limits) if last else np.zeros_like(upper)
        # Inside the bucket that the threshold falls into, every layer gives the same share.
        gap = max(int((upper - lower).sum()), 1)
        wish = lower + (upper - lower) * ((zeros - int(lower.sum())) / gap)
        return grid.nearest(
            {layer.address: float(w) for layer, w in zip(inventory.layers, wish, strict=True)}, zeros
        )

    return family


def _magnitudes_below(weight: Tensor) -> Counts:
    if weight.element_size() == 2:
        values, counts = magnitude_counts(weight)
        return _cumulative(values, counts)
    return _cumulative(weight.float().abs().flatten().cpu().numpy())


def _lamp_below(weight: Tensor) -> Counts:
    """From the histogram of 16-bit weights, which is a hundredth of the work of sorting them."""
    if weight.element_size() != 2:
        return _cumulative(lamp_scores(weight).flatten().cpu().numpy())
    values, counts = magnitude_counts(weight)
    squares = values**2
    # What is not smaller than the first of each value, the j-th of which has the score square / (rest - j * square).
    rest = (squares * counts)[::-1].cumsum()[::-1]
    first = squares / np.maximum(rest, np.finfo(np.float64).tiny)
    last = squares / np.maximum(rest - (counts - 1) * squares, np.finfo(np.float64).tiny)
    is_spread = _bucket(first) != _bucket(last)
    repeats = counts[is_spread]
    place = np.arange(repeats.sum()) - np.repeat(repeats.cumsum() - repeats, repeats)
    spread = 1 / (np.repeat(rest[is_spread] / np.maximum(squares[is_spread], 1e-300), repeats) - place)
    return _cumulative(first[~is_spread], counts[~is_spread]) + _cumulative(spread)


BY_THRESHOLD: dict[str, Callable[[Tensor], Counts]] = {"global": _magnitudes_below, "lamp": _lamp_below}
"""Rules of one threshold -> how many scores of a weight fall into each bfloat16 bucket or a lower one."""


def _bucket(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """The bfloat16 at or below each of some non-negative scores: the bits of such floats have their values' order."""
    bits: npt.NDArray[np.int64] = (scores.astype(np.float32).view(np.int32) >> 16).astype(np.int64)
    return bits


def _cumulative(
    scores: npt.NDArray[np.floating], counts: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.int64]:
    """How many of the (non-negative) scores fall into each bfloat16 bucket or a lower one."""
    found = np.bincount(_bucket(scores), weights=counts, minlength=_BUCKETS).cumsum()
    return found.astype(np.int64)


def _by_shift(lean: Mapping[str, float], inventory: Inventory, grid: LevelGrid, zeros: int) -> Allocation:
    """Sparsities ``lean + shift``, each projected to its bounds, with the shift that meets the total."""
    limits = {layer.address: grid.limit(layer.address) for layer in inventory.layers}

    def wish(shift: float) -> dict[str, float]:
        return {a: _clip(n * (lean[a] + shift), limits[a]) for a, n in inventory.sizes}

    return grid.nearest(
        _solve(wish, zeros, -max(lean.values()), 1 - min(lean.values()), falling=False), zeros
    )


def _solve(
    wish: Callable[[float], dict[str, float]], zeros: int, low: float, high: float, *, falling: bool
) -> dict[str, float]:
    """The wish whose sum is `zeros`, by bisection of a monotone parameter."""
    for _ in range(64):
        middle = (low + high) / 2
        if (sum(wish(middle).values()) < zeros) != falling:
            low = middle
        else:
            high = middle
    return wish((low + high) / 2)


def _clip(value: float, limit: int) -> float:
    return min(max(value, 0.0), float(limit))
