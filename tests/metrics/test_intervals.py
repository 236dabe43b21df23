from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from raysense.errors import RaysenseError
from raysense.metrics.intervals import (
    Estimate,
    Interval,
    influence_interval,
    influence_rise,
    jackknife,
    look_levels,
    mean_interval,
    paired_drop,
)

numbers = st.floats(-100, 100, allow_subnormal=False)
samples = st.lists(numbers, min_size=2, max_size=30)


def near(interval: Interval) -> object:
    return pytest.approx((interval.value, interval.ci_low, interval.ci_high), rel=1e-9, abs=1e-9)


def triple(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.ci_low, interval.ci_high


def mean_of(x: np.ndarray, kept: np.ndarray) -> float:
    return float(x[kept].mean())


def test_mean_interval_is_the_textbook_one() -> None:
    x = np.random.default_rng(0).normal(3, 2, 25)
    expected = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    found = mean_interval(x)
    assert (found.ci_low, found.ci_high) == pytest.approx((expected.low, expected.high))
    assert found.value == pytest.approx(x.mean())
    assert found.n == 25


def test_seeds_of_one_prompt_count_as_one() -> None:
    found = mean_interval([1.0, 3.0, 6.0, 6.0], ["a", "a", "b", "b"])
    assert triple(found) == near(mean_interval([2.0, 6.0]))
    assert found.n == 4


@given(samples, numbers, st.floats(0.1, 10))
def test_mean_interval_follows_shift_and_scale(x: list[float], shift: float, scale: float) -> None:
    plain = mean_interval(x)
    moved = mean_interval([scale * value + shift for value in x])
    assert triple(moved) == pytest.approx(tuple(scale * end + shift for end in triple(plain)), abs=1e-6)
    assert plain.ci_low <= plain.value <= plain.ci_high


@given(st.lists(st.tuples(st.integers(0, 5), numbers), min_size=2, max_size=30), st.randoms())
def test_order_of_images_does_not_matter(pairs: list[tuple[int, float]], random: object) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one = mean_interval([x for _, x in pairs], [prompt for prompt, _ in pairs])
    other = mean_interval([x for _, x in shuffled], [prompt for prompt, _ in shuffled])
    assert triple(one) == pytest.approx(triple(other), abs=1e-6)


def test_a_single_prompt_says_nothing_about_others() -> None:
    found = mean_interval([1.0, 2.0], ["a", "a"])
    assert triple(found) == (1.5, -math.inf, math.inf)


def test_a_wider_level_gives_a_wider_interval() -> None:
    x = [1.0, 2.0, 4.0]
    assert mean_interval(x, level=0.99).ci_low < mean_interval(x).ci_low


def test_paired_drop_is_positive_when_pruning_lowers_the_metric() -> None:
    dense, pruned = [0.30, 0.32, 0.31], [0.28, 0.31, 0.30]
    found = paired_drop(dense, pruned)
    assert found.value == pytest.approx(0.04 / 3)
    assert triple(found) == near(mean_interval(np.subtract(dense, pruned)))


def test_pairing_removes_what_prompts_have_in_common() -> None:
    rng = np.random.default_rng(1)
    difficulty = rng.normal(0, 1, 50)
    dense, pruned = difficulty + rng.normal(0, 0.1, 50), difficulty - 0.2 + rng.normal(0, 0.1, 50)
    paired = paired_drop(dense, pruned)
    assert paired.ci_low > 0
    assert paired.ci_high - paired.ci_low < mean_interval(dense).ci_high - mean_interval(dense).ci_low


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    x = np.random.default_rng(2).normal(0, 1, 20)
    found = jackknife(lambda kept: float(x[kept].mean()), 20, groups=20)
    assert triple(found) == near(mean_interval(x))


def test_jackknife_leaves_whole_prompts_out() -> None:
    x = np.random.default_rng(3).normal(0, 1, 24)
    prompts = [index % 8 for index in range(24)]
    seen: list[int] = []

    def value_of(kept: np.ndarray) -> float:
        seen.append(len(kept))
        assert all(sum(prompts[i] == p for i in kept) in (0, 3) for p in range(8))
        return float(x[kept].mean())

    assert triple(jackknife(value_of, prompts)) == near(mean_interval(x, prompts))
    assert seen == [24, *[21] * 8]


def test_jackknife_with_unequal_groups_covers() -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(400):
        x = rng.exponential(1, 50)
        found = jackknife(partial(mean_of, x), 50, groups=12)
        hits += found.ci_low < 1 < found.ci_high
    assert 0.90 < hits / 400 < 0.98


@given(samples, st.integers(1, 4))
def test_the_influence_of_a_mean_gives_the_mean_interval(x: list[float], seeds: int) -> None:
    values = np.repeat(np.array(x), seeds)
    prompts = np.repeat(np.arange(len(x)), seeds).tolist()
    estimate = Estimate(float(values.mean()), values - values.mean())
    assert triple(influence_interval(estimate, prompts)) == pytest.approx(
        triple(mean_interval(values, prompts)), rel=1e-6, abs=1e-6
    )


def test_influence_rise_cancels_what_is_common() -> None:
    common = np.random.default_rng(5).normal(0, 1, 12)
    found = influence_rise(Estimate(3.0, common), Estimate(2.0, common))
    assert triple(found) == (1.0, 1.0, 1.0)


def test_influence_of_a_single_prompt_is_infinitely_wide() -> None:
    found = influence_interval(Estimate(1.0, np.zeros(2)), ["a", "a"])
    assert triple(found) == (1.0, -math.inf, math.inf)


@given(
    st.lists(st.floats(0.01, 1), min_size=1, max_size=6, unique=True), st.floats(0.001, 0.2), st.floats(1, 4)
)
@settings(max_examples=50)
def test_looks_never_spend_more_than_alpha(fractions: list[float], alpha: float, power: float) -> None:
    levels = look_levels(sorted(fractions), alpha, power)
    assert all(0 < level <= 1 for level in levels)
    assert sum(1 - level for level in levels) <= alpha + 1e-12


def test_one_look_at_the_whole_sample_is_an_ordinary_interval() -> None:
    assert look_levels([1.0]) == pytest.approx([0.95])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_interval([]), "`values`"),
        (lambda: mean_interval([1.0, math.nan]), "1 of 2"),
        (lambda: mean_interval([1.0, 2.0], ["a"]), "`prompt_ids`"),
        (lambda: mean_interval([1.0, 2.0], level=95), "`level`"),
        (lambda: paired_drop([1.0], [1.0, 2.0]), "pair up"),
        (lambda: influence_rise(Estimate(0, np.zeros(2)), Estimate(0, np.zeros(3))), "must pair"),
        (lambda: jackknife(lambda kept: 0.0, 1), "at least 2 prompts"),
        (lambda: look_levels([0.5, 0.25]), "ascend"),
        (lambda: look_levels([0.5, 1.5]), "ascend"),
        (lambda: look_levels([]), "ascend"),
    ],
)
def test_errors_say_what_and_why(call: object, words: str) -> None:
    with pytest.raises(RaysenseError, match=words):
        call()  # type: ignore[operator]
