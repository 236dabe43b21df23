"""A screening design: which pairs damage more together than apart, without measuring every pair. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raysense.metrics.intervals import LEVEL, quantile

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

ERROR = 0.05
"""Probability of finding a pair where everything adds up, at most."""

PERMUTATIONS = 1999

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


@dataclass(frozen=True)
class Pair:
    """Two groups that damage more together than apart, or less.

    Attributes:
        first: Number of the one.
        second: Number of the other.
        effect: Loss of both together beyond the sum of each alone, in the measure's unit.
        ci_low: Lower end of its interval, simultaneous over all pairs that were looked at.
        ci_high: Upper end.
        p: Probability of one as large anywhere, were there none: corrected for looking at all pairs.
    """

    first: int
    second: int
    effect: float
    ci_low: float
    ci_high: float
    p: float


def interactions(design: Bools, loss: Floats, alone: Floats, seed: int = 0) -> list[Pair]:
    """Which pairs of groups do not add up, found one after the other, the strongest first.

    The loss of a subset is modelled as what each of its groups does plus what pairs do together. Of all pairs the one
    is looked for that explains most of what the groups alone leave open; it counts if so much is explained by chance in
    less than `ERROR` of `PERMUTATIONS` shuffles of what is left open, any pair being allowed to win each of them
    (Westfall & Young 1993, with residuals permuted as by Freedman & Lane 1983). Then the next one, until one does not
    count: so the probability that anything is found where all adds up is at most `ERROR`.

    Args:
        design: (runs, groups), see `subsets`.
        loss: (runs,) what each subset lost, against the dense pipeline.
        alone: (groups,) what each group lost alone.
        seed: Of the shuffles.
    """
    count = design.shape[1]
    rows = np.concatenate([np.eye(count), design.astype(np.float64)])
    told = np.concatenate([alone, loss])
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    columns = np.stack([rows[:, i] * rows[:, j] for i, j in pairs], axis=1)
    rng = np.random.default_rng([seed, count, len(loss)])
    base, chosen, chances = rows, list[int](), list[float]()
    while len(chosen) < len(loss) // 4:
        place, chance = _strongest(base, columns, told, rng)
        if place is None or chance > ERROR:
            break
        chosen.append(place)
        chances.append(chance)
        base = np.concatenate([base, columns[:, [place]]], axis=1)
    if not chosen:
        return []
    fitted, _, _, _ = np.linalg.lstsq(base, told, rcond=None)
    freedom = len(told) - base.shape[1]
    spread = float(((told - base @ fitted) ** 2).sum() / freedom)
    errors = np.sqrt(spread * np.diag(np.linalg.pinv(base.T @ base)))
    reach = quantile(freedom, 1 - (1 - LEVEL) / len(pairs)) * errors
    found = []
    for number, (place, chance) in enumerate(zip(chosen, chances, strict=True), count):
        effect, half = float(fitted[number]), float(reach[number])
        found.append(Pair(*pairs[place], effect, effect - half, effect + half, chance))
    return found


def _strongest(
    base: Floats, columns: Floats, told: Floats, rng: np.random.Generator
) -> tuple[int | None, float]:
    """The column that explains most beside `base`, and the probability of so much by chance."""
    basis, _ = np.linalg.qr(base)

    def left_open(values: Floats) -> Floats:
        return np.asarray(values - basis @ (basis.T @ values))

    apart = left_open(columns)
    sizes = np.sqrt((apart**2).sum(axis=0))
    free = sizes > 1e-6 * np.sqrt(len(told))
    if not free.any():
        return None, 1.0
    apart = np.where(free, apart / np.where(free, sizes, 1.0), 0.0)
    rest = left_open(told)

    def share(open_: Floats) -> Floats:
        """Of each row: the share of its squares that each column explains."""
        squares = np.maximum((open_**2).sum(axis=-1, keepdims=True), 1e-300)
        return np.asarray((open_ @ apart) ** 2 / squares)

    own = share(rest)
    shuffled = np.stack([rng.permutation(rest) for _ in range(PERMUTATIONS)])
    chance = share(left_open(shuffled.T).T).max(axis=1)
    place = int(own.argmax())
    return place, float((1 + (chance >= own[place]).sum()) / (1 + PERMUTATIONS))
