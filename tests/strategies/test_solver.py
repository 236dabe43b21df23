import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysense.errors import RaysenseError
from raysense.strategies.curves import Curve
from raysense.strategies.solver import minimax, solve


def random_curves(seed: int, groups: int, points: int) -> list[Curve]:
    rng = np.random.default_rng(seed)
    curves = []
    for number in range(groups):
        size = int(rng.integers(100, 5000))
        sparsity = tuple(float(s) for s in np.linspace(0, 0.9, points))
        damage = np.concatenate([[0.0], np.cumsum(rng.exponential(1.0, points - 1))])
        curves.append(Curve(f"g{number}", sparsity, tuple(int(s * size) for s in sparsity), tuple(damage)))
    return curves


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.95))
def test_as_good_as_trying_everything(seed: int, share: float) -> None:
    curves = random_curves(seed, 4, 4)
    target = int(share * sum(max(c.zeros) for c in curves))
    enough = [
        [c.damage[i] for c, i in zip(curves, pick, strict=True)]
        for pick in itertools.product(*(range(len(c.zeros)) for c in curves))
        if sum(c.zeros[i] for c, i in zip(curves, pick, strict=True)) >= target
    ]
    least, flattest = min(sum(damages) for damages in enough), min(max(damages) for damages in enough)
    solution, level = solve(curves, target, gap=0.0), minimax(curves, target)
    for found in (solution, level):
        assert sum(c.zeros[c.sparsity.index(found.sparsity[c.group])] for c in curves) >= target
    assert solution.damage == pytest.approx(least)
    assert solution.status == "optimal"
    assert solution.bound == pytest.approx(least)
    assert level.damage == pytest.approx(flattest)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.95))
def test_factors_count_in_both_objectives(seed: int, share: float) -> None:
    curves = random_curves(seed, 4, 4)
    weights = {curve.group: 10 ** (number - 1.5) for number, curve in enumerate(curves)}
    target = int(share * sum(max(c.zeros) for c in curves))
    enough = [
        [weights[c.group] * c.damage[i] for c, i in zip(curves, pick, strict=True)]
        for pick in itertools.product(*(range(len(c.zeros)) for c in curves))
        if sum(c.zeros[i] for c, i in zip(curves, pick, strict=True)) >= target
    ]
    assert solve(curves, target, weights, gap=0.0).objective == pytest.approx(min(map(sum, enough)))
    assert minimax(curves, target, weights).objective == pytest.approx(min(map(max, enough)))


@pytest.mark.parametrize("seed", range(4))
def test_the_bound_is_honest_and_near(seed: int) -> None:
    curves = random_curves(seed, 40, 12)
    target = sum(max(c.zeros) for c in curves) // 2
    rough, exact = solve(curves, target), solve(curves, target, gap=0.0)
    assert rough.bound <= exact.damage * (1 + 1e-9)
    assert exact.bound <= exact.damage * (1 + 1e-9)
    assert rough.objective - rough.bound <= 2e-3 * rough.objective


def test_weights_move_the_choice() -> None:
    curves = [Curve(name, (0.0, 0.5), (0, 100), (0.0, 1.0)) for name in ("a", "b")]
    assert solve(curves, 100, {"a": 5.0}).sparsity == {"a": 0.0, "b": 0.5}
    assert solve(curves, 100, {"b": 5.0}).sparsity == {"a": 0.5, "b": 0.0}


def test_too_many_zeros() -> None:
    with pytest.raises(RaysenseError, match="only 100"):
        solve([Curve("a", (0.0, 0.5), (0, 100), (0.0, 1.0))], 101)


def test_three_hundred_groups_take_well_under_a_second() -> None:
    import time

    curves = random_curves(1, 300, 24)
    began = time.process_time()
    for share in (0.3, 0.6, 0.9):
        solve(curves, int(sum(max(c.zeros) for c in curves) * share))
    assert (time.process_time() - began) / 3 < 1
