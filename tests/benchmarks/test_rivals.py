"""The rivals of `benchmarks.search` do what they say, on small grids."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.rivals import Learned, by_depth, least_sum, stages, taylor_programme
from raysense.allocation import LevelGrid
from raysense.pruning.layers import Inventory, take_inventory
from raysense.pruning.saliency import LayerStats


@pytest.fixture(scope="module")
def pruned() -> tuple[dict[str, nn.Module], Inventory, LevelGrid]:
    torch.manual_seed(0)
    modules: dict[str, nn.Module] = {"unet": nn.Sequential(*(nn.Linear(40, 40) for _ in range(8)))}
    inventory = take_inventory(modules, select=["unet"])
    return modules, inventory, LevelGrid(inventory.sizes, 0.95)


def test_least_sum_is_the_best_of_all_choices() -> None:
    rng = np.random.default_rng(0)
    damages = [[0.0, *sorted(rng.random(3).tolist())] for _ in range(5)]
    zeros = [[0, *sorted(rng.integers(1, 40, 3).tolist())] for _ in range(5)]
    wanted = int(0.6 * sum(z[-1] for z in zeros))
    chosen = least_sum(damages, zeros, wanted, gap=0.0)
    everything = itertools.product(range(4), repeat=5)
    enough = [c for c in everything if sum(z[i] for z, i in zip(zeros, c, strict=True)) >= wanted]
    best = min(sum(d[i] for d, i in zip(damages, c, strict=True)) for c in enough)
    assert tuple(chosen) in enough
    assert sum(d[i] for d, i in zip(damages, chosen, strict=True)) == pytest.approx(best)


def test_stages_are_consecutive_and_of_about_equal_size(pruned: tuple[Any, Inventory, LevelGrid]) -> None:
    _, inventory, grid = pruned
    parts = by_depth(inventory, grid, 4)
    assert [a for part in parts for a in part] == list(grid.addresses)
    assert [len(part) for part in parts] == [2, 2, 2, 2]


def test_the_stage_wise_search_finds_a_fragile_stage(pruned: tuple[Any, Inventory, LevelGrid]) -> None:
    """Where only the first stage hurts, the others end near the cap and it does not."""
    _, inventory, grid = pruned
    parts = by_depth(inventory, grid, 4)

    def share(allocation: Any, place: int) -> float:
        return sum(grid.zeros_at(a, allocation[a]) for a in parts[place]) / sum(
            map(grid.weights, parts[place])
        )

    proposals = stages(SimpleNamespace(grid=grid, inventory=inventory), [])  # type: ignore[arg-type]
    allocation, best = next(proposals), None
    for _ in range(60):
        feasible = share(allocation, 0) <= 0.3
        if feasible and (best is None or grid.zeros(allocation) > grid.zeros(best)):
            best = allocation
        try:
            allocation = proposals.send(SimpleNamespace(feasible=feasible))  # type: ignore[arg-type]
        except StopIteration:
            break
    assert best is not None
    assert 0.2 < share(best, 0) <= 0.3
    assert min(share(best, place) for place in (1, 2, 3)) > 0.8


def test_a_rule_that_learns_spares_the_layers_that_matter(
    pruned: tuple[dict[str, nn.Module], Inventory, LevelGrid],
) -> None:
    modules, inventory, grid = pruned
    statistics = {}
    for number, layer in enumerate(inventory.layers):
        gradients = torch.full((40, 40), 100.0 if number == 0 else 1.0)
        statistics[layer.address] = LayerStats(layer.address, layer.kind, None, gradients)
    known = Learned(statistics, {})
    allocation = taylor_programme(inventory, grid, modules, known)(int(0.5 * grid.n))
    assert abs(grid.zeros(allocation) - 0.5 * grid.n) <= 40
    shares = [grid.zeros_at(a, allocation[a]) / grid.weights(a) for a in grid.addresses]
    assert shares[0] < min(shares[1:])
