from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raysense.allocation import LevelGrid
from raysense.errors import RaysenseError
from raysense.pruning.activations import InputMoments
from raysense.pruning.layers import take_inventory, weight_of
from raysense.pruning.obs import (
    LEVELS,
    Factor,
    Substituter,
    factorise,
    hessian_bytes,
    hessian_passes,
    prune_with_update,
    solve_levels,
)
from raysense.pruning.patterns import Pattern


def problem(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the Hessian of correlated inputs, (1, columns, columns)."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator)
    x = torch.randn(4 * columns, columns, generator=generator) @ mix
    return torch.randn(rows, columns, generator=generator), (x.T @ x / len(x))[None]


def reconstruct(weight: np.ndarray, hessian: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """The same update from explicit inverses of ever smaller Hessians: no Cholesky factor, no blocks."""
    weight = weight.copy()
    for i in range(weight.shape[1]):
        inverse = np.linalg.inv(hessian[i:, i:])
        for row in np.flatnonzero(gone[:, i]):
            weight[row, i:] -= weight[row, i] / inverse[0, 0] * inverse[0]
    return weight * ~gone


@pytest.mark.parametrize("block", [1, 4, 128])
def test_as_from_explicit_inverses_in_numpy(block: int):
    weight, hessian = problem(6, 12)
    factor = factorise(hessian, 0.01)
    damped = hessian[0].double().numpy() + 0.01 * hessian[0].diagonal().mean().item() * np.eye(12)
    pruned = prune_with_update(weight, factor, 36, "linear", block=block).numpy()
    gone = pruned == 0
    assert gone.sum() == 36
    np.testing.assert_allclose(
        pruned, reconstruct(weight.double().numpy(), damped, gone), rtol=1e-4, atol=1e-5
    )


def test_one_weight_is_the_optimal_brain_surgeon():
    """Removing one weight of the first column is OBS itself: the best of all ways to make up for it."""
    weight, hessian = problem(1, 10)
    weight[0, 0] = 1e-6
    pruned = prune_with_update(weight, factorise(hessian, 1e-8), 1, "linear", block=10).double().numpy()[0]
    h, w = hessian[0].double().numpy(), weight[0].double().numpy()
    rest = w[1:] + np.linalg.solve(h[1:, 1:], h[1:, 0]) * w[0]
    np.testing.assert_allclose(pruned, [0, *rest], rtol=1e-4, atol=1e-6)


def test_the_update_makes_up_for_what_leaves():
    weight, hessian = problem(32, 64)

    def error(pruned: torch.Tensor) -> float:
        gap = (pruned - weight).double()
        return float(torch.einsum("ri,ij,rj->", gap, hessian[0].double(), gap))

    by_magnitude = weight.masked_fill(weight.abs() < weight.abs().median(), 0.0)
    updated = prune_with_update(weight, factorise(hessian), 1024, "linear")
    assert (updated == 0).sum() == 1024
    assert error(updated) < 0.7 * error(by_magnitude)


@settings(max_examples=60)
@given(st.data(), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), st.booleans())
def test_exactly_k_weights_leave(data, dtype: torch.dtype, sparse: bool):
    rows, columns = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 20))
    weight, hessian = problem(rows, columns, data.draw(st.integers(0, 50)))
    if sparse:
        weight = weight * (weight > 0)
    weight = weight.to(dtype)
    k = data.draw(st.integers(0, weight.numel()))
    block = data.draw(st.integers(1, 24))
    pruned = prune_with_update(weight, factorise(hessian), k, "linear", block=block)
    zeros_before = int((weight == 0).sum())
    assert int((pruned == 0).sum()) == max(k, zeros_before)
    assert (pruned[weight == 0] == 0).all()
    assert pruned.dtype == dtype
    if k == 0 and not sparse:
        assert torch.equal(pruned, weight)


def test_nothing_leaves_and_everything_leaves():
    weight, hessian = problem(5, 9)
    factor = factorise(hessian)
    np.testing.assert_allclose(prune_with_update(weight, factor, 0, "linear"), weight, rtol=1e-6)
    assert not prune_with_update(weight, factor, 45, "linear").any()


@pytest.mark.parametrize("text", ["2:4", "4:8"])
def test_a_pattern_is_exact(text: str):
    pattern = Pattern.parse(text)
    weight, hessian = problem(6, 34)
    pruned = prune_with_update(weight, factorise(hessian), 0, "linear", pattern=pattern, block=10)
    whole = 34 // pattern.of * pattern.of
    assert ((pruned[:, :whole].reshape(6, -1, pattern.of) != 0).sum(-1) == pattern.keep).all()
    assert (pruned[:, whole:] != 0).all()
    conv = torch.randn(6, 4, 3, 3)
    with pytest.raises(RaysenseError, match="needs a kernel of size 1"):
        prune_with_update(conv, factorise(problem(1, 36)[1]), 0, "conv2d", pattern=pattern)


def test_every_kind_of_layer_level_by_level(components):
    inventory = take_inventory(components, select=["unet", "text_encoder"])
    grid = LevelGrid(inventory.sizes, 0.9, LEVELS)
    with torch.no_grad(), InputMoments(components, inventory.layers, full=True) as moments:
        components["text_encoder"](torch.arange(50).view(2, 25))
        components["unet"](torch.randn(4, 4, 16, 16))
    slices = {}
    for layer in inventory.layers:
        factor = factorise(moments.collected()[layer.address])
        for level, weight in solve_levels(layer, weight_of(components, layer).data, factor, grid):
            assert (weight == 0).sum() == grid.removed(layer.address, level)
            slices[layer.address, level] = weight
    dense = [p.detach().clone() for p in components["unet"].parameters()]
    pruner = Substituter(components, inventory, grid, lambda address, level: slices[address, level])
    for sparsity in (0.5, 0.8, 0.2):
        pruner.apply(grid.uniform(sparsity))
        assert pruner.count_zeros() == grid.zeros(pruner.current)
    pruner.restore()
    assert all(map(torch.equal, components["unet"].parameters(), dense))
    wrong = Substituter(components, inventory, grid, lambda address, level: torch.zeros(1))
    with pytest.raises(RaysenseError, match=r"slices: .* at level \d+ is torch\.float32 \(1,\)"):
        wrong.apply(grid.uniform(0.5))


def test_trouble_raises_the_damping_and_says_so():
    weight, hessian = problem(4, 8)
    plain = factorise(hessian, 0.01)
    assert (plain.damping, plain.note) == (0.01, "")
    indefinite = hessian - 2 * torch.linalg.eigvalsh(hessian[0])[-1] / 8 * torch.eye(8)
    raised = factorise(indefinite, 0.01)
    assert raised.damping > 0.01
    assert raised.note == f"damping 0.01 -> {raised.damping:g}"
    with pytest.raises(RaysenseError, match="cannot be factored even with damping 100"):
        factorise(-1e6 * torch.ones(1, 8, 8) + torch.eye(8), 0.01)
    idle = factorise(torch.zeros(1, 8, 8))
    assert (prune_with_update(weight, idle, 16, "linear") == 0).sum() == 16, "inputs that never fire"


def test_passes_stay_under_the_memory_limit(components):
    inventory = take_inventory(components, select=["unet", "text_encoder"])
    sizes = {
        layer.address: hessian_bytes(layer, components[layer.component].get_submodule(layer.path))
        for layer in inventory.layers
    }
    assert sizes["unet:blocks.1.conv"] == 4 * 2 * 72**2
    assert sizes["unet:mid_block.gpt"] == 4 * 16**2
    limit = max(sizes.values())
    passes = hessian_passes(components, inventory.layers, limit)
    assert [layer for part in passes for layer in part] == list(inventory.layers)
    assert all(sum(sizes[layer.address] for layer in part) <= limit for part in passes)
    assert len(passes) > 1
    with pytest.raises(RaysenseError, match=r"hessian memory: unet:.* but the limit is 0\.00 GB"):
        hessian_passes(components, inventory.layers, 100)


def test_bad_input_is_named():
    weight, hessian = problem(4, 8)
    factor = factorise(hessian)
    with pytest.raises(RaysenseError, match=r"1 of 8 columns do not fit a weight of shape \(4, 7\)"):
        prune_with_update(weight[:, :7], factor, 1, "linear")
    weight[0, 0] = float("nan")
    with pytest.raises(RaysenseError, match="weight: holds NaN"):
        prune_with_update(weight, factor, 1, "linear")
    assert isinstance(factor, Factor)
    assert nn.Linear(8, 4).weight.shape == weight.shape


@pytest.mark.parametrize("deficient", [False, True])
def test_the_factor_is_that_of_the_textbook_to_the_bit(deficient: bool) -> None:
    inputs = torch.randn(2, 20 if deficient else 200, 60, generator=torch.Generator().manual_seed(0))
    hessian = inputs.mT @ inputs
    scale = hessian.double().diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    damped = hessian.double() + 0.01 * scale * torch.eye(60, dtype=torch.float64)
    expected = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    before = hessian.clone()
    assert torch.equal(factorise(hessian, 0.01).upper, expected)
    assert torch.equal(hessian, before)
