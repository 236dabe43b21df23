"""CLIP score: how well an image shows what its prompt says.

Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning" (2021):

    s = cos(E_image, E_text)

raysense records the raw cosine (about .31 for Stable Diffusion 2 under OpenAI's ViT-B/32), negative values
included. Hessel's own score is 2.5 · max(s, 0), torchmetrics' is 100 · max(s, 0): figures compare only
between equal models *and* scales.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor
from torch.nn.functional import cosine_similarity

from raysense.errors import RaysenseError
from raysense.metrics.intervals import LEVEL, Interval, mean_interval

SCALE = "raw cosine"


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
    if image_features.shape != text_features.shape:
        raise RaysenseError(
            f"images {tuple(image_features.shape)} and prompts {tuple(text_features.shape)} must pair up row "
            "by row; repeat a prompt's row for each of its seeds."
        )
    return cosine_similarity(image_features.double(), text_features.double(), dim=1)


def clip_score(
    image_features: Tensor,
    text_features: Tensor,
    prompt_ids: Sequence[Hashable] | None = None,
    level: float = LEVEL,
) -> Interval:
    """Mean CLIP score with its interval over prompts."""
    return mean_interval(clip_scores(image_features, text_features).numpy(), prompt_ids, level)
