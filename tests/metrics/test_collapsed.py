from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.metrics.collapsed import why_collapsed

from .conftest import paint

SOUND = paint(8, seed=0)
NOISE = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def with_nan() -> Tensor:
    images = SOUND.clone()
    images[3, 0, 0, 0] = torch.nan
    return images


@pytest.mark.parametrize(
    ("images", "why"),
    [
        (SOUND, ""),
        (SOUND * 0.1 + 0.45, ""),
        (SOUND[:1], ""),
        (with_nan(), "NaN or infinite: 1 of 8 images"),
        (torch.full((2, 3, 8, 8), torch.inf), "NaN or infinite: 2 of 2 images"),
        (SOUND * 3 - 1, "off-scale: 8 of 8 images"),
        (torch.zeros(4, 3, 8, 8), "black: 4 of 4 images"),
        (SOUND * 0.02, "black: 8 of 8 images"),
        (torch.rand(8, 3, 1, 1).expand(8, 3, 32, 32), "constant: 8 of 8 images"),
        (torch.ones(4, 3, 8, 8), "constant: 4 of 4 images"),
        ((SOUND[:1] + 0.002 * NOISE).clamp(0, 1), "all alike: 8 images"),
    ],
)
def test_says_why(images: Tensor, why: str) -> None:
    found = why_collapsed(images)
    assert found.startswith(why) if why else found == ""


def test_a_few_plain_images_are_no_collapse() -> None:
    images = SOUND.clone()
    images[:4] = 0.0
    assert why_collapsed(images) == ""
    images[4] = 0.0
    assert why_collapsed(images) == "black: 5 of 8 images"


def test_half_precision_is_fine() -> None:
    assert why_collapsed(SOUND.half()) == ""


def test_wants_images() -> None:
    with pytest.raises(RaysenseError, match="`images` must be"):
        why_collapsed(torch.zeros(0, 3, 8, 8))
