"""KID: the unbiased kernel distance with a cubic kernel.

Bińkowski et al., "Demystifying MMD GANs" (2018), section 4:

    KID = MMD²_unbiased,   k(x, y) = (xᵀy / d + 1)³

torch-fidelity averages it over 100 random subsets of 1,000 images, because the kernel of all pairs used to be
too large; `kid` uses all pairs once, which has less variance, needs no seed and accepts any number of images.
With one subset as large as the sample both give the same figure. Where the reference shows the same prompts, images
of one prompt are not compared, see `raysense.metrics.mmd`. `kid_by_subsets` is torch-fidelity's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysense.errors import RaysenseError
from raysense.metrics.spec import FAR, OF_SET, Distance, MetricSpec

if TYPE_CHECKING:
    from torch import Tensor

    from raysense.metrics.gaussians import Gaussian
    from raysense.metrics.intervals import Estimate
    from raysense.metrics.mmd import Labels


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """The cubic kernel of (n, d) and (m, d) features: (n, m)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def estimate(
    features: Tensor, reference: Tensor, gaussian: Gaussian | None = None, labels: Labels | None = None
) -> Estimate:
    """KID of (n, d) features against an (m, d) reference, and each image's influence on it."""
    from raysense.metrics import mmd

    return mmd.estimate(mmd.statistics(features, reference, kernel, unbiased=True, labels=labels))


def kid(features: Tensor, reference: Tensor) -> float:
    """KID of (n, d) features against an (m, d) reference; about zero when both come from one distribution."""
    return estimate(features, reference).value


def kid_by_subsets(
    features: Tensor, reference: Tensor, subset_size: int = 1000, subsets: int = 100, seed: int = 2020
) -> float:
    """KID as torch-fidelity computes it, for comparison with published figures.

    Raises:
        RaysenseError: If a subset is larger than either set.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    if subset_size > min(len(features), len(reference)):
        raise RaysenseError(
            f"`subset_size` {subset_size} exceeds {len(features)} or {len(reference)} images; lower it."
        )
    metric = kid_features_to_metric(
        features, reference, kid_subset_size=subset_size, kid_subsets=subsets, rng_seed=seed, verbose=False
    )
    return float(metric[KEY_METRIC_KID_MEAN])


SPEC = MetricSpec(
    "kid",
    "KID",
    FAR,
    f"kernel distance {OF_SET}",
    "pruned minus dense kernel distance, paired",
    kind="set",
    relative="_rise",
    lowest=0.0,
    always=True,
    needs_images=True,
    typical={"bundled": 0.02},
    how=Distance(estimate),
)
