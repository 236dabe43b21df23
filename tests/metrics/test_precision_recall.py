from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.metrics.builtin import SPECS
from raysense.metrics.custom import set_intervals
from raysense.metrics.precision_recall import precision_recall
from raysense.metrics.spec import OfSet


def sample(n: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)) * scale


def test_is_the_definition() -> None:
    images, reference = sample(30, 0, 0.8), sample(40, 1)

    def share_inside(points: Tensor, manifold: Tensor) -> float:
        inside = 0
        for point in points:
            inside += any(
                float((point - centre).norm()) <= float((manifold - centre).norm(dim=1).sort().values[3])
                for centre in manifold
            )
        return inside / len(points)

    found = precision_recall(images, reference)
    assert found.precision == pytest.approx(share_inside(images, reference))
    assert found.recall == pytest.approx(share_inside(reference, images))


def test_narrow_images_are_precise_and_cover_little() -> None:
    found = precision_recall(sample(200, 2, 0.2), sample(200, 3))
    assert found.precision > 0.95
    assert found.recall < 0.3


def test_a_narrower_set_drops_in_recall() -> None:
    dense, reference = sample(192, 4), sample(150, 5)
    found = {}
    for name in ("precision", "recall"):
        how = SPECS[name].how
        assert isinstance(how, OfSet)
        found[name] = set_intervals(
            how,
            dense * 0.2,
            dense,
            reference,
            range(192),
            higher_is_better=SPECS[name].higher_is_better,
        )
    assert found["recall"][1].ci_low > 0.3
    assert found["precision"][1].ci_high < 0
    assert found["recall"][1].n == 192
    whole = precision_recall(dense * 0.2, reference)
    assert (found["precision"][0].value, found["recall"][0].value) == (whole.precision, whole.recall)


def test_too_few_images_for_the_neighbours() -> None:
    with pytest.raises(RaysenseError, match="3 neighbours"):
        precision_recall(sample(3, 6), sample(20, 7))
    with pytest.raises(RaysenseError, match="one extractor"):
        precision_recall(sample(9, 6), sample(20, 7)[:, :2])
