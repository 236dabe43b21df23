"""Precision and recall of a set of images: are they like the reference, and do they cover it?

Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models" (2019): the
reference's manifold is the union of balls around its features, each reaching to the 3rd nearest neighbour.
Precision is the share of images inside the reference's manifold, recall the share of the reference inside the
images'. The estimate is torch-fidelity's. Both depend strongly on the number of images: compare only at equal
numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysense.errors import RaysenseError

if TYPE_CHECKING:
    from torch import Tensor

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
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

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
