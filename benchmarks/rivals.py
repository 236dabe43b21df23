"""What others do about the same question, as `benchmarks.search` sets it beside raysense.

- `stages`: a person's way, with no knowledge of curves. The layers fall into four stages by depth, of about equal
  size. Each is bisected alone for the most that it can lose; one factor on all of them is bisected for the whole; then
  a stage at a time is raised, by less whenever that fails. Every step is a candidate's climb by images.
- `taylor`: scores from gradients and an integer programme, after NVIDIA's Model Optimizer (its `auto_quantize` with
  ``method="gradient"`` scores a layer's choice by a Taylor expansion of the loss with Fisher information in the place
  of the Hessian, and a linear programming solver chooses): a layer's level costs the sum of w²·E[g²] over the weights
  that leave, and ``scipy.optimize.milp`` finds the choice with the least sum for a total.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array
from torch import nn

import raysense as rs
from raysense.allocation import Allocation, LevelGrid
from raysense.pruning.activations import calibrate
from raysense.pruning.allocation_rules import AllocationRule
from raysense.pruning.layers import Inventory, weight_of
from raysense.pruning.saliency import LayerStats, taylor
from raysense.strategies.context import Candidate, SearchContext

STAGES = 4
ALONE = 3
"""Steps of a stage's own bisection, and of that of the factor."""

STEP, LEAST_STEP = 0.1, 0.01
POINTS = 12
"""Choices of a layer in the integer programme, beside none."""


@rs.strategy("stages")
def stages(search: SearchContext, known: Sequence[Candidate]) -> Generator[Allocation, Candidate, None]:
    """Four stages by depth, see the module."""
    grid = search.grid
    parts = by_depth(search.inventory, grid, STAGES)
    cap = grid.max_layer_sparsity

    def allocation(shares: Sequence[float]) -> Allocation:
        return Allocation(
            {
                a: level
                for part, share in zip(parts, shares, strict=True)
                for a in part
                if (level := grid.level_for(a, min(max(share, 0.0), cap)))
            }
        )

    most = []
    for place in range(len(parts)):
        low, high = 0.0, cap
        for _ in range(ALONE):
            middle = (low + high) / 2
            candidate = yield allocation([middle if i == place else 0.0 for i in range(len(parts))])
            low, high = (middle, high) if candidate.feasible else (low, middle)
        most.append(low)
    low, high = 0.0, 1.0
    for _ in range(ALONE):
        middle = (low + high) / 2
        candidate = yield allocation([middle * share for share in most])
        low, high = (middle, high) if candidate.feasible else (low, middle)
    best, steps = [low * share for share in most], [STEP] * len(parts)
    while max(steps) >= LEAST_STEP:
        for place in range(len(parts)):
            if steps[place] < LEAST_STEP or best[place] >= cap:
                steps[place] = 0.0 if best[place] >= cap else steps[place]
                continue
            tried = [share + steps[place] * (i == place) for i, share in enumerate(best)]
            candidate = yield allocation(tried)
            if candidate.feasible:
                best = tried
            else:
                steps[place] /= 2


def by_depth(inventory: Inventory, grid: LevelGrid, count: int) -> list[list[str]]:
    """Layers in the pipeline's own order, in so many parts of about equal size."""
    own = [
        address for address in (layer.address for layer in inventory.layers) if address in set(grid.addresses)
    ]
    sizes = np.array([grid.weights(address) for address in own], dtype=np.float64)
    middles = sizes.cumsum() - sizes / 2
    places = np.minimum((middles / sizes.sum() * count).astype(int), count - 1)
    parts = [[a for a, place in zip(own, places, strict=True) if place == number] for number in range(count)]
    return [part for part in parts if part]


@dataclass(frozen=True)
class Learned:
    """What rivals learn from the dense pipeline at work, and the runs of it that this took.

    Attributes:
        statistics: Layer -> its gradients' moments.
        images: Rule -> images that were sampled for it.
    """

    statistics: Mapping[str, LayerStats]
    images: Mapping[str, int]


def learned(
    modules: Mapping[str, nn.Module], inventory: Inventory, run: Callable[[], None], prompts: int, seed: int
) -> Learned:
    """Gradients, from so many prompts."""
    found = calibrate(modules, inventory, frozenset({"gradients"}), run, seed=seed)
    # The calls are recorded first, then replayed with a pass backwards.
    return Learned(found, {"taylor": 2 * prompts})


def taylor_programme(
    inventory: Inventory, grid: LevelGrid, modules: Mapping[str, nn.Module], known: Learned
) -> AllocationRule:
    """Scores from gradients and an integer programme, see the module."""
    own = [layer for layer in inventory.layers if layer.address in set(grid.addresses)]
    damages, zeros_of, levels_of = [], [], []
    for layer in own:
        weight = weight_of(modules, layer).data
        order = weight.abs().flatten().argsort(stable=True)
        spent = taylor(weight, known.statistics[layer.address]).flatten()[order].double().cumsum(0)
        top = grid.top(layer.address)
        levels = sorted({round(top * point / POINTS) for point in range(POINTS + 1)})
        zeros = [grid.zeros_at(layer.address, level) for level in levels]
        damages.append([float(spent[z - 1]) if z else 0.0 for z in zeros])
        zeros_of.append(zeros)
        levels_of.append(levels)

    def rule(wanted: int) -> Allocation:
        wanted = min(wanted, sum(zeros[-1] for zeros in zeros_of))
        chosen = least_sum(damages, zeros_of, wanted)
        wish = {layer.address: float(zeros[c]) for layer, zeros, c in zip(own, zeros_of, chosen, strict=True)}
        return grid.nearest(wish, wanted)

    return rule


def least_sum(
    damages: Sequence[Sequence[float]], zeros: Sequence[Sequence[int]], wanted: int, gap: float = 1e-3
) -> list[int]:
    """One choice a layer with at least so many zeros and the least sum of damages, to a relative gap.

    Args:
        damages: Layer by layer, its choices' damages.
        zeros: Their zeros.
        wanted: In all.
        gap: See above.
    """
    cost = np.concatenate([np.asarray(d, dtype=np.float64) for d in damages])
    gain = np.concatenate([np.asarray(z, dtype=np.float64) for z in zeros])
    layer = np.repeat(np.arange(len(damages)), [len(d) for d in damages])
    one = csr_array((np.ones(len(layer)), (layer, np.arange(len(layer)))))
    found = milp(
        cost / max(cost.max(), 1e-300),
        integrality=np.ones(len(cost), dtype=np.int64),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one, 1, 1),
            LinearConstraint(gain[None, :] / max(wanted, 1), lb=min(wanted, 1)),
        ],
        options={"mip_rel_gap": gap, "time_limit": 20.0},
    )
    if found.x is None:
        raise RuntimeError(f"the integer programme has no answer: {found.message}")
    return [int(found.x[layer == number].argmax()) for number in range(len(damages))]
