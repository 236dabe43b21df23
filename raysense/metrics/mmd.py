"""Squared maximum mean discrepancy between two sets of features, the core of KID and CMMD.

Gretton et al., "A Kernel Two-Sample Test", JMLR 13 (2012), equations 3 (unbiased) and 5 (biased):

    MMD² = E k(x, x′) + E k(y, y′) − 2 E k(x, y)

The unbiased estimate leaves the pairs (i, i) out and may fall below zero. Only the kernel's row means are
kept, so memory grows with the number of images, not with its square. Row means are also all that the
influence needs: to first order, weight on image i moves MMD² by 2 (E k(xᵢ, x′) − E k(xᵢ, y)) minus its mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raysense.errors import RaysenseError

from .statistics import Estimate

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
    """

    within: Tensor
    across: Tensor
    reference: float


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
    )


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
    return Estimate(scale * value(similarity), scale * (influence - influence.mean()).numpy())
