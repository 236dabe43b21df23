"""Precision: the share of images that lie among the reference's.

Kynkäänniemi et al. (2019), see `raysense.metrics.precision_recall`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysense.metrics.spec import MetricSpec, OfSet

if TYPE_CHECKING:
    from torch import Tensor


def precision(features: Tensor, reference: Tensor) -> float:
    """Precision of (n, d) features against an (m, d) reference."""
    from raysense.metrics.precision_recall import precision_recall

    return precision_recall(features, reference).precision


SPEC = MetricSpec(
    "precision",
    "precision",
    "share of images that look like the reference's; higher is better",
    "share of images",
    "dense minus pruned",
    higher_is_better=True,
    kind="set",
    relative="_drop",
    lowest=0.0,
    highest=1.0,
    needs_images=True,
    needs_full_sample=True,
    caution="it depends strongly on the number of images, so a bound holds for this study's rungs only",
    how=OfSet(precision),
)
