"""CLIP score: how well an image shows what its prompt says.

Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning" (2021):

    s = cos(E_image, E_text)

raysense records the raw cosine (about 0.31 for Stable Diffusion 2 under OpenAI's ViT-B/32), negative values
included. Hessel's own score is 2.5 · max(s, 0), torchmetrics' is 100 · max(s, 0): figures compare only
between equal models *and* scales.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysense.errors import RaysenseError
from raysense.metrics.spec import MetricSpec, OfPrompt

if TYPE_CHECKING:
    from torch import Tensor


def clip_scores(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Cosine of each image with its own prompt.

    Args:
        image_features: (n, d) of any norm.
        text_features: (n, d), row by row the prompt of the image.

    Returns:
        (n,) float64 in [−1, 1].

    Raises:
        RaysenseError: If there is not one prompt an image.
    """
    from torch.nn.functional import cosine_similarity

    if image_features.shape != text_features.shape:
        raise RaysenseError(
            f"images {tuple(image_features.shape)} and prompts {tuple(text_features.shape)} must pair up row "
            "by row; repeat a prompt's row for each of its seeds."
        )
    return cosine_similarity(image_features.double(), text_features.double(), dim=1)


SPEC = MetricSpec(
    "clip_score",
    "CLIP score",
    "how well an image fits its prompt; higher is better",
    "mean cosine of image and prompt",
    "dense minus pruned, paired by prompt and seed",
    higher_is_better=True,
    relative="_drop",
    lowest=-1.0,
    highest=1.0,
    always=True,
    typical={"bundled": 0.019, "": 0.0275},
    how=OfPrompt(clip_scores),
)
