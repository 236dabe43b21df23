"""What a test would say of a total that nobody tested."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from raysense.metrics.intervals import quantile
from raysense.search.prediction import SHARED, HeldOutForecast, Seen

QUIET, LOUD, STRETCH = 0.1, 0.2, 1.4
COUNTS = {"score": 80, "validation": 160}


def width(value: float, prompts: int) -> float:
    """Half of an interval's width at a value."""
    return float(quantile(prompts - 1) * np.sqrt((QUIET**2 + LOUD**2 * max(value, 0.0)) * 80 / prompts))


class Pipeline:
    """Damage follows a power of the sum, with a misfit of a tenth; prompts suffer alike from all candidates."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.level, self.exponent = self.rng.uniform(0.4, 0.8), self.rng.uniform(0.8, 2.5)
        self.common = {rung: self.rng.standard_normal() for rung in COUNTS}

    def seen(self, damage: float, rung: str) -> Seen:
        """A measured candidate."""
        truth = self.level * damage**self.exponent * (1 + 0.1 * self.rng.standard_normal())
        error = SHARED**0.5 * self.common[rung] + (1 - SHARED) ** 0.5 * self.rng.standard_normal()
        reach = width(truth, COUNTS[rung])
        return Seen(damage, truth + error * reach / quantile(COUNTS[rung] - 1), reach, COUNTS[rung], rung)

    def candidates(self, climb: int = 5, held_out: int = 3) -> list[Seen]:
        """What a study has measured."""
        found = [self.seen(self.rng.uniform(0.6, 1.4), "score") for _ in range(climb)]
        return found + [self.seen(self.rng.uniform(0.6, 1.1), "validation") for _ in range(held_out)]

    def said(self, damage: float) -> float:
        """By a test's worse end."""
        tested = self.seen(damage, "validation")
        return tested.value + STRETCH * tested.width


def test_an_interval_contains_what_a_test_then_says_in_95_of_100() -> None:
    inside = []
    for seed in range(200):
        pipeline = Pipeline(seed)
        forecast = HeldOutForecast(pipeline.candidates(), 160, STRETCH)
        damage = pipeline.rng.uniform(0.5, 1.6)
        found = forecast.of(damage)
        assert found.ci_low <= found.expected <= found.ci_high
        inside.append(found.ci_low <= pipeline.said(damage) <= found.ci_high)
    assert 0.92 <= np.mean(inside) <= 0.995


def reach(forecast: HeldOutForecast, damage: float = 1.0) -> float:
    found = forecast.of(damage)
    return found.ci_high - found.ci_low


def test_more_candidates_and_held_out_ones_say_it_more_narrowly() -> None:
    few, many, held = (
        np.mean([reach(HeldOutForecast(Pipeline(s).candidates(*counts), 160, STRETCH)) for s in range(20)])
        for counts in ((2, 0), (12, 0), (2, 10))
    )
    assert held < many < few


def test_candidates_of_another_kind_say_less() -> None:
    own = Pipeline(3).candidates()
    others = [replace(row, alike=False) for row in own]
    assert reach(HeldOutForecast(others, 160, STRETCH)) > 1.3 * reach(HeldOutForecast(own, 160, STRETCH))


def test_next_to_nothing_removed_uses_what_the_noise_of_a_test_uses() -> None:
    """An interval has a width where nothing is damaged; a curve through nothing alone would say 0."""
    found = HeldOutForecast(Pipeline(1).candidates(12, 12), 160, STRETCH).of(1e-6)
    assert found.expected == pytest.approx(STRETCH * width(0.0, 160), rel=0.6)


def test_candidates_past_the_cliff_say_nothing() -> None:
    sane = Pipeline(2).candidates()
    wild = [*sane, Seen(3.0, 40.0, 9.0, 80, "score")]
    here, there = (HeldOutForecast(rows, 160, 1.0).of(1.0) for rows in (sane, wild))
    assert here == there


def test_without_candidates_anything_may_be() -> None:
    found = HeldOutForecast([], 160, 1.0).of(1.0)
    assert found.ci_low < 0.1
    assert found.ci_high > 5
