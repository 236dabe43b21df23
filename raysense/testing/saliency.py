"""Checks of what prunes: methods that score weights, and methods that update those that stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from raysense.allocation import LevelGrid
from raysense.pruning.activations import InputMoments, calibrate
from raysense.pruning.layers import Inventory, take_inventory, weight_of
from raysense.pruning.masks import Masker
from raysense.pruning.obs import Updater, updated
from raysense.pruning.saliency import Method, own_method, score_layer
from raysense.testing.contract import asserted, declared_as, equal, other_random_numbers

COMPONENT = "net"


class _Small(nn.Module):
    """One layer of each kind, the convolution with groups."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.linear = nn.Linear(8, 12)
        self.turned = Conv1D(6, 12)
        self.line = nn.Conv1d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).flatten(2).mT
        return self.line(self.turned(torch.relu(self.linear(y))).mT)  # type: ignore[no-any-return]


def check_saliency(method: Callable[..., Any]) -> None:
    """Check a pruning method on layers of every kind that it can handle, with statistics of a small network at work.

    A method that scores: shape and finiteness, in float32 and bfloat16; determinism, whatever random numbers the
    process draws; that the weight stays as it is; that masks remove exactly what each level says. A method that
    updates: shape, type, finiteness and the exact number of zeros; determinism; and that the layer's output is no
    farther from the dense one than without the update.

    Args:
        method: Decorated with `raysense.saliency`.

    Raises:
        AssertionError: It breaks its contract; says how.
    """
    said = declared_as(method, "saliency")
    torch.manual_seed(0)
    modules: dict[str, nn.Module] = {COMPONENT: _Small()}
    kinds = said.facts["kinds"] or ("linear", "conv2d", "conv1d", "transformers_conv1d")
    batches = [torch.randn(16, 4, 6, 6) for _ in range(2)]

    def run() -> None:
        for batch in batches:
            modules[COMPONENT](batch)

    with asserted():
        inventory = take_inventory(modules, select=[COMPONENT], kinds=kinds)
        if said.facts["updates_weights"]:
            _check_updates(Updater(said.name, own=method), modules, inventory, run)
        else:
            _check_scores(own_method(said.name, method), modules, inventory, run)


def _check_scores(
    method: Method, modules: dict[str, nn.Module], inventory: Inventory, run: Callable[[], None]
) -> None:
    with torch.no_grad():
        statistics = calibrate(modules, inventory, method.needs, run)
    for layer in inventory.layers:
        weight = weight_of(modules, layer).data
        before = weight.clone()
        other_random_numbers(1)
        first = score_layer(method, weight, statistics[layer.address])
        other_random_numbers(2)
        second = score_layer(method, weight, statistics[layer.address])
        assert equal(weight, before), f"{method.name}: changed the weight of {layer.kind} {layer.path}"
        assert equal(first, second), (
            f"{method.name}: gave {layer.kind} {layer.path} other scores the second time"
        )
        score_layer(method, weight.bfloat16(), statistics[layer.address])
    grid = LevelGrid(inventory.sizes, 0.95)
    masker = Masker(modules, inventory, grid, method, statistics)
    for share in (0.3, 0.6, 0.95):
        allocation = grid.uniform(share)
        masker.apply(allocation)
        for layer in inventory.layers:
            counted = int((weight_of(modules, layer) == 0).sum())
            wanted = grid.removed(layer.address, allocation[grid.leader(layer.address)])
            assert counted == wanted, f"{method.name}: {counted} zeros in {layer.path}, wanted {wanted}"
    masker.restore()


def _check_updates(
    updater: Updater, modules: dict[str, nn.Module], inventory: Inventory, run: Callable[[], None]
) -> None:
    with torch.no_grad(), InputMoments(modules, inventory.layers, full=True) as moments:
        run()
    hessians = moments.collected()
    for layer in inventory.layers:
        weight, hessian = weight_of(modules, layer).data, hessians[layer.address]
        before = weight.clone()
        for zeros in (weight.numel() // 4, weight.numel() // 2, weight.numel() - 1):
            other_random_numbers(1)
            first = updated(updater, weight, hessian, zeros, layer)
            other_random_numbers(2)
            second = updated(updater, weight, hessian, zeros, layer)
            where = f"{updater.name}: {layer.kind} {layer.path} with {zeros} zeros"
            assert equal(weight, before), f"{where}: the dense weight was changed"
            assert equal(first, second), f"{where}: gave another weight the second time"
            error = _error(first, weight, hessian, layer.kind)
            without = _error(weight.masked_fill(first == 0, 0.0), weight, hessian, layer.kind)
            assert error <= without * 1.001, (
                f"{where}: the update makes the layer's output worse: squared error {error:.4g}, without "
                f"it {without:.4g}"
            )


def _error(new: Tensor, dense: Tensor, hessian: Tensor, kind: str) -> float:
    """Mean squared error of a layer's outputs: tr(D H Dᵀ), D the change of the weight."""
    change = (new - dense).double()
    rows = change.t() if kind == "transformers_conv1d" else change.flatten(1)
    groups, columns = hessian.shape[0], hessian.shape[-1]
    parts = rows.reshape(groups, -1, columns)
    return float(((parts @ hessian.double()) * parts).sum())
