import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysense.errors import RaysenseError
from raysense.search.solver import Curve, solve


def random_curves(seed: int, groups: int, points: int) -> list[Curve]:
    rng = np.random.default_rng(seed)
    curves = []
    for number in range(groups):
        size = int(rng.integers(100, 5000))
        sparsity = tuple(float(s) for s in np.linspace(0, 0.9, points))
        damage = np.concatenate([[0.0], np.cumsum(rng.exponential(1.0, points - 1))])
        curves.append(Curve(f"g{number}", sparsity, tuple(int(s * size) for s in sparsity), tuple(damage)))
    return curves


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.95))
def test_as_good_as_trying_everything(seed: int, share: float) -> None:
    curves = random_curves(seed, 4, 4)
    target = int(share * sum(max(c.zeros) for c in curves))
    choices = itertools.product(*(range(len(c.zeros)) for c in curves))
    best = min(
        sum(c.damage[i] for c, i in zip(curves, pick, strict=True))
        for pick in choices
        if sum(c.zeros[i] for c, i in zip(curves, pick, strict=True)) >= target
    )
    solution = solve(curves, target)
    reached = sum(c.zeros[c.sparsity.index(solution.sparsity[c.group])] for c in curves)
    assert reached >= target
    assert solution.damage <= best * (1 + 2e-3) + 1e-9
    assert solution.bound <= best * (1 + 1e-6) + 1e-9


def test_weights_move_the_choice() -> None:
    curves = [Curve(name, (0.0, 0.5), (0, 100), (0.0, 1.0)) for name in ("a", "b")]
    assert solve(curves, 100, {"a": 5.0}).sparsity == {"a": 0.0, "b": 0.5}
    assert solve(curves, 100, {"b": 5.0}).sparsity == {"a": 0.5, "b": 0.0}


def test_too_many_zeros() -> None:
    with pytest.raises(RaysenseError, match="only 100"):
        solve([Curve("a", (0.0, 0.5), (0, 100), (0.0, 1.0))], 101)


def test_refined_curve_passes_through_the_points_and_never_falls() -> None:
    curve = Curve("a", (0.0, 0.3, 0.6, 0.9), (0, 30, 60, 90), (0.0, 1e-4, 5e-5, 0.5))
    fine = curve.refined(31)
    assert all(b >= a for a, b in itertools.pairwise(fine.damage))
    assert fine.damage[0] == pytest.approx(0.0, abs=1e-6)
    assert fine.damage[-1] == pytest.approx(0.5, rel=1e-3)
    assert fine.zeros[-1] == 90


def test_two_hundred_layers_take_less_than_five_seconds() -> None:
    import time

    curves = [curve.refined() for curve in random_curves(1, 200, 8)]
    began = time.perf_counter()
    solve(curves, sum(max(c.zeros) for c in curves) // 2)
    assert time.perf_counter() - began < 5
