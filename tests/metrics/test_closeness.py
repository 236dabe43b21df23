from __future__ import annotations

import urllib.error

import numpy as np
import pytest
import torch
import torch_fidelity.sample_similarity_lpips as fidelity_lpips
from scipy.ndimage import gaussian_filter
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.metrics.builtin.closeness import feature_closeness
from raysense.metrics.builtin.lpips import Lpips
from raysense.metrics.builtin.ssim import ssim

from .conftest import paint


def reference_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """One channel, by SciPy's filter, borders that the window does not fit left out."""

    def blur(a: np.ndarray) -> np.ndarray:
        return gaussian_filter(a, 1.5, truncate=3.5)[5:-5, 5:-5]

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, both = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    top = (2 * mean_x * mean_y + 1e-4) * (2 * both + 9e-4)
    return float((top / ((mean_x**2 + mean_y**2 + 1e-4) * (var_x + var_y + 9e-4))).mean())


def test_ssim_equals_a_reference() -> None:
    a, b = paint(3, seed=0).double(), paint(3, seed=1).double() * 0.5 + paint(3, seed=0).double() * 0.5
    for found, x, y in zip(ssim(a, b), a.numpy(), b.numpy(), strict=True):
        expected = np.mean([reference_ssim(p, q) for p, q in zip(x, y, strict=True)])
        assert float(found) == pytest.approx(expected, rel=1e-6)


def test_ssim_of_equal_images_is_one_and_falls_with_noise() -> None:
    a = paint(4, seed=2)
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ssim(a, a), torch.ones(4, dtype=torch.float64))
    little, much = ssim(a, a + 0.02 * noise), ssim(a, a + 0.2 * noise)
    assert (much < little).all()
    assert (little < 1).all()


def test_feature_closeness_ignores_what_all_images_share() -> None:
    dense = torch.randn(40, 30, generator=torch.Generator().manual_seed(1)) + 100
    assert torch.allclose(feature_closeness(dense, dense), torch.ones(40, dtype=torch.float64))
    others = feature_closeness(dense.roll(1, 0), dense)
    assert abs(float(others.mean())) < 0.15


def test_feature_closeness_from_a_stored_centre() -> None:
    dense, pruned = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 3.0]])
    assert float(feature_closeness(pruned, dense, torch.tensor([1.0, 1.0]))) == pytest.approx(0)
    assert float(feature_closeness(pruned, dense, torch.tensor([2.0, 2.0]))) == pytest.approx(-1)


class Difference(torch.nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a.float() - b.float()).abs().mean(dim=(1, 2, 3), keepdim=True) / 255


def test_lpips_feeds_pairs_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    made = "torch_fidelity.utils.create_sample_similarity"
    monkeypatch.setattr(made, lambda *args, **kwargs: Difference())
    a, b = paint(7, seed=3), paint(7, seed=4)
    expected = (a - b).abs().mean(dim=(1, 2, 3)).double()
    assert torch.allclose(Lpips(batch=3)(a, b), expected, atol=2e-3)


def test_lpips_without_weights_is_a_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(fidelity_lpips, "load_state_dict_from_url", unreachable)
    with pytest.raises(RaysenseError, match=r"lpips.*no network.*raysense prepare"):
        Lpips()


def test_errors_say_what_and_why() -> None:
    with pytest.raises(RaysenseError, match="pair up"):
        feature_closeness(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(RaysenseError, match="at least 11 pixels"):
        ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
