"""CMMD: maximum mean discrepancy of CLIP features with a Gaussian kernel.

Jayasumana et al., "Rethinking FID: Towards a Better Evaluation Metric for Image Generation" (2024):

    CMMD = 1000 · MMD²_biased,   k(x, y) = exp(−|x − y|² / (2 · 10²))

on L2-normalised embeddings (theirs: OpenAI's ViT-L/14 at 336 pixels). The biased estimate of their code is
kept, so that figures compare; its bias is the same for two sets of equal size and all but cancels in
`cmmd_rise`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from raysense.metrics import mmd
from raysense.metrics.intervals import LEVEL, Interval, influence_interval, influence_rise

SIGMA = 10.0
SCALE = 1000.0


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """The Gaussian kernel of (n, d) and (m, d) features: (n, m)."""
    squares = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1) - 2 * x @ y.T
    return torch.exp(-squares / (2 * SIGMA**2))


def statistics(features: Tensor, reference: Tensor) -> mmd.Similarity:
    """Mean kernels of (n, d) L2-normalised features against an (m, d) reference."""
    return mmd.statistics(features, reference, kernel, unbiased=False)


def cmmd(features: Tensor, reference: Tensor) -> float:
    """CMMD of (n, d) L2-normalised features against an (m, d) reference."""
    return SCALE * mmd.value(statistics(features, reference))


def cmmd_interval(
    features: Tensor, reference: Tensor, prompt_ids: Sequence[Hashable] | None = None, level: float = LEVEL
) -> Interval:
    """CMMD with its interval over prompts, for a fixed reference."""
    return influence_interval(mmd.estimate(statistics(features, reference), SCALE), prompt_ids, level)


def cmmd_rise(
    pruned: Tensor,
    dense: Tensor,
    reference: Tensor,
    prompt_ids: Sequence[Hashable] | None = None,
    level: float = LEVEL,
) -> Interval:
    """CMMD of the pruned − of the dense pipeline's images, same prompts and seeds; positive is worse."""
    after = mmd.estimate(statistics(pruned, reference), SCALE)
    before = mmd.estimate(statistics(dense, reference), SCALE)
    return influence_rise(after, before, prompt_ids, level)
