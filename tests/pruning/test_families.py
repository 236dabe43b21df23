"""Every family through the inner loop of the main job: inventory, prune, sample, count, restore, export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from families import FAMILIES, SAMPLING, Family, sample
from torch import nn

from raysense.allocation import LevelGrid
from raysense.pipelines.sample import metered
from raysense.pruning import allocation_rules
from raysense.pruning.activations import InputMoments, StepWeight, calibrate
from raysense.pruning.layers import count_zeros, find_layers, take_inventory
from raysense.pruning.masks import Masker
from raysense.pruning.obs import LEVELS, Substituter, factorise, hessian_passes, solve_levels
from raysense.pruning.saliency import find_method

PROMPTS, SEEDS = ["a cat", "two dogs"], [1, 2]


def build(name: str) -> tuple[DiffusionPipeline, Family, dict[str, nn.Module]]:
    torch.manual_seed(0)
    family = FAMILIES[name]
    pipeline = family.build()
    pipeline.set_progress_bar_config(disable=True)
    modules = {k: v.eval() for k, v in pipeline.components.items() if isinstance(v, nn.Module)}
    return pipeline, family, modules


@pytest.mark.parametrize("name", FAMILIES)
def test_the_inner_loop(name: str, tmp_path: Path):
    pipeline, family, modules = build(name)
    inventory = take_inventory(pipeline.components, select=family.select)
    grid = LevelGrid(inventory.sizes, 0.95)
    for layer in inventory.layers:
        assert "norm" not in type(modules[layer.component].get_submodule(layer.path)).__name__.lower()
    with metered(pipeline) as meter:
        dense = sample(pipeline, family, PROMPTS, SEEDS)
    guided = 1 if name == "flux" else 2  # Flux was distilled with its guidance inside
    assert meter.nfe == len(PROMPTS) * SAMPLING.steps * guided
    alone = sample(pipeline, family, PROMPTS[1:], SEEDS[1:])
    np.testing.assert_allclose(alone[0], dense[1], atol=1e-4, err_msg="noise depends on the batch")

    masker = Masker(modules, inventory, grid)
    zeros = inventory.n_selected // 2
    masker.apply(allocation_rules.uniform(inventory, grid, zeros))
    assert 0 <= zeros - masker.count_zeros() < grid.base
    pruned = sample(pipeline, family, PROMPTS, SEEDS)
    assert np.abs(pruned - dense).max() > 1e-3, "half of the weights must make a difference"

    pipeline.save_pretrained(tmp_path)
    reloaded = type(pipeline).from_pretrained(tmp_path)
    reloaded.set_progress_bar_config(disable=True)
    kept = dict(find_layers({k: reloaded.components[k] for k in family.select}))
    assert sum(count_zeros(weight) for weight in kept.values()) == masker.count_zeros()
    np.testing.assert_allclose(sample(reloaded, family, PROMPTS, SEEDS), pruned, atol=1e-4)

    masker.restore()
    assert np.array_equal(sample(pipeline, family, PROMPTS, SEEDS), dense), "a dense restore is exact"


@pytest.mark.parametrize("method", ["wanda", "taylor"])
@pytest.mark.parametrize("name", ["sd2", "sd3", "flux", "pixart_sigma", "sana", "dit"])
def test_statistics_of_the_real_loop(name: str, method: str):
    pipeline, family, modules = build(name)
    select = [component for component in family.select if component != "vae" or method == "wanda"]
    everything = take_inventory(pipeline.components, select=select)
    ran = running(modules, lambda: sample(pipeline, family, PROMPTS, SEEDS))
    idle = [layer.address for layer in everything.layers if layer.address not in ran]
    inventory = take_inventory(pipeline.components, select=select, exclude=idle)
    grid = LevelGrid(inventory.sizes, 0.9)
    saliency = find_method(method)
    statistics = calibrate(
        modules, inventory, saliency.needs, lambda: sample(pipeline, family, PROMPTS, SEEDS), calls=2
    )
    masker = Masker(modules, inventory, grid, saliency, statistics)
    masker.apply(grid.uniform(0.5))
    assert masker.count_zeros() == grid.zeros(masker.current)
    assert np.isfinite(sample(pipeline, family, PROMPTS, SEEDS)).all()


def running(modules: dict[str, nn.Module], run) -> set[str]:
    """Addresses of the layers that a run passes through (DiT never encodes an image, for example)."""
    seen: set[str] = set()
    handles = [
        modules[layer.component]
        .get_submodule(layer.path)
        .register_forward_pre_hook(lambda *_, address=layer.address: seen.add(address))
        for layer, _ in find_layers(modules)
    ]
    run()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", ["sd1", "sana"])
def test_weight_update_in_the_real_loop(name: str):
    """Text encoder and denoiser, Linear and Conv: closer to the dense images than magnitude at 50 %."""
    pipeline, family, modules = build(name)
    select = [component for component in family.select if component != "vae"]
    inventory = take_inventory(pipeline.components, select=select)
    grid = LevelGrid(inventory.sizes, 0.9, LEVELS)
    dense = sample(pipeline, family, PROMPTS, SEEDS)
    steps = {select[-1]: StepWeight(steps=2)}
    slices = {}
    weights = {
        layer.address: weight.detach() for layer, weight in find_layers({c: modules[c] for c in select})
    }
    for part in hessian_passes(modules, inventory.layers, 2_000_000):
        with InputMoments(modules, part, full=True, step_weight=steps) as moments:
            sample(pipeline, family, PROMPTS * 2, [3, 4, 5, 6])
        for layer in part:
            factor = factorise(moments.collected()[layer.address])
            for level, weight in solve_levels(layer, weights[layer.address], factor, grid):
                slices[layer.address, level] = weight
    allocation = allocation_rules.uniform(inventory, grid, inventory.n_selected // 2)
    errors = {}
    pruners = {
        "sparsegpt": Substituter(modules, inventory, grid, lambda address, level: slices[address, level]),
        "magnitude": Masker(modules, inventory, grid),
    }
    for method, pruner in pruners.items():
        pruner.apply(allocation)
        assert pruner.count_zeros() == grid.zeros(allocation)
        errors[method] = float(np.square(sample(pipeline, family, PROMPTS, SEEDS) - dense).mean())
        pruner.restore()
        assert np.array_equal(sample(pipeline, family, PROMPTS, SEEDS), dense)
    assert errors["sparsegpt"] < errors["magnitude"], errors
