"""Precision and recall of a set of images: are they like the reference, and do they cover it?

Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models" (2019): the
reference's manifold is the union of balls around its features, each reaching to the 3rd nearest neighbour.
Precision is the share of images inside the reference's manifold, recall the share of the reference inside the
images'. The estimate is torch-fidelity's. Both depend strongly on the number of images: compare only at equal
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from raysense.errors import RaysenseError
from raysense.metrics.intervals import GROUPS, LEVEL, Integers, Interval, jackknife

NEIGHBOURS = 3


@dataclass(frozen=True)
class PrecisionRecall:
    """Two shares in [0, 1].

    Attributes:
        precision: Share of the images that lie among the reference.
        recall: Share of the reference that lies among the images.
    """

    precision: float
    recall: float


def precision_recall(features: Tensor, reference: Tensor, neighbours: int = NEIGHBOURS) -> PrecisionRecall:
    """Precision and recall of (n, d) features against an (m, d) reference.

    Raises:
        RaysenseError: If a set has too few images for that many neighbours, or the features differ.
    """
    if features.shape[1:] != reference.shape[1:] or features.ndim != 2:
        raise RaysenseError(
            f"features {tuple(features.shape)} and reference {tuple(reference.shape)} must be (n, d) and (m, d) "
            "of one extractor."
        )
    if min(len(features), len(reference)) <= neighbours:
        raise RaysenseError(
            f"precision and recall with {neighbours} neighbours need more images than {len(features)} and "
            f"{len(reference)}."
        )
    metric = prc_features_to_metric(features, reference, prc_neighborhood=neighbours, verbose=False)
    return PrecisionRecall(float(metric[KEY_METRIC_PRECISION]), float(metric[KEY_METRIC_RECALL]))


def precision_recall_intervals(
    dense: Tensor,
    pruned: Tensor,
    reference: Tensor,
    prompt_ids: Sequence[Hashable] | None = None,
    neighbours: int = NEIGHBOURS,
    groups: int = GROUPS,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Precision and recall of the pruned pipeline, and how much they fall from the dense one's.

    Args:
        dense: (n, d) features of the dense pipeline's images.
        pruned: (n, d) of the pruned pipeline's, image by image the same prompt and noise.
        reference: (m, d), counted as fixed.
        prompt_ids: (n,) the prompt of each pair; None when all differ.
        neighbours: See `precision_recall`.
        groups: See `statistics.jackknife`.
        level: Two-sided confidence.

    Returns:
        ``precision``, ``recall``, ``precision_drop``, ``recall_drop``; a positive drop is worse.

    Raises:
        RaysenseError: If the two sets do not pair up; see also `precision_recall`.
    """
    if dense.shape != pruned.shape:
        raise RaysenseError(f"`dense` {tuple(dense.shape)} and `pruned` {tuple(pruned.shape)} must pair up.")
    known: dict[bytes, dict[str, float]] = {}

    def values(kept: Integers) -> dict[str, float]:
        # All four jackknives ask for the same subsets, and a subset costs four distance matrices.
        key = kept.tobytes()
        if key not in known:
            rows = torch.from_numpy(kept)
            before = precision_recall(dense[rows], reference, neighbours)
            after = precision_recall(pruned[rows], reference, neighbours)
            known[key] = {
                "precision": after.precision,
                "recall": after.recall,
                "precision_drop": before.precision - after.precision,
                "recall_drop": before.recall - after.recall,
            }
        return known[key]

    def value_of(name: str) -> Callable[[Integers], float]:
        return lambda kept: values(kept)[name]

    units = len(dense) if prompt_ids is None else prompt_ids
    names = ("precision", "recall", "precision_drop", "recall_drop")
    return {name: jackknife(value_of(name), units, groups, level) for name in names}
