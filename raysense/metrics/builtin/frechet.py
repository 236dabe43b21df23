"""Fréchet distance of the images' features to the reference's; FID, where the features are Inception's.

The mathematics is that of two Gaussians: `raysense.metrics.gaussians`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysense.metrics.spec import FAR, OF_SET, Distance, MetricSpec

if TYPE_CHECKING:
    from torch import Tensor

    from raysense.metrics.gaussians import Gaussian
    from raysense.metrics.intervals import Estimate
    from raysense.metrics.mmd import Labels


def estimate(
    features: Tensor, reference: Tensor, gaussian: Gaussian, labels: Labels | None = None
) -> Estimate:
    """Fréchet distance of (n, d) features to the reference's Gaussian, and the influence of each image on it.

    `reference` is (m, d), or empty where only the Gaussian is known.
    """
    from raysense.metrics import gaussians

    return gaussians.estimate(features, gaussian, reference if len(reference) else None)


SPEC = MetricSpec(
    "frechet",
    "Fréchet distance",
    FAR,
    f"Fréchet distance {OF_SET}",
    "pruned minus dense Fréchet distance, paired",
    kind="set",
    relative="_rise",
    lowest=0.0,
    always=True,
    needs_full_sample=True,
    biased_below=2048,
    typical={"bundled": 83.0},
    how=Distance(estimate),
)
