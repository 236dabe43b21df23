"""Allocation rules by name: each turns a wanted total into an allocation. The solver's is one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

from torch import nn

from raysense.allocation import Allocation, LevelGrid
from raysense.errors import RaysenseError
from raysense.names import OUTLIERS, UNIFORM, renamed
from raysense.pruning import allocation_rules
from raysense.pruning.allocation_rules import AllocationRule, Counts
from raysense.pruning.layers import Inventory, Layer
from raysense.records import Evaluation
from raysense.strategies.curves import Curve
from raysense.strategies.solver import OBJECTIVES


def built_in_rules(
    inventory: Inventory,
    grid: LevelGrid,
    modules: Mapping[str, nn.Module],
    proportions: Mapping[str, float] | None = None,
    counts: Callable[[str], Counts] | None = None,
) -> dict[str, AllocationRule]:
    """The rules that need the weights alone, by name.

    Args:
        inventory: The selected layers.
        grid: Their levels.
        modules: Component name -> module, dense when the first allocation is asked for.
        proportions: Component -> its part in the ratios of ``per_component`` and ``linear_uniform``; 1 where missing.
        counts: Rule -> what `allocation_rules.counts_below` gave, for callers that hold no weights: `modules` is not
            looked at then.
    """
    of_rule = counts or cache(lambda rule: allocation_rules.counts_below(rule, inventory, modules))
    linear = tuple(layer for layer in inventory.layers if layer.kind == "linear")
    parts = dict(proportions or {})

    def in_proportion(layers: Sequence[Layer]) -> AllocationRule:
        return lambda zeros: allocation_rules.in_proportion(layers, inventory, grid, zeros, parts)

    return {
        UNIFORM: lambda zeros: allocation_rules.uniform(inventory, grid, zeros),
        "per_component": in_proportion(inventory.layers),
        "linear_uniform": in_proportion(linear),
        "erk": lambda zeros: allocation_rules.erk(inventory, grid, zeros),
        **{
            rule: allocation_rules.one_threshold(inventory, grid, partial(of_rule, rule))
            for rule in allocation_rules.BY_THRESHOLD
        },
    }


def outliers_of(rule: str, calibration: Evaluation) -> dict[str, float]:
    """Layer -> outlier ratio that one of `OUTLIERS` allocates by, from the measures of a calibration."""
    begins = OUTLIERS[rule]
    return {
        name.removeprefix(begins): measure.value
        for name, measure in calibration.measures.items()
        if name.startswith(begins)
    }


def outlier_weighed(
    rule: str, inventory: Inventory, grid: LevelGrid, calibration: Evaluation
) -> AllocationRule:
    """The rule of one of `OUTLIERS`."""
    outliers = outliers_of(rule, calibration)
    return lambda zeros: allocation_rules.owl(inventory, grid, zeros, outliers)


def solved(
    curves: Sequence[Curve],
    groups: Mapping[str, Sequence[str]],
    inventory: Inventory,
    grid: LevelGrid,
    weights: Mapping[str, float] | None = None,
    objective: str = "additive",
) -> AllocationRule:
    """The solver's rule: least weighted sum of the groups' damages for every total, or least largest of them.

    Args:
        curves: The groups', refined.
        groups: Group -> its layers.
        inventory: The layers.
        grid: Their levels.
        weights: Group -> factor on its damage; 1 where missing.
        objective: One of `OBJECTIVES`.
    """
    sizes = {layer.address: layer.n for layer in inventory.layers}

    def rule(zeros: int) -> Allocation:
        most = sum(max(curve.zeros) for curve in curves)
        solution = OBJECTIVES[objective](curves, min(zeros, most), weights)
        wish = {
            address: solution.sparsity.get(group, 0.0) * sizes[address]  # unmeasured groups stay dense
            for group, addresses in groups.items()
            for address in addresses
        }
        return grid.nearest(wish, min(zeros, most))

    return rule


def check_strategies(names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse names that are neither a rule nor a strategy."""
    for name in names:
        if name not in known:
            raise RaysenseError(
                renamed(f"search.strategies: {name}")
                or f"`search.strategies` has the unknown entry {name!r}; there are {', '.join(sorted(known))}"
            )
