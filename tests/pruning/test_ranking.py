"""Ranks by counting equal those by a stable sort, to the bit, ties included."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysense.pruning import allocation_rules, ranking
from raysense.pruning.ranking import NEVER, magnitude_counts, prune_levels, sortable

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
N = 200_000


def by_sorting(scores: torch.Tensor, removed: list[int]) -> torch.Tensor:
    order = scores.flatten().argsort(stable=True)
    levels = torch.full((scores.numel(),), NEVER, dtype=torch.uint8)
    for level, (start, end) in enumerate(pairwise([0, *removed])):
        levels[order[start:end]] = level
    return levels.view(scores.shape)


def scores_of(kind: str, dtype: torch.dtype, n: int = N) -> torch.Tensor:
    normal = torch.randn(n, generator=torch.Generator().manual_seed(1))
    made = {
        "normal": normal,
        "magnitudes": normal.mul(0.02).abs(),
        "zeros first": normal.abs().masked_fill(normal < 0.5, -torch.inf),
        "few values": normal.round(),
        "signed zeros": torch.where(normal > 0, 0.0, -0.0),
        "subnormal": normal * 1e-7,
        "ranks": torch.arange(n).remainder(640).float(),
    }
    return made[kind].to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "kind", ["normal", "magnitudes", "zeros first", "few values", "signed zeros", "subnormal", "ranks"]
)
def test_as_by_sorting(kind: str, dtype: torch.dtype):
    scores = scores_of(kind, dtype)
    for removed in ([N * level // 270 for level in range(1, 256)], [N // 3], [0, 5, 5, N], [N], []):
        assert torch.equal(prune_levels(scores, removed), by_sorting(scores, removed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_shape_and_order_are_those_of_a_weight_in_any_layout(dtype: torch.dtype):
    weight = torch.randn(64, 64, 5, 5, generator=torch.Generator().manual_seed(2)).to(dtype)
    removed = [weight.numel() * level // 20 for level in range(1, 19)]
    levels = prune_levels(weight.contiguous(memory_format=torch.channels_last), removed)
    assert torch.equal(levels, by_sorting(weight, removed))


@given(st.lists(st.floats(width=16, allow_nan=False), min_size=1, max_size=60), st.sampled_from(DTYPES))
def test_keys_have_the_order_of_the_values(values: list[float], dtype: torch.dtype):
    tensor = torch.tensor(values).to(dtype)
    keys = sortable(tensor).astype(np.int64)
    assert np.array_equal(np.sign(np.subtract.outer(keys, keys)), np.sign(
        np.subtract.outer(*[np.nan_to_num(tensor.double().numpy(), posinf=1e300, neginf=-1e300)] * 2)
    ))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_counts_every_magnitude(dtype: torch.dtype):
    weight = scores_of("normal", dtype).view(200, -1)
    values, counts = magnitude_counts(weight)
    expected, times = weight.abs().double().unique(return_counts=True)
    assert values.tolist() == expected.tolist()
    assert counts.tolist() == times.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["normal", "few values", "signed zeros", "magnitudes"])
def test_lamp_from_counts_as_from_sorted_weights(kind: str, dtype: torch.dtype):
    weight = scores_of(kind, dtype, 20_000)
    found = allocation_rules._lamp_below(weight)
    expected = allocation_rules._cumulative(allocation_rules.lamp_scores(weight).numpy())
    assert found[-1] == expected[-1] == weight.numel()
    # Single and double precision may put a score on either side of a bucket's edge.
    assert np.abs(found - expected).max() <= 2 + 1e-3 * weight.numel()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_much_faster_than_sorting(dtype: torch.dtype):
    import time

    scores = scores_of("magnitudes", dtype, 2_000_000)
    removed = [7_000 * level for level in range(1, 256)]

    def cpu_seconds(find) -> float:
        began = time.process_time()
        find(scores, np.asarray(removed))
        return time.process_time() - began

    counted = min(cpu_seconds(ranking._by_equal_keys) for _ in range(3))
    sorted_ = min(cpu_seconds(ranking._by_sorting) for _ in range(3))
    assert counted < sorted_ / 3
