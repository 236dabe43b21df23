from __future__ import annotations

import pytest
import torch

from raysense.errors import RaysenseError
from raysense.metrics.builtin.clip_score import clip_scores


def test_is_the_cosine_of_each_pair() -> None:
    image = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, -1.0]])
    assert clip_scores(image, text).tolist() == pytest.approx([1, 0, -1])


def test_one_prompt_for_each_image() -> None:
    with pytest.raises(RaysenseError, match="pair up"):
        clip_scores(torch.zeros(4, 2), torch.zeros(2, 2))
