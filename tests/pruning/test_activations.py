from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raysense.errors import RaysenseError
from raysense.pruning.activations import InputMoments, StepWeight, calibrate, input_columns, record_calls
from raysense.pruning.layers import take_inventory

CONVOLUTIONS = [
    nn.Conv1d(4, 6, 3, padding=2, dilation=2),
    nn.Conv2d(4, 6, 3, stride=2, padding=1),
    nn.Conv2d(4, 6, (3, 1), padding="same"),
    nn.Conv2d(4, 6, 3, groups=2, padding=1, padding_mode="circular"),
    nn.Conv2d(4, 4, 3, groups=4),
    nn.Conv3d(4, 6, 2, stride=(1, 2, 1)),
]


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_columns_times_weights_is_the_convolution(conv: nn.Module):
    x = torch.randn(2, 4, *(8,) * len(conv.kernel_size))
    columns = input_columns(x, conv)
    rows = conv.weight.flatten(1).view(conv.groups, -1, columns.shape[-1])
    output = (columns @ rows.mT).movedim(0, 1).flatten(1)
    expected = (conv(x) - conv.bias.view(-1, *(1,) * (x.dim() - 2))).movedim(1, -1).flatten(0, -2)
    np.testing.assert_allclose(output.detach(), expected.detach(), rtol=1e-4, atol=1e-5)


def collect(module: nn.Module, inputs, **options) -> torch.Tensor:
    inventory = take_inventory({"m": module}, select=["m"])
    with InputMoments({"m": module}, inventory.layers, **options) as moments:
        for x in inputs:
            module(x)
    return moments.collected()["m:"]


@pytest.mark.parametrize("full", [False, True])
def test_moments_do_not_depend_on_the_batching(full: bool):
    x = torch.randn(12, 8, dtype=torch.float64).float()
    linear = nn.Linear(8, 3)
    at_once = collect(linear, [x], full=full)
    in_parts = collect(linear, [x[:1], x[1:5], x[5:]], full=full)
    np.testing.assert_allclose(at_once, in_parts, rtol=1e-5, atol=1e-6)
    hessian = (x.numpy().T @ x.numpy()) / 12
    expected = hessian[None] if full else np.diag(hessian)[None]
    np.testing.assert_allclose(at_once.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_steps_are_weighted():
    xs = [torch.randn(6, 8) for _ in range(6)]
    weigh = StepWeight(steps=3)
    weights = [1.2, 1.2 - 0.4 * np.log(2) / np.log(3), 0.8] * 2
    assert [weigh(i) for i in range(6)] == pytest.approx(weights)
    hessian = collect(nn.Linear(8, 3), xs, full=True, step_weight={"m": weigh})
    expected = sum(w * x.numpy().T @ x.numpy() for w, x in zip(weights, xs, strict=True)) / (6 * sum(weights))
    np.testing.assert_allclose(hessian[0].numpy(), expected, rtol=1e-4, atol=1e-6)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.linear(x)


def test_masked_padding_is_left_out_and_unmasked_padding_counts():
    reader, x = Reader(), torch.randn(2, 5, 4)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    inventory = take_inventory({"m": reader}, select=["m"])
    for padding, seen in ((mask, x[mask.bool()]), (None, x.reshape(-1, 4))):
        with InputMoments({"m": reader}, inventory.layers) as moments:
            reader(x, attention_mask=padding)
        np.testing.assert_allclose(
            moments.collected()["m:linear"][0].float(), seen.square().mean(0), rtol=1e-5
        )


def test_hooks_leave_no_trace():
    linear = nn.Linear(4, 4)
    collect(linear, [torch.randn(2, 4)])
    assert not linear._forward_pre_hooks


def test_recorded_calls_are_spread_and_bounded():
    seen = []
    module = nn.Identity()
    run = lambda: [module(torch.full((1,), float(i))) for i in range(100)]  # noqa: E731
    calls = record_calls({"m": module}, run, keep=4)["m"]
    seen = [float(args[0]) for args, _ in calls]
    assert len(seen) == 4
    assert seen[0] == 0
    assert np.diff(seen).min() >= 16
    assert len(record_calls({"m": module}, lambda: module(torch.zeros(1)), keep=4)["m"]) == 1
    assert not module._forward_pre_hooks


def test_bad_runs_are_named():
    linear = nn.Linear(4, 4)
    inventory = take_inventory({"m": linear}, select=["m"])
    with pytest.raises(RaysenseError, match="m: did not run during calibration"):
        calibrate({"m": linear}, inventory, frozenset({"inputs"}), lambda: None)
    with pytest.raises(RaysenseError, match="m was not called during calibration"):
        calibrate({"m": linear}, inventory, frozenset({"gradients"}), lambda: None)
    bad = torch.full((2, 4), float("nan"))
    with pytest.raises(RaysenseError, match="inputs of m: hold NaN"):
        calibrate({"m": linear}, inventory, frozenset({"inputs"}), lambda: linear(bad))
    with pytest.raises(RaysenseError, match="gradients of m: hold NaN"):
        calibrate({"m": linear}, inventory, frozenset({"gradients"}), lambda: linear(bad))


def test_grouped_columns_belong_to_their_outputs():
    conv = nn.Conv1d(4, 4, 1, groups=2, bias=False)
    x = torch.zeros(1, 4, 3)
    x[:, 2:] = 2.0
    moments = collect(conv, [x])
    assert moments.tolist() == [[0, 0], [4, 4]]
    assert F.conv1d(x, conv.weight, groups=2).shape == (1, 4, 3)
