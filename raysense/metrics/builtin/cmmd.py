"""CMMD: maximum mean discrepancy of CLIP features with a Gaussian kernel.

Jayasumana et al., "Rethinking FID: Towards a Better Evaluation Metric for Image Generation" (2024):

    CMMD = 1000 · MMD²_biased,   k(x, y) = exp(−|x − y|² / (2 · 10²))

on L2-normalised embeddings (theirs: OpenAI's ViT-L/14 at 336 pixels). The biased estimate of their code is
kept, so that figures compare; its bias is the same for two sets of equal size and all but cancels in a rise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysense.metrics.spec import CLIP, FAR, OF_SET, Distance, MetricSpec

if TYPE_CHECKING:
    from torch import Tensor

    from raysense.metrics.gaussians import Gaussian
    from raysense.metrics.intervals import Estimate
    from raysense.metrics.mmd import Labels

SIGMA = 10.0
SCALE = 1000.0


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """The Gaussian kernel of (n, d) and (m, d) features: (n, m)."""
    squares = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1) - 2 * x @ y.T
    return (-squares / (2 * SIGMA**2)).exp()


def estimate(
    features: Tensor, reference: Tensor, gaussian: Gaussian | None = None, labels: Labels | None = None
) -> Estimate:
    """CMMD of (n, d) L2-normalised features against an (m, d) reference, and each image's influence on it."""
    from raysense.metrics import mmd

    return mmd.estimate(mmd.statistics(features, reference, kernel, unbiased=False), SCALE)


def cmmd(features: Tensor, reference: Tensor) -> float:
    """CMMD of (n, d) L2-normalised features against an (m, d) reference."""
    return estimate(features, reference).value


SPEC = MetricSpec(
    "cmmd",
    "CMMD",
    FAR,
    f"kernel distance of CLIP features, × 1000, {OF_SET}",
    "pruned minus dense kernel distance, paired",
    kind="set",
    relative="_rise",
    lowest=0.0,
    needs_images=True,
    needs_full_sample=True,
    typical={"bundled": 0.023},
    how=Distance(estimate, CLIP),
)
