"""Two metrics: one of each image, one of the whole set; of both lower is better."""

from collections.abc import Sequence

import torch
from torch import Tensor

import raysense as rs

_LAPLACIAN = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])


@rs.metric("noise", higher_is_better=False, label="noise", unit="standard deviation of pixels")
def noise(images: Tensor, prompts: Sequence[str], dense: Tensor) -> Tensor:
    """Standard deviation of an image's noise.

    Source: Immerkær, "Fast Noise Variance Estimation", Computer Vision and Image Understanding 64 (1996).
    """
    grey = images.mean(dim=1, keepdim=True)
    response = torch.nn.functional.conv2d(grey, _LAPLACIAN.to(grey)[None, None]).abs()
    return (torch.pi / 2) ** 0.5 * response.mean(dim=(1, 2, 3)) / 6


@rs.metric("energy", higher_is_better=False, kind="set", label="energy distance", unit="feature units")
def energy(features: Tensor, reference: Tensor) -> float:
    """Energy distance of two sets of features: 2 E|x - y| - E|x - x'| - E|y - y'|.

    Source: Székely & Rizzo, "Energy statistics", Journal of Statistical Planning and Inference 143 (2013).
    """
    x, y = features.double(), reference.double()

    def within(z: Tensor) -> Tensor:
        return torch.pdist(z).mean()

    return float(2 * torch.cdist(x, y).mean() - within(x) - within(y))
