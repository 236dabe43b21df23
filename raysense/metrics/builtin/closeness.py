"""Closeness: the cosine of two images' features, those of the pruned and of the dense pipeline.

It says whether the picture changed under the same prompt and noise, not whether it got worse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysense.metrics.pairs import pair
from raysense.metrics.spec import MetricSpec, OfFeatures

if TYPE_CHECKING:
    from torch import Tensor


def feature_closeness(features: Tensor, dense: Tensor, centre: Tensor | None = None) -> Tensor:
    """Cosine of each image's features with those of its dense counterpart.

    Args:
        features: (n, d) of the pruned pipeline's images.
        dense: (n, d) of the dense pipeline's, row by row the same prompt and noise.
        centre: (d,) subtracted from both, by default the mean of `dense`: raw features share a large common
            part that makes any two images look alike. Store it, and a later sample is measured from the same
            point.

    Returns:
        (n,) float64 in [−1, 1]; 1 is the same image, 0 one as unlike as a random other.

    Raises:
        RaysenseError: If the two do not pair up.
    """
    from torch.nn.functional import cosine_similarity

    pair("features", features, "dense", dense)
    x, y = features.double(), dense.double()
    origin = y.mean(dim=0) if centre is None else centre.double()
    return cosine_similarity(x - origin, y - origin, dim=1)


SPEC = MetricSpec(
    "closeness",
    "closeness to the dense image",
    "how alike an image and the dense one from the same noise are; 1 is equal",
    "mean feature cosine with the dense image of the same noise",
    higher_is_better=True,
    dense=1.0,
    lowest=-1.0,
    highest=1.0,
    always=True,
    typical={"bundled": 0.045},
    how=OfFeatures(feature_closeness),
)
