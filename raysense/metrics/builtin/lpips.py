"""LPIPS: how unlike two images look to a network.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018). It says whether the
picture changed under the same prompt and noise, not whether it got worse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysense.errors import RaysenseError
from raysense.metrics.pairs import pair
from raysense.metrics.spec import MetricSpec, OfPixels

if TYPE_CHECKING:
    import torch
    from torch import Tensor

EXTRACTOR = "lpips-vgg16"


class Lpips:
    """LPIPS with VGG-16 features, through torch-fidelity.

    Args:
        device: Where the network runs.
        batch: Pairs at a time; None for as many as an extractor takes.

    Raises:
        RaysenseError: If the weights cannot be had.
    """

    name = EXTRACTOR

    def __init__(self, device: str | torch.device = "cpu", batch: int | None = None) -> None:
        import torch
        from torch_fidelity import utils

        from raysense.hub import limited
        from raysense.metrics.features import BATCH, OFFLINE

        try:
            with limited():
                network = utils.create_sample_similarity(self.name, cuda=False, verbose=False)
        except (OSError, RuntimeError) as error:
            raise RaysenseError(f"metric lpips: its weights cannot be had ({error}); {OFFLINE}.") from error
        self.device, self.batch = torch.device(device), batch or BATCH
        self.network = network.to(self.device)

    def __call__(self, images: Tensor, dense: Tensor) -> Tensor:
        """(n,) float64 distances of two times (n, 3, h, w) images in [0, 1]; 0 is the same image."""
        import torch

        from raysense.metrics.features import as_bytes

        pair("images", images, "dense", dense)
        with torch.no_grad():
            parts = [
                self.network(as_bytes(a).to(self.device), as_bytes(b).to(self.device))
                .flatten()
                .double()
                .cpu()
                for a, b in zip(torch.split(images, self.batch), torch.split(dense, self.batch), strict=True)
            ]
        return torch.cat(parts)


SPEC = MetricSpec(
    "lpips",
    "LPIPS to the dense image",
    "how unlike an image and the dense one from the same noise look; 0 is equal",
    "mean LPIPS distance",
    dense=0.0,
    lowest=0.0,
    how=OfPixels(Lpips, EXTRACTOR, weights="VGG-16 weights"),
)
