"""A feature extractor without a network: what colour an image has where."""

import torch
from torch import Tensor

import raysense as rs


@rs.extractor("thumbnails")
class Thumbnails:
    """Images of 4 × 4 pixels, as 48 numbers.

    Args:
        device: Where the features are computed.
        batch: Images at a time.
    """

    name = "thumbnails 4x4"

    def __init__(self, device: str, batch: int) -> None:
        self.device, self.batch = device, batch

    def images(self, images: Tensor) -> Tensor:
        """Features of float32 (n, 3, h, w) images in [0, 1]: float32 (n, 48), on the CPU."""
        parts = [
            torch.nn.functional.adaptive_avg_pool2d(part.to(self.device), 4).flatten(1).cpu()
            for part in images.float().split(self.batch)
        ]
        return torch.cat(parts)
