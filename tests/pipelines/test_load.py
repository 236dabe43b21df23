"""Compiling and laying out a denoiser leave masks, hooks and values alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from raysense.pipelines.load import compile_denoiser, load_pipeline
from raysense.pipelines.sample import metered


def test_a_compiled_denoiser_survives_mask_switches_and_is_still_metered() -> None:
    unet = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8)).requires_grad_(False)
    pipeline: Any = SimpleNamespace(components={"unet": unet})
    x, dense = torch.randn(4, 8), unet[0].weight.clone()
    torch._dynamo.reset()
    counter = CompileCounter()
    compile_denoiser(pipeline, backend=counter)
    outputs = []
    with torch.inference_mode(), metered(pipeline) as meter:
        for level in (0.0, 0.5, 0.2, 0.0):
            unet[0].weight.copy_(dense * (dense.abs() > level))
            outputs.append(unet(x))
            eager = unet[2](unet[1](unet[0](x)))
            assert torch.allclose(outputs[-1], eager, atol=1e-6)
    assert counter.frame_count == 1  # compiled once, whatever the weights
    assert meter.forwards == 16
    assert torch.equal(outputs[0], outputs[3])
    assert not torch.allclose(outputs[0], outputs[1])


def test_channels_last_changes_the_layout_and_nothing_else() -> None:
    plain, last = load_pipeline("bundled"), load_pipeline("bundled", channels_last=True)
    weight = last.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    for (name, a), (_, b) in zip(plain.unet.named_parameters(), last.unet.named_parameters(), strict=True):
        assert torch.equal(a, b), name
