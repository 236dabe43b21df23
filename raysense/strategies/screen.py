"""A screening design: which pairs damage more together than apart, without measuring every pair. Pure arithmetic."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]

TRIES = 200
"""Random designs of which the most balanced is taken."""


def subsets(count: int, runs: int, seed: int) -> Bools:
    """Which of `count` groups are pruned in each run: half of them, in pairs of a subset and its complement.

    So every group stands in half of the runs, and what pairs do together does not look like what a group does alone
    (a foldover). Of `TRIES` random designs the one is taken whose columns hang together least.

    Args:
        count: Groups, at least 3.
        runs: Even.
        seed: The study's.

    Returns:
        (runs, count), True where a group is pruned.
    """
    rng = np.random.default_rng([seed, count, runs])
    best: tuple[float, Bools] | None = None
    for _ in range(TRIES):
        chosen = np.zeros((runs // 2, count), dtype=bool)
        for row in chosen:
            row[rng.permutation(count)[: count // 2]] = True
        design = np.concatenate([chosen, ~chosen])
        signs = np.where(design, 1.0, -1.0)
        together = np.abs(signs.T @ signs / runs - np.eye(count)).max()
        if best is None or together < best[0]:
            best = float(together), design
    assert best is not None
    return best[1]


def runs_for(count: int, asked: int | None) -> int:
    """How many subsets are measured for so many groups: an even number."""
    wanted = max(24, 3 * count) if asked is None else asked
    return wanted + wanted % 2
