"""The early stop errs at most at its stated rate, over real intervals of simulated climbs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from raysense.metrics.intervals import paired_drop
from raysense.records import Bound, Evaluation, Measure
from raysense.strategies.verdict import competitors, held_out_stretch, hopeless, look_share, preview_stretch
from raysense.study import Rungs, load

RUNGS = Rungs.model_validate({"preview": {"prompts": 24}, "score": {"prompts": 96}})
BOUND = Bound("constraints.clip_score.max_drop", "clip_score_drop", True, 0.01)


def evaluation(drops: np.ndarray) -> Evaluation:
    found = paired_drop(drops, np.zeros_like(drops))
    measure = Measure(found.value, found.ci_low, found.ci_high, found.n, "")
    return Evaluation(measures={"clip_score_drop": measure}, zeros=0, images=0, nfe=0, seconds=0.0)


def share_stopped(mean: float, prompts: int, studies: int = 3000) -> float:
    rng, rule = np.random.default_rng(0), hopeless([BOUND], RUNGS)
    return sum(rule.says_stop(evaluation(rng.normal(mean, 0.02, prompts))) for _ in range(studies)) / studies


def test_a_candidate_on_the_bound_is_dropped_at_the_preview_as_often_as_its_share_of_the_error() -> None:
    # One side of 5 % times 24 / 96; three Monte-Carlo standard errors of slack.
    assert share_stopped(0.01, 24) == pytest.approx(0.025 * 24 / 96, abs=3 * (0.006 / 3000) ** 0.5)


def test_a_hopeless_candidate_is_dropped_at_the_preview() -> None:
    assert share_stopped(0.05, 24) > 0.95


def test_more_bounds_share_the_error_and_a_preview_of_everything_has_all_of_it() -> None:
    assert 1 < preview_stretch(RUNGS, 1) < preview_stretch(RUNGS, 4)
    same = Rungs.model_validate({"preview": {"prompts": 96}, "score": {"prompts": 96}})
    assert preview_stretch(same, 1) == pytest.approx(1)


@pytest.mark.parametrize(
    ("strategies", "compare", "count"),
    [
        (["uniform"], False, 1),
        (["solver", "lamp"], False, 1),  # the best of all alone
        (["uniform", "lamp", "solver"], False, 2),
        (["uniform", "lamp", "solver"], True, 4),  # and the joint search
    ],
)
def test_all_that_may_compete_share_the_error_of_one_interval(
    strategies: list[str], compare: bool, count: int
) -> None:
    study = load(
        overrides=[f"search.strategies=[{', '.join(strategies)}]", f"search.compare={str(compare).lower()}"]
    )
    assert competitors(study) == count
    stretch = held_out_stretch(study)
    assert stretch == pytest.approx(1) if count == 1 else stretch > 1
    # A normal value exactly on the bound: each chain's first test passes it in 2.5 % / count of cases, or fewer.
    passed = 1 - stats.norm.cdf(stretch * stats.norm.ppf(0.975))
    assert 0.8 * 0.025 / count < passed <= 0.025 / count + 1e-12


def test_all_looks_together_err_as_often_as_one_and_a_half() -> None:
    shares = [look_share(look) for look in range(1, 10_000)]
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    assert 1.499 < sum(shares) < 1.5
    with pytest.raises(ValueError, match="look 0"):
        look_share(0)


def test_a_later_look_is_judged_by_what_is_left() -> None:
    def stretch(looks: int) -> float:
        return held_out_stretch(load(overrides=[f"search.earlier_looks={looks}"]))

    assert stretch(0) == held_out_stretch(load())
    assert stretch(0) < stretch(1) < stretch(2) < stretch(20)
    left = 1 - stats.norm.cdf(stretch(2) * stats.norm.ppf(0.975))
    assert 0 < left <= 0.025 / 2 * look_share(3)
