"""What is known of a pipeline without its weights."""

from __future__ import annotations

import torch
from torch import nn

from raysense.pipelines.without_weights import _Results, foresee
from raysense.study import Sampling


def test_results_are_counted_while_they_are_held() -> None:
    module = nn.Sequential(nn.Linear(4, 100, bias=False), nn.SiLU(), nn.Linear(100, 2, bias=False))
    given = torch.zeros(3, 4)
    with torch.no_grad(), _Results(module) as results:
        module(given)
    # The first layer's result and the second one's; the weights and what was given are not results.
    assert results.peak == 2 * 4 * 3 * 100


def test_an_image_takes_as_much_without_weights_in_any_batch() -> None:
    one, two = (foresee("bundled", Sampling(steps=2, batch=batch)).activations for batch in (1, 2))
    assert one.keys() == two.keys() == {"text_encoder", "unet", "vae"}
    assert all(abs(one[name] - two[name]) <= 0.1 * one[name] for name in ("unet", "vae"))
    larger = foresee("bundled", Sampling(steps=2, batch=1, height=128, width=128)).activations
    assert larger["vae"] > 3 * one["vae"]
