"""Recall: the share of the reference that lies among the images.

Kynkäänniemi et al. (2019), see `raysense.metrics.precision_recall`.
"""

from __future__ import annotations

from raysense.metrics.precision_recall import precision_recall
from raysense.metrics.spec import MetricSpec, OfSet

SPEC = MetricSpec(
    "recall",
    "recall",
    "share of the reference that the images cover; higher is better",
    "share of reference images",
    "dense minus pruned",
    higher_is_better=True,
    kind="set",
    relative="_drop",
    lowest=0.0,
    highest=1.0,
    needs_images=True,
    needs_full_sample=True,
    caution="it depends strongly on the number of images, so a bound holds for this study's rungs only",
    typical={"bundled": 0.21},
    how=OfSet(precision_recall, part="recall"),
)
