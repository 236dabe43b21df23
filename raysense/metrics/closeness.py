"""How close a pruned pipeline's image stays to the dense pipeline's under the same prompt and noise.

Three views, one number an image each: the cosine of two features; SSIM (Wang et al., "Image Quality
Assessment: From Error Visibility to Structural Similarity", 2004); LPIPS (Zhang et al., "The Unreasonable
Effectiveness of Deep Features as a Perceptual Metric", 2018). They say whether the picture changed, not
whether it got worse.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, cosine_similarity
from torch_fidelity.utils import create_sample_similarity

from raysense.errors import RaysenseError
from raysense.hub import limited
from raysense.metrics.features import BATCH, OFFLINE, as_bytes

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2


def feature_closeness(features: Tensor, dense: Tensor, centre: Tensor | None = None) -> Tensor:
    """Cosine of each image's features with those of its dense counterpart.

    Args:
        features: (n, d) of the pruned pipeline's images.
        dense: (n, d) of the dense pipeline's, row by row the same prompt and noise.
        centre: (d,) subtracted from both, by default the mean of `dense`: raw features share a large common
            part that makes any two images look alike. Store it, and a later sample is measured from the same
            point.

    Returns:
        (n,) float64 in [−1, 1]; 1 is the same image, 0 one as unlike as a random other.

    Raises:
        RaysenseError: If the two do not pair up.
    """
    pair("features", features, "dense", dense)
    x, y = features.double(), dense.double()
    origin = y.mean(dim=0) if centre is None else centre.double()
    return cosine_similarity(x - origin, y - origin, dim=1)


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
    offsets = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    n, c, h, w = x.shape
    rows = conv2d(x.reshape(n * c, 1, h, w), weights.view(1, 1, -1, 1))
    return conv2d(rows, weights.view(1, 1, 1, -1)).view(n, c, h - WINDOW + 1, w - WINDOW + 1)


class Lpips:
    """LPIPS with VGG-16 features, through torch-fidelity.

    Args:
        device: Where the network runs.
        batch: Pairs at a time.

    Raises:
        RaysenseError: If the weights cannot be had.
    """

    name = "lpips-vgg16"

    def __init__(self, device: str | torch.device = "cpu", batch: int = BATCH) -> None:
        try:
            with limited():
                network = create_sample_similarity(self.name, cuda=False, verbose=False)
        except (OSError, RuntimeError) as error:
            raise RaysenseError(f"metric lpips: its weights cannot be had ({error}); {OFFLINE}.") from error
        self.device, self.batch = torch.device(device), batch
        self.network = network.to(self.device)

    @torch.no_grad()
    def __call__(self, images: Tensor, dense: Tensor) -> Tensor:
        """(n,) float64 distances of two times (n, 3, h, w) images in [0, 1]; 0 is the same image."""
        pair("images", images, "dense", dense)
        parts = [
            self.network(as_bytes(a).to(self.device), as_bytes(b).to(self.device)).flatten().double().cpu()
            for a, b in zip(torch.split(images, self.batch), torch.split(dense, self.batch), strict=True)
        ]
        return torch.cat(parts)


def pair(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    """Refuse two tensors that do not pair up row by row."""
    if a.shape != b.shape:
        raise RaysenseError(
            f"`{name_a}` {tuple(a.shape)} and `{name_b}` {tuple(b.shape)} must pair up image by image."
        )
