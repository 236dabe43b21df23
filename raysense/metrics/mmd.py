"""Squared maximum mean discrepancy between two sets of features, the core of KID and CMMD.

Gretton et al., "A Kernel Two-Sample Test", JMLR 13 (2012), equations 3 (unbiased) and 5 (biased):

    MMD² = E k(x, x′) + E k(y, y′) − 2 E k(x, y)

The unbiased estimate leaves the pairs (i, i) out, and here all pairs of images of one prompt: a reference of dense
images shows the same prompts, and an image is more like the reference's of its prompt than like the others. It may fall
below zero. The kernel's row means are all that the influence needs: to first order, weight on image i moves MMD² by
2 (E k(xᵢ, x′) − E k(xᵢ, y)) minus its mean. What two images do together, the kernel less its row and column means,
matters for the interval while there are few. It is kept up to `ROWS` images, so memory grows with their number, not
with its square.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.metrics.intervals import Estimate, Floats, Integers

Kernel = Callable[[Tensor, Tensor], Tensor]
"""(n, d) and (m, d) features to the (n, m) kernel between them."""

Labels = tuple[Integers, Integers]
"""The number of the prompt of each image, (n,), and of each image of the reference, (m,)."""

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
        joint_reference: (m, m) float64, as `joint`; None where `joint_across` is.
    """

    within: Tensor
    across: Tensor
    reference_within: Tensor
    reference_across: Tensor
    joint: Tensor | None
    joint_across: Tensor | None
    joint_reference: Tensor | None


def statistics(
    features: Tensor, reference: Tensor, kernel: Kernel, *, unbiased: bool, labels: Labels | None = None
) -> Similarity:
    """Mean kernels of (n, d) features against an (m, d) reference, in float64.

    Args:
        features: (n ≥ 2, d).
        reference: (m ≥ 2, d).
        kernel: What compares two images.
        unbiased: Whether to leave an image's kernel with itself out of the means, and with every other image of its
            prompt: these are more alike than images of two prompts drawn apart.
        labels: (n,) and (m,) the number of each image's prompt; None when all differ.

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
    own, other = _numbered(len(x), len(y), labels)
    skipped, skipped_y = (own, other) if unbiased else (None, None)
    few = 2 < len(x) <= ROWS
    both = few and 2 < len(y) <= ROWS
    # Each kernel once: of few images, the means and what pairs do are read off the same matrix.
    own_pairs = kernel(x, x) if few else None
    pairs, their_pairs = (kernel(x, y), kernel(y, y)) if both else (None, None)
    across, back = _mean_kernels(x, y, kernel, skipped, skipped_y, pairs)
    centred = None if pairs is None else pairs - across[:, None] - back + across.mean()
    return Similarity(
        within=_mean_kernels(x, x, kernel, skipped, skipped, own_pairs)[0],
        across=across,
        reference_within=_mean_kernels(y, y, kernel, skipped_y, skipped_y, their_pairs)[0],
        reference_across=back,
        joint=None if own_pairs is None else _apart(joint(own_pairs), skipped, skipped),
        joint_across=None if centred is None else _apart(centred, skipped, skipped_y),
        joint_reference=None if their_pairs is None else _apart(joint(their_pairs), skipped_y, skipped_y),
    )


def _numbered(n: int, m: int, labels: Labels | None) -> tuple[Tensor, Tensor]:
    """The number of each image's prompt, those of the reference too; every image has its own where nothing is known.

    Of a single prompt there are no images of two: then an image is left out with itself alone.
    """
    if labels is None or len(np.unique(labels[0])) < 2 or len(np.unique(labels[1])) < 2:
        return torch.arange(n), torch.arange(n, n + m)
    return torch.from_numpy(labels[0]), torch.from_numpy(labels[1])


def _mean_kernels(
    x: Tensor,
    y: Tensor,
    kernel: Kernel,
    skipped: Tensor | None,
    skipped_y: Tensor | None,
    pairs: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Mean kernel of each row of `x` with all of `y`, and of each of `y` with all of `x`, equal numbers left out.

    `pairs` is the kernel of all with all where it is known; otherwise it is made some rows at a time.
    """
    sums, back = torch.empty(len(x), dtype=x.dtype), torch.zeros(len(y), dtype=x.dtype)
    counts, counts_back = torch.full((len(x),), len(y)), torch.full((len(y),), len(x))
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        block = kernel(x[rows], y) if pairs is None else pairs
        if skipped is not None and skipped_y is not None:
            same = skipped[rows, None] == skipped_y
            block = block.masked_fill(same, 0)
            counts[rows] -= same.sum(dim=1)
            counts_back -= same.sum(dim=0)
        sums[rows] = block.sum(dim=1)
        back += block.sum(dim=0)
    return sums / counts, back / counts_back


def _apart(pairs: Tensor, skipped: Tensor | None, skipped_y: Tensor | None) -> Tensor:
    """Pairs without those of one prompt."""
    if skipped is None or skipped_y is None:
        return pairs
    return pairs.masked_fill(skipped[:, None] == skipped_y, 0)


def joint(pairs: Tensor) -> Tensor:
    """A kernel (n ≥ 3, n) less its row and column means, pairs (i, i) left out."""
    n = len(pairs)
    apart = pairs.clone().fill_diagonal_(0)
    rows = apart.sum(dim=1) / (n - 2)
    total = apart.sum() / ((n - 1) * (n - 2))
    return (apart - rows[:, None] - rows + total).fill_diagonal_(0)


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
