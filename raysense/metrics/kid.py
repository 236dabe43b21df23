"""KID: the unbiased kernel distance with a cubic kernel.

Bińkowski et al., "Demystifying MMD GANs" (2018), section 4:

    KID = MMD²_unbiased,   k(x, y) = (xᵀy / d + 1)³

torch-fidelity averages it over 100 random subsets of 1,000 images, because the kernel of all pairs used to be
too large; `kid` uses all pairs once, which has less variance, needs no seed and accepts any number of images.
With one subset as large as the sample both give the same figure. `kid_by_subsets` is torch-fidelity's own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from raysense.errors import RaysenseError
from raysense.metrics import mmd
from raysense.metrics.intervals import LEVEL, Interval, influence_interval, influence_rise


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """The cubic kernel of (n, d) and (m, d) features: (n, m)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def statistics(features: Tensor, reference: Tensor) -> mmd.Similarity:
    """Mean kernels of (n, d) features against an (m, d) reference."""
    return mmd.statistics(features, reference, kernel, unbiased=True)


def kid(features: Tensor, reference: Tensor) -> float:
    """KID of (n, d) features against an (m, d) reference; about zero when both come from one distribution."""
    return mmd.value(statistics(features, reference))


def kid_interval(
    features: Tensor, reference: Tensor, prompt_ids: Sequence[Hashable] | None = None, level: float = LEVEL
) -> Interval:
    """KID with its interval over prompts, for a fixed reference."""
    return influence_interval(mmd.estimate(statistics(features, reference)), prompt_ids, level)


def kid_rise(
    pruned: Tensor,
    dense: Tensor,
    reference: Tensor,
    prompt_ids: Sequence[Hashable] | None = None,
    level: float = LEVEL,
) -> Interval:
    """KID of the pruned − of the dense pipeline's images, same prompts and seeds; positive is worse."""
    after = mmd.estimate(statistics(pruned, reference))
    before = mmd.estimate(statistics(dense, reference))
    return influence_rise(after, before, prompt_ids, level)


def kid_by_subsets(
    features: Tensor, reference: Tensor, subset_size: int = 1000, subsets: int = 100, seed: int = 2020
) -> float:
    """KID as torch-fidelity computes it, for comparison with published figures.

    Raises:
        RaysenseError: If a subset is larger than either set.
    """
    if subset_size > min(len(features), len(reference)):
        raise RaysenseError(
            f"`subset_size` {subset_size} exceeds {len(features)} or {len(reference)} images; lower it."
        )
    metric = kid_features_to_metric(
        features, reference, kid_subset_size=subset_size, kid_subsets=subsets, rng_seed=seed, verbose=False
    )
    return float(metric[KEY_METRIC_KID_MEAN])
