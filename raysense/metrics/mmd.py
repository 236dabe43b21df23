"""Squared maximum mean discrepancy between two sets of features, the core of KID and CMMD.

Gretton et al., "A Kernel Two-Sample Test", JMLR 13 (2012), equations 3 (unbiased) and 5 (biased):

    MMD² = E k(x, x′) + E k(y, y′) − 2 E k(x, y)

The unbiased estimate leaves the pairs (i, i) out and may fall below zero. The kernel's row means are all that
the influence needs: to first order, weight on image i moves MMD² by 2 (E k(xᵢ, x′) − E k(xᵢ, y)) minus its mean.
What two images do together, the kernel less its row and column means, matters for the interval while there are
few. It is kept up to `ROWS` images, so memory grows with their number, not with its square.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.metrics.intervals import Estimate

Kernel = Callable[[Tensor, Tensor], Tensor]
"""(n, d) and (m, d) features to the (n, m) kernel between them."""

ROWS = 1024
"""Rows of a kernel matrix in memory at a time."""


@dataclass(frozen=True)
class Similarity:
    """Mean kernels of a set of images.

    Attributes:
        within: (n,) float64, each image's mean kernel with the images of its own set.
        across: (n,) float64, with the images of the reference.
        reference: Mean kernel between the reference's images.
        joint: (n, n) float64, see `Estimate`; None for more than `ROWS` images, or fewer than three.
    """

    within: Tensor
    across: Tensor
    reference: float
    joint: Tensor | None


def statistics(features: Tensor, reference: Tensor, kernel: Kernel, *, unbiased: bool) -> Similarity:
    """Mean kernels of (n, d) features against an (m, d) reference, in float64.

    Args:
        features: (n ≥ 2, d).
        reference: (m ≥ 2, d).
        kernel: What compares two images.
        unbiased: Whether to leave an image's kernel with itself out of the means within a set.

    Raises:
        RaysenseError: If the shapes do not fit, or a feature is not finite.
    """
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise RaysenseError(
            f"features {tuple(features.shape)} and reference {tuple(reference.shape)} must be (n, d) and "
            "(m, d); use one extractor for both."
        )
    if min(len(features), len(reference)) < 2:
        raise RaysenseError(
            f"MMD needs 2 images a side, but got {len(features)} and {len(reference)}; sample more."
        )
    x, y = features.double(), reference.double()
    if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise RaysenseError("`features` hold NaN or infinity; ask `why_collapsed` before measuring.")
    return Similarity(
        within=within_means(x, kernel, unbiased=unbiased),
        across=torch.cat([kernel(rows, y).mean(dim=1) for rows in torch.split(x, ROWS)]),
        reference=float(within_means(y, kernel, unbiased=unbiased).mean()),
        joint=joint(kernel(x, x)) if 2 < len(x) <= ROWS else None,
    )


def joint(pairs: Tensor) -> Tensor:
    """A kernel (n ≥ 3, n) less its row and column means, pairs (i, i) left out."""
    n = len(pairs)
    apart = pairs.clone().fill_diagonal_(0)
    rows = apart.sum(dim=1) / (n - 2)
    total = apart.sum() / ((n - 1) * (n - 2))
    return (apart - rows[:, None] - rows + total).fill_diagonal_(0)


def within_means(x: Tensor, kernel: Kernel, *, unbiased: bool) -> Tensor:
    """Each row's mean kernel with all rows of `x`, itself left out if `unbiased`: (n,)."""
    means = []
    for start in range(0, len(x), ROWS):
        block = kernel(x[start : start + ROWS], x)
        if unbiased:
            means.append((block.sum(dim=1) - block.diagonal(offset=start)) / (len(x) - 1))
        else:
            means.append(block.mean(dim=1))
    return torch.cat(means)


def value(similarity: Similarity) -> float:
    """MMD² from the mean kernels."""
    return float(similarity.within.mean() - 2 * similarity.across.mean()) + similarity.reference


def estimate(similarity: Similarity, scale: float = 1.0) -> Estimate:
    """`scale` · MMD² and each image's influence on it, the reference fixed."""
    influence = 2 * (similarity.within - similarity.across)
    together = None if similarity.joint is None else scale * similarity.joint.numpy()
    return Estimate(scale * value(similarity), scale * (influence - influence.mean()).numpy(), together)
