import itertools
import math

import numpy as np
import pytest

from raysense.strategies.curves import Curve, check_curves, least_known, removed_energy, sparsity_removing

SIZE = 10_000


def power_law(points: list[float], slope: float, seed: int = 0, noise: float = 0.0) -> Curve:
    """Damage that follows the model, with scatter."""
    rng = np.random.default_rng(seed)
    damage = 0.1 * removed_energy(np.array(points)) ** slope * np.exp(rng.normal(0, noise, len(points)))
    return Curve("g", (0.0, *points), (0, *(int(s * SIZE) for s in points)), (0.0, *damage))


def test_energy_is_the_share_of_squares_in_the_smallest_weights() -> None:
    weights = np.sort(np.abs(np.random.default_rng(0).normal(size=200_000)))
    for share in (0.1, 0.5, 0.9):
        counted = (weights[: int(share * len(weights))] ** 2).sum() / (weights**2).sum()
        assert removed_energy(np.array(share)) == pytest.approx(counted, rel=0.02)
        assert sparsity_removing(float(removed_energy(np.array(share)))) == pytest.approx(share, abs=1e-6)


def test_two_points_predict_between_and_beyond() -> None:
    curve = power_law([0.5, 0.95], 1.9)
    mean, sd = curve.predict([0.3, 0.8])
    truth = np.log(0.1 * removed_energy(np.array([0.3, 0.8])) ** 1.9)
    assert np.abs(mean - truth).max() < 0.2
    assert sd[0] > sd[1] > 0


def test_refined_curve_follows_the_points_and_never_falls() -> None:
    curve = Curve("a", (0.0, 0.3, 0.6, 0.9), (0, 30, 60, 90), (0.0, 1e-4, 5e-5, 0.5))
    fine = curve.refined(31)
    assert all(b >= a for a, b in itertools.pairwise(fine.damage))
    assert fine.damage[0] == 0.0
    assert fine.damage[-1] == pytest.approx(0.5, rel=0.1)
    assert fine.zeros[-1] == 90


def test_one_point_leans_on_the_prior_and_none_says_nothing() -> None:
    one = Curve("a", (0.0, 0.9), (0, 90), (0.0, 1e-6)).refined()
    assert one.damage[-1] == pytest.approx(1e-6, rel=0.1)
    assert 0 < one.damage[8] < 1e-6
    nothing = Curve("a", (0.0,), (0,), (0.0,))
    assert nothing.refined() is nothing


def test_the_next_point_is_where_little_is_known_and_something_happens() -> None:
    curve = power_law([0.2, 0.95], 1.7)
    sparsity, doubt = least_known(curve, 1e-9, 1.0)
    assert 0.2 < sparsity < 0.95
    closer = power_law([0.2, sparsity, 0.95], 1.7)
    assert least_known(closer, 1e-9, 1.0)[1] < doubt
    assert least_known(curve, nothing=1.0, hopeless=10.0) == (0.0, 0.0)  # no damage worth knowing
    gone = Curve("g", (0.0, 0.5, 0.95), (0, 50, 95), (0.0, 2.0, 3.0))
    assert least_known(gone, 1e-9, 1.0)[0] < 0.5  # the cliff lies below


def test_intervals_cover_what_is_left_out() -> None:
    rng = np.random.default_rng(1)
    points = [0.3, 0.5, 0.7, 0.85, 0.95]
    curves = [power_law(points, rng.normal(1.74, 0.25), seed, 0.15) for seed in range(60)]
    check = check_curves(curves)
    assert check is not None
    assert check.points == 240
    assert 0.9 <= check.coverage <= 1.0
    assert check.error < 0.3
    assert check_curves([power_law([0.5, 0.9], 1.7)]) is None
    assert math.isfinite(check.error)
