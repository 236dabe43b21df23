from __future__ import annotations

import pytest
import torch

from raysense.errors import RaysenseError
from raysense.metrics.clip_score import clip_score, clip_scores


def test_is_the_cosine_of_each_pair() -> None:
    image = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, -1.0]])
    assert clip_scores(image, text).tolist() == pytest.approx([1, 0, -1])


def test_mean_and_interval_count_prompts() -> None:
    image, text = torch.eye(2)[[0, 0, 1, 1]], torch.eye(2)[[0, 1, 1, 1]]
    found = clip_score(image, text, ["a", "a", "b", "b"])
    assert found.value == pytest.approx(0.75)
    assert found.n == 4
    assert found.low < 0.75 < found.high


def test_one_prompt_for_each_image() -> None:
    with pytest.raises(RaysenseError, match="pair up"):
        clip_scores(torch.zeros(4, 2), torch.zeros(2, 2))
