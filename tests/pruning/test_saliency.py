from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from raysense.allocation import LevelGrid
from raysense.errors import RaysenseError
from raysense.pruning.activations import calibrate
from raysense.pruning.layers import take_inventory, weight_of
from raysense.pruning.masks import Masker
from raysense.pruning.saliency import METHODS, LayerStats, Method, find_method, score_layer


def inverse_magnitude(weight: torch.Tensor, stats: LayerStats) -> torch.Tensor:
    """A custom method: the largest weights leave first."""
    return -weight.abs()


CUSTOM = Method("constant", lambda weight, stats: torch.zeros(weight.shape))


def ready(components):
    """Inventory and statistics of everything a method may need, from a run of both components."""
    inventory = take_inventory(components, select=["unet", "text_encoder"])
    torch.manual_seed(5)

    def run() -> None:
        components["text_encoder"](torch.arange(24).view(2, 12))
        components["unet"](torch.randn(2, 4, 8, 8))

    with torch.no_grad():
        return inventory, calibrate(components, inventory, frozenset({"inputs", "gradients"}), run, seed=7)


class TestContract:
    """What every method, built in or custom, must do: instantiate with its name."""

    methods = pytest.mark.parametrize(
        "name", [*METHODS, f"{__name__}.inverse_magnitude", f"{__name__}.CUSTOM"]
    )

    @methods
    def test_scores_every_kind_of_layer(self, components, name: str):
        inventory, statistics = ready(components)
        for layer in inventory.layers:
            weight = weight_of(components, layer).data
            before = weight.clone()
            scores = score_layer(find_method(name), weight, statistics[layer.address])
            assert scores.shape == weight.shape
            assert scores.dtype == torch.float32
            assert torch.equal(weight, before), "scoring must not change the weight"
            again = score_layer(find_method(name), weight, statistics[layer.address])
            assert torch.equal(scores, again), "the same layer must get the same scores"

    @methods
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_weights(self, components, name: str, dtype: torch.dtype):
        inventory, statistics = ready(components)
        layer = inventory.layers[0]
        weight = weight_of(components, layer).data.to(dtype)
        assert torch.isfinite(score_layer(find_method(name), weight, statistics[layer.address])).all()

    @methods
    def test_zeros_leave_first_and_the_count_is_exact(self, components, name: str):
        inventory, statistics = ready(components)
        with torch.no_grad():
            components["unet"].mid_block["proj"].weight[:3] = 0
        grid = LevelGrid(inventory.sizes, 0.95)
        masker = Masker(components, inventory, grid, find_method(name), statistics)
        for sparsity in (0.3, 0.9):
            masker.apply(grid.uniform(sparsity))
            assert masker.count_zeros() == grid.zeros(masker.current)

    @methods
    def test_weights_that_are_not_finite_are_named(self, components, name: str):
        inventory, statistics = ready(components)
        layer = inventory.layers[1]
        weight = weight_of(components, layer).data
        weight.view(-1)[4] = float("inf")
        with pytest.raises(RaysenseError, match=rf"{layer.address}: its weights hold NaN or infinity"):
            score_layer(find_method(name), weight, statistics[layer.address])


def columns_of(x: np.ndarray, weight: np.ndarray, padding: int) -> np.ndarray:
    """The inputs of every output position by plain loops: (positions, in·3·3)."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    size = weight.shape[-1]
    return np.array(
        [
            image[:, i : i + size, j : j + size].ravel()
            for image in x
            for i in range(x.shape[2] - size + 1)
            for j in range(x.shape[3] - size + 1)
        ]
    )


def test_wanda_linear_as_in_numpy():
    torch.manual_seed(0)
    linear = nn.Linear(10, 6)
    x = torch.randn(3, 5, 10)
    inventory = take_inventory({"unet": linear}, select=["unet"])
    stats = calibrate({"unet": linear}, inventory, frozenset({"inputs"}), lambda: linear(x))["unet:"]
    norms = np.sqrt((x.numpy().reshape(-1, 10) ** 2).mean(0))
    expected = np.abs(linear.weight.detach().numpy()) * norms
    np.testing.assert_allclose(find_method("wanda_tensor").score(linear.weight, stats), expected, rtol=1e-5)
    ranks = np.argsort(np.argsort(expected, axis=1), axis=1)
    np.testing.assert_array_equal(find_method("wanda").score(linear.weight, stats), ranks)


def test_wanda_convolution_as_in_numpy():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, padding=1)
    x = torch.randn(2, 3, 6, 7)
    inventory = take_inventory({"unet": conv}, select=["unet"])
    stats = calibrate({"unet": conv}, inventory, frozenset({"inputs"}), lambda: conv(x))["unet:"]
    weight = conv.weight.detach().numpy()
    norms = np.sqrt((columns_of(x.numpy(), weight, 1) ** 2).mean(0))
    expected = (np.abs(weight.reshape(5, -1)) * norms).reshape(weight.shape)
    np.testing.assert_allclose(find_method("wanda_tensor").score(conv.weight, stats), expected, rtol=1e-5)


def test_wanda_prunes_each_row_alike():
    torch.manual_seed(0)
    linear = nn.Linear(40, 12)
    inventory = take_inventory({"unet": linear}, select=["unet"])
    statistics = calibrate(
        {"unet": linear}, inventory, frozenset({"inputs"}), lambda: linear(torch.randn(9, 40))
    )
    grid = LevelGrid(inventory.sizes, 1.0)
    Masker({"unet": linear}, inventory, grid, "wanda", statistics).apply(grid.uniform(0.5))
    assert ((linear.weight == 0).sum(1) == 20).all()


def test_taylor_is_the_gauss_newton_diagonal():
    """For f(x) = Wx the diagonal entry of w_ij is Σ x_j², whatever the signs: exact for one position."""
    torch.manual_seed(0)
    linear = nn.Linear(10, 6)
    x = torch.randn(1, 10)
    inventory = take_inventory({"unet": linear}, select=["unet"])
    stats = calibrate({"unet": linear}, inventory, frozenset({"gradients"}), lambda: linear(x))["unet:"]
    expected = linear.weight.detach().numpy() ** 2 * x.numpy() ** 2
    np.testing.assert_allclose(find_method("taylor").score(linear.weight, stats), expected, rtol=1e-5)
    assert all(p.grad is None for p in linear.parameters())


def test_random_depends_on_seed_and_layer_alone():
    weight = torch.ones(30, 30)
    score = find_method("random").score
    first = score(weight, LayerStats("unet:a", "linear", seed=1))
    assert torch.equal(first, score(weight.half(), LayerStats("unet:a", "linear", seed=1)))
    assert not torch.equal(first, score(weight, LayerStats("unet:b", "linear", seed=1)))
    assert not torch.equal(first, score(weight, LayerStats("unet:a", "linear", seed=2)))


def test_bad_input_names_what_there_is():
    stats = LayerStats("unet:a", "linear")
    with pytest.raises(
        RaysenseError, match="saliency: 'sensitivity' is unknown; choose from magnitude, random"
    ):
        find_method("sensitivity")
    with pytest.raises(RaysenseError, match=r"saliency: 'numpy\.nothing' cannot be imported"):
        find_method("numpy.nothing")
    with pytest.raises(RaysenseError, match=r"saliency: 'math\.pi' is float"):
        find_method("math.pi")
    for name in ("wanda", "taylor"):
        with pytest.raises(RaysenseError, match="of unet:a were not collected"):
            score_layer(find_method(name), torch.ones(2, 2), stats)
    picky = Method("picky", lambda weight, stats: weight, kinds=frozenset({"conv2d"}))
    with pytest.raises(RaysenseError, match="picky cannot score unet:a, which is linear; it handles conv2d"):
        score_layer(picky, torch.ones(2, 2), stats)
    wrong = Method("wrong", lambda weight, stats: weight[0])
    with pytest.raises(
        RaysenseError, match=r"wrong must give a finite score for each of \(2, 2\) weights of unet:a"
    ):
        score_layer(wrong, torch.ones(2, 2), stats)
