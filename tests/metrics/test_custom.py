from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.metrics.custom import checked_metric, custom_metric


def brightness(images: Tensor, prompts: Sequence[str], dense: Tensor) -> Tensor:
    return images.mean(dim=(1, 2, 3))


def length(images: Tensor, prompts: Sequence[str], dense: Tensor) -> list[int]:
    return [len(prompt) for prompt in prompts]


def one_for_all(images: Tensor, prompts: Sequence[str], dense: Tensor) -> float:
    return float(images.mean())


def undefined(images: Tensor, prompts: Sequence[str], dense: Tensor) -> list[float]:
    return [float("nan")] * len(images)


NOT_CALLABLE = 3
IMAGES = torch.full((2, 3, 4, 4), 0.25)


@pytest.mark.parametrize(("name", "values"), [("brightness", [0.25, 0.25]), ("length", [1.0, 3.0])])
@pytest.mark.parametrize("separator", [".", ":"])
def test_gives_one_number_an_image(name: str, values: list[float], separator: str) -> None:
    found = custom_metric(f"{__name__}{separator}{name}")(IMAGES, ["a", "cat"], IMAGES)
    assert found.dtype == np.float64
    assert found.tolist() == values


@pytest.mark.parametrize(
    ("name", "words"), [("one_for_all", r"shape \(2,\), but gave \(\)"), ("undefined", "NaN or infinity")]
)
def test_answers_are_checked(name: str, words: str) -> None:
    with pytest.raises(RaysenseError, match=words):
        custom_metric(f"{__name__}.{name}")(IMAGES, ["a", "cat"], IMAGES)


@pytest.mark.parametrize(
    "path", ["nowhere", "no.such.module", f"{__name__}.missing", f"{__name__}.NOT_CALLABLE", ""]
)
def test_a_path_must_lead_to_a_function(path: str) -> None:
    with pytest.raises(RaysenseError, match="metric: '"):
        custom_metric(path)


def test_a_metric_that_ends_the_process_or_gives_no_numbers_is_named() -> None:
    def leaves(*_: object) -> float:
        raise SystemExit(0)

    images = torch.zeros(2, 3, 8, 8)
    for metric, said in (
        (leaves, "ended the process"),
        (lambda *_: ["a", "b"], "must return numbers, but gave"),
    ):
        with pytest.raises(RaysenseError, match=f"mine: {said}"):
            checked_metric(metric, "mine")(images, ["a", "b"], images)  # type: ignore[arg-type]
