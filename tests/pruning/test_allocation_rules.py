from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from raysense.allocation import LevelGrid
from raysense.errors import RaysenseError
from raysense.pruning import allocation_rules
from raysense.pruning.activations import calibrate
from raysense.pruning.layers import take_inventory, weight_of
from raysense.pruning.masks import Masker
from raysense.pruning.saliency import LayerStats

ALLOCATION_RULES = {
    "uniform": lambda inventory, grid, zeros, modules: allocation_rules.uniform(inventory, grid, zeros),
    "erk": lambda inventory, grid, zeros, modules: allocation_rules.erk(inventory, grid, zeros),
    "global_magnitude": lambda inventory, grid, zeros, modules: allocation_rules.global_magnitude(
        inventory, grid, modules
    )(zeros),
    "lamp": lambda inventory, grid, zeros, modules: allocation_rules.lamp(inventory, grid, modules)(zeros),
    "owl": lambda inventory, grid, zeros, modules: allocation_rules.owl(
        inventory, grid, zeros, {a: (i % 5) / 10 for i, (a, _) in enumerate(inventory.sizes)}
    ),
}


def network(*sizes: tuple[int, int], scale: tuple[float, ...] = ()) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    layers = [nn.Linear(i, o, bias=False) for i, o in sizes]
    for layer, factor in zip(layers, scale, strict=False):
        nn.init.normal_(layer.weight, std=factor)
    return {"unet": nn.Sequential(*layers)}


def setting(modules, cap: float = 1.0):
    inventory = take_inventory(modules, select=list(modules))
    return inventory, LevelGrid(inventory.sizes, cap)


@pytest.mark.parametrize("name", ALLOCATION_RULES)
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1), cap=st.floats(0.3, 1.0))
def test_requested_is_counted_within_one_base_step(components, name: str, share: float, cap: float):
    inventory = take_inventory(components, select=["unet", "text_encoder"])
    grid = LevelGrid(inventory.sizes, cap)
    zeros = round(share * grid.max_zeros)
    allocation = ALLOCATION_RULES[name](inventory, grid, zeros, components)
    masker = Masker(components, inventory, grid)
    masker.apply(allocation)
    assert 0 <= zeros - masker.count_zeros() < grid.base
    for address, n in inventory.sizes:
        assert grid.removed(address, allocation[grid.leader(address)]) <= cap * n + 1e-6
    masker.restore()


def test_uniform_is_one_ratio():
    inventory, grid = setting(network((100, 100), (150, 100), (100, 90)))
    allocation = allocation_rules.uniform(inventory, grid, round(0.37 * inventory.n_selected))
    for address, n in inventory.sizes:
        assert abs(grid.zeros_at(address, allocation[address]) - 0.37 * n) <= grid.step(address)


def test_ratios_in_proportion(components):
    inventory = take_inventory(components, select=["unet", "text_encoder"])
    grid = LevelGrid(inventory.sizes, 0.9)
    share = {"text_encoder": 0.475, "unet": 0.35}
    n = {c: sum(layer.n for layer in inventory.layers if layer.component == c) for c in share}
    zeros = round(sum(0.8 * share[c] * n[c] for c in share))
    allocation = allocation_rules.in_proportion(inventory.layers, inventory, grid, zeros, share)
    assert 0 <= zeros - grid.zeros(allocation) < grid.base
    for component in share:
        removed = sum(grid.zeros_at(a, allocation[a]) for a in allocation if a.startswith(component))
        assert removed == pytest.approx(0.8 * share[component] * n[component], abs=64)
    one = allocation_rules.in_proportion(inventory.layers, inventory, grid, 1024, {"unet": 0})
    assert set(one) == {"text_encoder:layers.0", "text_encoder:layers.1"}
    with pytest.raises(
        RaysenseError, match=r"proportions: 'vae' has no such selected layers.*unet, text_enc"
    ):
        allocation_rules.in_proportion(inventory.layers, inventory, grid, 100, {"vae": 0.5})


def test_the_original_recipe_prunes_linear_layers_alone(components):
    inventory = take_inventory(components, select=["unet", "text_encoder"])
    grid = LevelGrid(inventory.sizes, 0.9)
    linear = [layer for layer in inventory.layers if layer.kind == "linear"]
    half = sum(layer.n for layer in linear) // 2
    allocation = allocation_rules.in_proportion(linear, inventory, grid, half, {})
    assert set(allocation) == {layer.address for layer in linear}
    assert half - grid.zeros(allocation) < grid.base
    most = allocation_rules.in_proportion(linear, inventory, grid, 10**6, {})
    assert grid.zeros(most) == sum(grid.zeros_at(layer.address, grid.top(layer.address)) for layer in linear)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_global_magnitude_as_by_sorting_everything(dtype: torch.dtype):
    modules = network((64, 64), (64, 96), (80, 70), scale=(0.1, 0.03, 0.5))
    modules["unet"].to(dtype)
    inventory, grid = setting(modules)
    zeros = round(0.5 * inventory.n_selected)
    allocation = allocation_rules.global_magnitude(inventory, grid, modules)(zeros)
    weights = {layer.address: weight_of(modules, layer).detach().float().abs() for layer in inventory.layers}
    threshold = torch.cat([w.flatten() for w in weights.values()]).sort().values[zeros]
    for address, weight in weights.items():
        # Within a bfloat16 bucket of the threshold (1/128), and a level.
        low, high = ((weight < threshold * f).sum().item() for f in (1 - 1 / 64, 1 + 1 / 64))
        step = 2 * grid.step(address)
        assert low - step <= grid.zeros_at(address, allocation[address]) <= high + step


def test_lamp_scores_as_in_numpy():
    weight = torch.randn(7, 9).half()
    squares = weight.double().numpy() ** 2
    expected = [[w / squares[squares >= w].sum() for w in row] for row in squares]
    np.testing.assert_allclose(allocation_rules.lamp_scores(weight), expected, rtol=2e-3)
    assert torch.isfinite(allocation_rules.lamp_scores(torch.zeros(3, 3))).all()
    assert allocation_rules.lamp_scores(weight).argmax() == weight.abs().argmax()


def test_lamp_does_not_depend_on_the_scale_of_a_layer():
    plain, scaled = (network((64, 64), (64, 64)) for _ in range(2))
    with torch.no_grad():
        scaled["unet"][0].weight *= 64
    inventory, grid = setting(plain)
    zeros = inventory.n_selected // 2
    assert allocation_rules.lamp(inventory, grid, plain)(zeros) == allocation_rules.lamp(
        inventory, grid, scaled
    )(zeros)
    assert allocation_rules.global_magnitude(inventory, grid, scaled)(zeros)["unet:0"] < 20


@pytest.mark.parametrize("prior", [allocation_rules.lamp, allocation_rules.global_magnitude])
def test_weights_pruned_later_do_not_change_a_family(prior):
    modules = network((64, 64), (64, 96), scale=(0.1, 0.03))
    inventory, grid = setting(modules)
    family, half = prior(inventory, grid, modules), inventory.n_selected // 2
    dense = family(half)
    Masker(modules, inventory, grid).apply(grid.uniform(0.8))
    assert family(half) == dense


def test_erk_densities_follow_its_formula():
    inventory, grid = setting(network((64, 64), (128, 96), (96, 128)))
    zeros = round(0.8 * inventory.n_selected)
    allocation = allocation_rules.erk(inventory, grid, zeros)
    density = {a: 1 - grid.zeros_at(a, allocation[a]) / n for a, n in inventory.sizes}
    assert density["unet:1"] == pytest.approx(density["unet:2"], abs=0.02)
    raw = {layer.address: sum(layer.shape) / layer.n for layer in inventory.layers}
    expected = min(raw["unet:0"] / raw["unet:1"] * density["unet:1"], 1.0)
    assert density["unet:0"] == pytest.approx(expected, abs=0.02)


def test_owl_is_centred_by_weight_count_and_stays_within_its_spread():
    inventory, grid = setting(network((64, 64), (256, 256), (128, 128)))
    outliers = {"unet:0": 0.09, "unet:1": 0.01, "unet:2": 0.05}
    allocation = allocation_rules.owl(
        inventory, grid, round(0.6 * inventory.n_selected), outliers, spread=0.1
    )
    sparsity = {a: grid.zeros_at(a, allocation[a]) / n for a, n in inventory.sizes}
    assert sparsity["unet:0"] < sparsity["unet:2"] < sparsity["unet:1"]
    assert sparsity["unet:1"] - sparsity["unet:0"] == pytest.approx(0.2, abs=0.04)
    total = sum(sparsity[a] * n for a, n in inventory.sizes)
    assert total == pytest.approx(0.6 * inventory.n_selected, abs=grid.base)
    with pytest.raises(RaysenseError, match="owl: no outlier ratio for unet:1 and 1 more"):
        allocation_rules.owl(inventory, grid, 100, {"unet:0": 0.1})


def test_outliers_are_counted():
    modules = network((20, 10))
    with torch.no_grad():
        modules["unet"][0].weight.fill_(0.01)
        modules["unet"][0].weight[:, 3] = 10.0
    inventory, _ = setting(modules)
    run = lambda: modules["unet"](torch.ones(4, 20))  # noqa: E731
    statistics = calibrate(modules, inventory, frozenset({"inputs"}), run)
    assert allocation_rules.outlier_ratios(inventory, modules, statistics) == {"unet:0": pytest.approx(0.05)}


def test_owl_by_block_is_the_published_formula():
    """Four blocks of two layers, against the authors' own few lines (luuyin/OWL) in numpy."""
    rng = np.random.default_rng(0)
    blocks = [nn.ModuleDict({"fc1": nn.Linear(50, 40), "fc2": nn.Linear(40, 50)}) for _ in range(4)]
    modules = {"text_encoder": nn.ModuleDict({"layers": nn.ModuleList(blocks)})}
    inventory, grid = setting(modules)
    statistics, metrics = {}, []
    for number, block in enumerate(blocks):
        metric = []
        for place, linear in block.items():
            address = f"text_encoder:layers.{number}.{place}"
            moments = rng.exponential(size=linear.in_features) ** (1 + number)
            inputs = torch.from_numpy(moments)[None]
            statistics[address] = LayerStats(address, "linear", inputs)
            metric.append(np.abs(linear.weight.detach().numpy()) * np.sqrt(moments))
        metrics.append(np.concatenate([one.ravel() for one in metric]))
    published = np.array([(metric > 7 * metric.mean()).mean() for metric in metrics])
    ratios = allocation_rules.outlier_ratios(inventory, modules, statistics, "block")
    assert [
        ratios[f"text_encoder:layers.{n}.{p}"] for n in range(4) for p in ("fc1", "fc2")
    ] == pytest.approx(np.repeat(published, 2).tolist())
    assert published.max() > published.min()
    density = (published - published.min()) * (1 / (published.max() - published.min()) * 0.08 * 2)
    density = density - density.mean() + (1 - 0.6)
    allocation = allocation_rules.owl(inventory, grid, round(0.6 * inventory.n_selected), ratios)
    for address, n in inventory.sizes:
        found = grid.zeros_at(address, allocation[address]) / n
        assert found == pytest.approx(
            1 - density[int(address.split(".")[1])], abs=1.5 * grid.step(address) / n
        )


def test_more_than_the_caps_allow_is_refused():
    inventory, grid = setting(network((100, 100)), cap=0.5)
    with pytest.raises(RaysenseError, match=r"zeros: 6,000 cannot be removed; with max_layer_sparsity 0\.5"):
        allocation_rules.uniform(inventory, grid, 6_000)


@pytest.mark.parametrize("rule", ["lamp", "global"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_buckets_without_scores_say_nothing(rule: str, dtype: torch.dtype) -> None:
    modules = {"unet": nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 50), nn.Linear(50, 8)).to(dtype)}
    inventory = take_inventory(modules, select=["unet"])
    grid = LevelGrid(inventory.sizes, 0.9)
    some = allocation_rules.counts_below(rule, inventory, modules)
    all_buckets = np.stack(
        [allocation_rules.BY_THRESHOLD[rule](weight_of(modules, layer).data) for layer in inventory.layers]
    )
    assert some.shape[1] < all_buckets.shape[1] == 1 << 15
    sparse = allocation_rules.one_threshold(inventory, grid, lambda: some)
    dense = allocation_rules.one_threshold(inventory, grid, lambda: all_buckets)
    for zeros in range(0, grid.max_zeros, 97):
        assert sparse(zeros) == dense(zeros)
