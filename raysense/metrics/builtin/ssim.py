"""SSIM: how alike the pixels of two images are.

Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004). It says whether the
picture changed under the same prompt and noise, not whether it got worse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysense.errors import RaysenseError
from raysense.metrics.pairs import pair
from raysense.metrics.spec import MetricSpec, OfPixels

if TYPE_CHECKING:
    from torch import Tensor

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2


def ssim(images: Tensor, dense: Tensor) -> Tensor:
    """Structural similarity of each image with its dense counterpart.

    Gaussian window of 11 pixels, σ = 1.5, over positions where it fits; the mean over channels.

    Args:
        images: (n, 3, h, w) float in [0, 1], h and w at least 11.
        dense: The same shape.

    Returns:
        (n,) float64, at most 1.

    Raises:
        RaysenseError: If the two do not pair up or the images are smaller than the window.
    """
    pair("images", images, "dense", dense)
    if min(images.shape[-2:]) < WINDOW:
        raise RaysenseError(
            f"SSIM needs images of at least {WINDOW} pixels a side, but got {tuple(images.shape[-2:])}."
        )
    x, y = images.double(), dense.double()
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    brightness = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (var_x + var_y + C2)
    return (brightness * structure).mean(dim=(1, 2, 3))


def blur(x: Tensor) -> Tensor:
    """Weighted mean of (n, c, h, w) under the Gaussian window, where it fits: (n, c, h − 10, w − 10)."""
    import torch
    from torch.nn.functional import conv2d

    offsets = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    n, c, h, w = x.shape
    rows = conv2d(x.reshape(n * c, 1, h, w), weights.view(1, 1, -1, 1))
    return conv2d(rows, weights.view(1, 1, 1, -1)).view(n, c, h - WINDOW + 1, w - WINDOW + 1)


SPEC = MetricSpec(
    "ssim",
    "SSIM to the dense image",
    "how alike the pixels of an image and the dense one from the same noise are; 1 is equal",
    "mean structural similarity",
    higher_is_better=True,
    dense=1.0,
    lowest=-1.0,
    highest=1.0,
    typical={"bundled": 0.017},
    how=OfPixels(lambda device: ssim, "ssim 11x11"),
)
