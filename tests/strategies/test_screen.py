"""The screening design: balanced, and it finds what is planted and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from raysense.strategies.screen import interactions, runs_for, subsets

GROUPS = 12


def losses(planted: dict[tuple[int, int], float], seed: int, noise: float = 0.01) -> tuple[np.ndarray, ...]:
    """Subsets, what they lost and what each group lost alone; pairs of `planted` lose so much more together."""
    design = subsets(GROUPS, runs_for(GROUPS, None), seed)
    rng = np.random.default_rng(seed)
    own = rng.uniform(0.0, 0.05, GROUPS)
    loss = design @ own + sum(effect * design[:, i] * design[:, j] for (i, j), effect in planted.items())
    return design, loss + noise * rng.standard_normal(len(loss)), own + noise * rng.standard_normal(GROUPS)


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_interaction_is_found_with_its_size(seed: int) -> None:
    found = interactions(*losses({(2, 7): 0.08}, seed), seed=seed)
    assert [(pair.first, pair.second) for pair in found][:1] == [(2, 7)]
    assert len(found) <= 2
    assert found[0].p < 0.01
    assert found[0].ci_low < 0.08 < found[0].ci_high
    assert found[0].ci_low > 0


def test_two_are_found_and_one_that_protects_has_the_other_sign() -> None:
    found = interactions(*losses({(0, 1): 0.1, (4, 9): -0.07}, 3))
    signs = {(pair.first, pair.second): np.sign(pair.effect) for pair in found}
    assert signs[0, 1] == 1
    assert signs[4, 9] == -1


def test_where_all_adds_up_nothing_is_found_but_for_the_error_that_is_allowed() -> None:
    wrong = sum(bool(interactions(*losses({}, seed), seed=seed)) for seed in range(100, 140))
    assert wrong <= 5  # of 40 at 5 %: more than 5 in 1.4 % of cases


def test_without_noise_an_additive_control_has_none() -> None:
    assert not interactions(*losses({}, 1, noise=1e-9))
