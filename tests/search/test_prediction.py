"""What a test would say of an allocation that nobody tested."""

from __future__ import annotations

import numpy as np
import pytest

from raysense.metrics.intervals import quantile
from raysense.search.prediction import HeldOutForecast, Seen
from raysense.strategies.surrogate import FACTOR_SD, UTILISATION_SD

GROUPS = [f"unet:{number}" for number in range(6)]
QUIET, LOUD = 0.15, 0.25


def width(value: float, prompts: int) -> float:
    """Half of an interval's width at a value."""
    return float(quantile(prompts - 1) * np.sqrt((QUIET**2 + LOUD**2 * max(value, 0.0)) * 40 / prompts))


def measured(rng: np.random.Generator, truth: float, prompts: int, common: float) -> tuple[float, float]:
    """A value with its error, half of which all on the same prompts share, and the half-width."""
    reach = width(truth, prompts)
    error = np.sqrt(0.5) * common + np.sqrt(0.5) * rng.standard_normal()
    return truth + error * reach / quantile(prompts - 1), reach


def drawn(seed: int, candidates: int = 20) -> tuple[HeldOutForecast, np.ndarray, float]:
    """A forecast from made-up candidates, a new allocation's damages, and what a test then says of it."""
    rng = np.random.default_rng(seed)
    factors = 1 + FACTOR_SD * (rng.standard_normal(6) + rng.standard_normal())
    factors = np.maximum(factors, 0.2)
    common, seen = rng.standard_normal(), []
    for _ in range(candidates):
        damages = rng.uniform(0, 0.3, 6)
        truth = float(damages @ factors) * (1 + UTILISATION_SD * rng.standard_normal())
        value, reach = measured(rng, truth, 80, common)
        seen.append(Seen(damages, value, reach, 80, "score"))
    damages = rng.uniform(0, 0.3, 6)
    truth = float(damages @ factors) * (1 + UTILISATION_SD * rng.standard_normal())
    value, reach = measured(rng, truth, 160, rng.standard_normal())
    return HeldOutForecast(GROUPS, seen, 160, 1.4), damages, value + 1.4 * reach


def test_an_interval_contains_what_a_test_then_says_in_95_of_100() -> None:
    inside = []
    for seed in range(300):
        forecast, damages, said = drawn(seed)
        found = forecast.of(damages)
        assert found.ci_low <= found.expected <= found.ci_high
        inside.append(found.ci_low <= said <= found.ci_high)
    assert 0.92 <= np.mean(inside) <= 0.99


def test_more_candidates_say_it_more_narrowly() -> None:
    few, many = ([(f := drawn(s, n))[0].of(f[1]) for s in range(30)] for n in (3, 60))
    assert np.mean([f.ci_high - f.ci_low for f in many]) < np.mean([f.ci_high - f.ci_low for f in few])


def test_nothing_removed_uses_what_the_noise_of_a_test_uses() -> None:
    """An interval has a width where nothing is damaged; a sum of damages alone would say 0."""
    found = drawn(1)[0].of(np.zeros(6))
    assert found.expected == pytest.approx(1.4 * width(0.0, 160), rel=0.5)


def test_candidates_past_the_cliff_say_nothing() -> None:
    sane = [Seen(np.full(6, 0.1 * k), 0.2 * k, 0.1, 80, "score") for k in range(1, 6)]
    wild = [*sane, Seen(np.full(6, 0.6), 40.0, 9.0, 80, "score")]
    here, there = (HeldOutForecast(GROUPS, rows, 160, 1.0).of(np.full(6, 0.3)) for rows in (sane, wild))
    assert here == there
