from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
import torch_fidelity
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_fidelity.metric_kid import kid_features_to_metric

from raysense.errors import RaysenseError
from raysense.metrics import mmd
from raysense.metrics.builtin import cmmd, kid
from raysense.metrics.features import EfficientNetLite0Features
from raysense.metrics.intervals import Estimate, Integers, influence_interval, influence_rise, jackknife

from .conftest import paint
from .test_gaussians import Images


def sample(n: int, seed: int, scale: float = 1.0, shift: float = 0.0, d: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * scale + shift


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1)


def test_kid_equals_torch_fidelity_with_one_full_subset() -> None:
    a, b = sample(50, 0), sample(50, 1, 1.2, 0.1)
    theirs = kid_features_to_metric(a, b, kid_subset_size=50, kid_subsets=1, verbose=False)
    assert kid.kid(a, b) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)


def test_kid_equals_torch_fidelity_from_the_images_on() -> None:
    extractor = EfficientNetLite0Features(size=32)
    a, b = paint(40, seed=1), paint(40, seed=2) * 0.8
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(a),
        input2=Images(b),
        kid=True,
        kid_subset_size=40,
        kid_subsets=1,
        feature_extractor=extractor.name,
        cuda=False,
        verbose=False,
        save_cpu_ram=True,
        cache=False,
    )
    ours = kid.kid(extractor.images(a), extractor.images(b))
    assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)


def test_kid_by_subsets_is_torch_fidelity_own() -> None:
    a, b = sample(60, 2), sample(70, 3, 1.2)
    theirs = kid_features_to_metric(a, b, kid_subset_size=30, kid_subsets=9, rng_seed=5, verbose=False)
    found = kid.kid_by_subsets(a, b, subset_size=30, subsets=9, seed=5)
    assert found == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-12)
    with pytest.raises(RaysenseError, match="subset_size"):
        kid.kid_by_subsets(a, b, subset_size=61)


def test_kid_is_unbiased() -> None:
    values = [kid.kid(sample(12, 2 * seed), sample(20, 2 * seed + 1)) for seed in range(1000)]
    mean, error = torch.tensor(values).mean(), torch.tensor(values).std() / 1000**0.5
    assert abs(float(mean)) < 3.5 * float(error)


def test_cmmd_is_the_formula() -> None:
    a, b = unit(sample(7, 4)), unit(sample(9, 5, shift=0.5))

    def mean_kernel(x: Tensor, y: Tensor) -> float:
        total = sum(math.exp(-float((p - q).square().sum()) / 200) for p in x for q in y)
        return total / (len(x) * len(y))

    expected = 1000 * (mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b))
    assert cmmd.cmmd(a, b) == pytest.approx(expected, rel=1e-9)


@given(st.integers(2, 30), st.integers(2, 30), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_cmmd_is_a_distance(n: int, m: int, seed: int) -> None:
    a, b = unit(sample(n, seed)), unit(sample(m, seed + 1, shift=0.3))
    assert cmmd.cmmd(a, b) == pytest.approx(cmmd.cmmd(b, a), abs=1e-9)
    assert cmmd.cmmd(a, b) >= -1e-9
    assert cmmd.cmmd(a, a) == pytest.approx(0, abs=1e-9)


def test_rows_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = sample(50, 6), sample(40, 7)
    whole = kid.kid(a, b)
    monkeypatch.setattr(mmd, "ROWS", 7)
    assert kid.kid(a, b) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(("estimate", "value"), [(kid.estimate, kid.kid), (cmmd.estimate, cmmd.cmmd)])
def test_intervals_agree_with_leaving_out(estimate: object, value: object) -> None:
    dense, reference = sample(96, 8), sample(96, 9)
    pruned = dense * 1.2 + 0.2 * sample(96, 10) + 0.5
    if value is cmmd.cmmd:
        dense, pruned, reference = unit(dense), unit(pruned), unit(reference)
    prompts = [index // 3 for index in range(96)]
    # The reference shows the same prompts, in another order and under other seeds: it is left out with them.
    theirs = [index % 32 for index in range(96)]
    after, before = estimate(pruned, reference), estimate(dense, reference)  # type: ignore[operator]
    quick = influence_rise(after, before, prompts, reference_ids=theirs)

    def value_of(kept: Integers) -> float:
        left = {prompts[index] for index in kept}
        of_reference = reference[[index for index, prompt in enumerate(theirs) if prompt in left]]
        return value(pruned[kept], of_reference) - value(dense[kept], of_reference)  # type: ignore[operator, no-any-return]

    slow = jackknife(value_of, prompts)
    assert quick.value == pytest.approx(slow.value, rel=1e-9)
    assert quick.ci_high - quick.ci_low == pytest.approx(slow.ci_high - slow.ci_low, rel=0.1)
    assert quick.ci_low > 0


def test_a_reference_of_the_same_prompts_is_as_far_as_any_other() -> None:
    """Images of one prompt are alike; of two sets of one pipeline KID is zero all the same, whatever their number."""
    for prompts in (8, 40):
        values, labels = [], np.arange(prompts).repeat(2)
        for study in range(400):
            subject = sample(prompts, 3 * study).repeat_interleave(2, 0)
            images, reference = (subject + 0.5 * sample(len(subject), 3 * study + k) for k in (1, 2))
            values.append(kid.estimate(images, reference, labels=(labels, labels)).value)
        mean, error = np.mean(values), np.std(values) / 400**0.5
        assert abs(mean) < 3.5 * error


@pytest.mark.parametrize("seeds", [1, 2])
def test_what_pairs_do_is_counted_once(seeds: int) -> None:
    """Of two sets from one distribution, pairs are nearly all that moves KID: a jackknife's variance is double."""
    reference, prompts = sample(300, 30), [index // seeds for index in range(24 * seeds)]
    sets = [sample(24, 31 + study).repeat_interleave(seeds, 0) for study in range(600)]
    sets = [x + 0.5 * sample(len(x), 1000 + study) for study, x in enumerate(sets)]
    reference = reference + 0.5 * sample(300, 29)
    estimates = [kid.estimate(x, reference) for x in sets]
    spread = float(torch.tensor([e.value for e in estimates]).var())
    quantile = float(scipy.stats.t.ppf(0.975, 23))

    def variance(found: list[Estimate]) -> float:
        reach = [influence_interval(replace(e, reference=None, across=None), prompts) for e in found]
        return sum(((i.ci_high - i.ci_low) / 2 / quantile) ** 2 for i in reach) / len(reach)

    plain = [Estimate(e.value, e.influence) for e in estimates]
    assert variance(plain) > 1.5 * spread
    assert variance(estimates) == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize("same", [True, False], ids=["its prompts", "apart"])
def test_intervals_count_a_reference_drawn_anew(same: bool) -> None:
    """Prompts, images and reference drawn anew each time: the interval is as wide as the values then spread."""
    prompts, rises = list(range(40)), []
    theirs = prompts * 2 if same else None
    for study in range(400):
        subject, other = sample(40, 5000 + study), sample(80, 6000 + study)
        dense = 0.8 * subject + 0.6 * sample(40, 7000 + study)
        reference = 0.8 * subject.repeat(2, 1) + 0.6 * other if same else other
        pair = kid.estimate(0.7 * dense, reference), kid.estimate(dense, reference)
        rises.append(influence_rise(*pair, prompts, reference_ids=theirs))
    quantile = float(scipy.stats.t.ppf(0.975, 39))
    said = sum(((rise.ci_high - rise.ci_low) / 2 / quantile) ** 2 for rise in rises) / len(rises)
    assert said == pytest.approx(float(torch.tensor([rise.value for rise in rises]).var()), rel=0.25)


@pytest.mark.parametrize("estimate", [kid.estimate, cmmd.estimate])
def test_intervals_hold_their_value(estimate: object) -> None:
    found = influence_interval(
        estimate(unit(sample(40, 11)), unit(sample(40, 12, shift=0.4)))  # type: ignore[operator]
    )
    assert found.ci_low < found.value < found.ci_high
    assert found.n == 40


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 2), "one extractor"),
        (torch.zeros(1, 3), torch.zeros(4, 3), "2 images a side"),
        (torch.full((4, 3), torch.inf), torch.zeros(4, 3), "NaN or infinity"),
    ],
)
def test_errors_say_what_and_why(a: Tensor, b: Tensor, words: str) -> None:
    with pytest.raises(RaysenseError, match=words):
        kid.kid(a, b)
