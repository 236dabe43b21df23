"""Families of allocations by name: each turns a wanted total into an allocation. The solver is one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from raysense.errors import RaysenseError
from raysense.pruning import priors
from raysense.pruning.allocation import Allocation, LevelGrid
from raysense.pruning.layers import Inventory
from raysense.search.curves import Curve
from raysense.search.solver import solve

Family = Callable[[int], Allocation]
"""Wanted zeros in the selected layers -> allocation."""

SOLVER = "solver"


def closed_forms(
    inventory: Inventory, grid: LevelGrid, modules: Mapping[str, nn.Module]
) -> dict[str, Family]:
    """The allocations that need no measurement, by name."""
    components = tuple(dict.fromkeys(layer.component for layer in inventory.layers))
    linear = sum(layer.n for layer in inventory.layers if layer.kind == "linear")

    def recipe(zeros: int) -> Allocation:
        ratio = min(zeros / max(linear, 1), grid.cap)
        return priors.original_recipe(inventory, grid, dict.fromkeys(components, ratio))

    return {
        "uniform": lambda zeros: priors.uniform(inventory, grid, zeros),
        "recipe": recipe,
        "erk": lambda zeros: priors.erk(inventory, grid, zeros),
        "global": lambda zeros: priors.global_magnitude(inventory, grid, zeros, modules),
        "lamp": lambda zeros: priors.lamp(inventory, grid, zeros, modules),
    }


def solved(
    curves: Sequence[Curve],
    groups: Mapping[str, Sequence[str]],
    inventory: Inventory,
    grid: LevelGrid,
    weights: Mapping[str, float] | None = None,
) -> Family:
    """The solver's family: least weighted sum of the groups' damages for every total."""
    fine = [curve.refined() for curve in curves]
    sizes = {layer.address: layer.n for layer in inventory.layers}

    def family(zeros: int) -> Allocation:
        most = sum(max(curve.zeros) for curve in fine)
        solution = solve(fine, min(zeros, most), weights)
        wish = {
            address: solution.sparsity.get(group, 0.0) * sizes[address]  # unmeasured groups stay dense
            for group, addresses in groups.items()
            for address in addresses
        }
        return grid.nearest(wish, min(zeros, most))

    return family


def check_strategies(names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse names that are no family."""
    for name in names:
        if name not in known:
            raise RaysenseError(
                f"`search.strategies` has the unknown entry {name!r}; there are {', '.join(sorted(known))}"
            )
