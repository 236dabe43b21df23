"""Iterative strategies on small problems whose damage is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.landscapes import Landscape, run
from raysense.allocation import Allocation, LevelGrid
from raysense.strategies.baselines import Random, Switches, Tpe
from raysense.strategies.evopress import evopress, offspring_of
from raysense.strategies.proposers import Proposer, scaled, switched

GRID = LevelGrid([(f"unet:layer.{i}", 1_000 * (i + 1)) for i in range(10)], 0.95)
GROUPS = {name: (name,) for name in GRID.addresses}


def damage(allocation: Allocation) -> float:
    """The first layers are touchy."""
    return sum(
        8.0**-i * (GRID.zeros_at(name, allocation[name]) / GRID.weights(name)) ** 3 * 10
        for i, name in enumerate(GRID.addresses)
    )


PROPOSERS: dict[str, Callable[[], Proposer]] = {
    "random": lambda: Random(GRID, GROUPS, 1),
    "switches": lambda: Switches(GRID, 1),
    "tpe": lambda: Tpe(GRID, GROUPS, 1),
}


@pytest.mark.parametrize("name", PROPOSERS)
def test_contract_of_every_proposer(name: str) -> None:
    """Repeatable from the seed, valid levels, and never a wrong word about what is feasible."""
    first, second = PROPOSERS[name](), PROPOSERS[name]()
    start = GRID.uniform(0.2)
    for proposer in (first, second):
        proposer.tell(start, damage(start))
    for _ in range(15):
        one, two = first.propose(), second.propose()
        assert one == two
        GRID.validate(one)
        first.tell(one, damage(one))
        second.tell(two, damage(two))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0.1, 0.8))
def test_switches_keep_the_total_and_scaling_meets_it(seed: int, share: float) -> None:
    allocation = GRID.uniform(share)
    moved = switched(GRID, allocation, np.random.default_rng(seed), 3)
    assert GRID.zeros(moved) == GRID.zeros(allocation)
    wanted = int(0.9 * GRID.zeros(allocation))
    assert wanted - GRID.base < GRID.zeros(scaled(GRID, moved, wanted)) <= wanted


def test_evopress_beats_uniform_at_the_same_total() -> None:
    start = GRID.uniform(0.5)
    procedure = evopress(GRID, start, 0, push=False)
    stage, pool = next(procedure)
    for _ in range(3 * 15):
        assert all(GRID.zeros(allocation) == GRID.zeros(start) for allocation in pool)
        stage, pool = procedure.send([damage(allocation) for allocation in pool])
    assert stage == 0
    survivor = min(pool, key=damage)
    assert damage(survivor) < 0.5 * damage(start)


def test_evopress_sends_64_then_8_then_2_with_the_parent() -> None:
    procedure = evopress(GRID, GRID.uniform(0.5), 0, push=False)
    stage, pool = next(procedure)
    sizes = []
    for _ in range(3):
        sizes.append((stage, len(pool)))
        stage, pool = procedure.send([damage(allocation) for allocation in pool])
    assert sizes == [(0, 64), (1, 8), (2, 3)]


def test_evopress_draws_offspring_anew_until_all_differ_and_prefers_few_switches() -> None:
    parent = GRID.uniform(0.5)
    pool = offspring_of(GRID, parent, np.random.default_rng(0))
    assert len(set(pool)) == 64
    assert parent not in pool
    changed = [sum(child[a] != parent[a] for a in GRID.addresses) for child in pool]
    # Least of two draws of 1 to 3: 5 in 9 switch once.
    assert sum(count <= 2 for count in changed) > len(pool) / 3
    alone = LevelGrid([("unet:only", 1_000)], 0.95)
    assert offspring_of(alone, alone.uniform(0.5), np.random.default_rng(0)) == [alone.uniform(0.5)]


def test_learning_corrects_what_the_probe_gets_wrong() -> None:
    """On a problem whose probe misleads, the joint search finds more than the solver alone, and nears the optimum."""
    gains = []
    for seed in (0, 1):
        problem = Landscape("misled", 20, seed)
        best, _ = problem.optimum()
        solver, joint = (run(problem, name, 500, seed).zeros for name in ("solver", "raysense"))
        assert joint >= solver
        assert joint > 0.95 * best
        gains.append(joint / solver)
    assert max(gains) > 1.005
