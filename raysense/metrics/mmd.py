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

import numpy as np
import torch
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.metrics.intervals import Estimate, Floats

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
        reference_within: (m,) float64, each reference image's mean kernel with the others of the reference.
        reference_across: (m,) float64, with the images.
        joint: (n, n) float64, see `Estimate`; None for more than `ROWS` images, or fewer than three.
        joint_across: (n, m) float64, the kernel between the two sets less its row and column means; None for more than
            `ROWS` images on a side, or fewer than three.
        joint_reference: (m, m) float64, as `joint`.
    """

    within: Tensor
    across: Tensor
    reference_within: Tensor
    reference_across: Tensor
    joint: Tensor | None
    joint_across: Tensor | None
    joint_reference: Tensor | None


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
    across, back = torch.empty(len(x), dtype=x.dtype), torch.zeros(len(y), dtype=x.dtype)
    for start in range(0, len(x), ROWS):
        block = kernel(x[start : start + ROWS], y)
        across[start : start + ROWS] = block.mean(dim=1)
        back += block.sum(dim=0) / len(x)
    few, few_y = (2 < len(side) <= ROWS for side in (x, y))
    return Similarity(
        within=within_means(x, kernel, unbiased=unbiased),
        across=across,
        reference_within=within_means(y, kernel, unbiased=unbiased),
        reference_across=back,
        joint=joint(kernel(x, x)) if few else None,
        joint_across=kernel(x, y) - across[:, None] - back + across.mean() if few and few_y else None,
        joint_reference=joint(kernel(y, y)) if few_y else None,
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
    within = similarity.within.mean() + similarity.reference_within.mean()
    return float(within - 2 * similarity.across.mean())


def estimate(similarity: Similarity, scale: float = 1.0) -> Estimate:
    """`scale` · MMD² and the influence on it of each image, the reference's too."""

    def scaled(pairs: Tensor | None, by: float = 1) -> Floats | None:
        return None if pairs is None else np.asarray(by * scale * pairs.numpy(), dtype=np.float64)

    return Estimate(
        scale * value(similarity),
        _influence(similarity.within, similarity.across, scale),
        scaled(similarity.joint),
        _influence(similarity.reference_within, similarity.reference_across, scale),
        scaled(similarity.joint_across, -2),
        scaled(similarity.joint_reference),
    )


def _influence(within: Tensor, across: Tensor, scale: float) -> Floats:
    moves = 2 * (within - across)
    return np.asarray(scale * (moves - moves.mean()).numpy(), dtype=np.float64)
