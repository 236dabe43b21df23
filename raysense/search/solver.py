"""Curves and a wanted total in, an allocation out: only mathematics, exact by mixed-integer programming."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.interpolate import PchipInterpolator
from scipy.optimize import Bounds, LinearConstraint, milp

from raysense.errors import RaysenseError


@dataclass(frozen=True)
class Curve:
    """How one group's damage grows with its zeros, the rest being dense.

    Attributes:
        group: The group's address.
        sparsity: Measured sparsities of the group, ascending, from 0.
        zeros: Zeros at these sparsities.
        damage: Damage at these sparsities, from 0; any unit in which damages of groups may be added.
    """

    group: str
    sparsity: tuple[float, ...]
    zeros: tuple[int, ...]
    damage: tuple[float, ...]

    def refined(self, points: int = 24) -> Curve:
        """The curve at `points` even sparsities, by monotone cubic interpolation of the damage's logarithm.

        Damage that falls from one sparsity to the next is taken as not rising: pruning more never earns credit.
        """
        if len(self.sparsity) < 3:
            return self
        rising = np.maximum.accumulate(np.asarray(self.damage))
        # Damage spans many decades: its logarithm is smooth. The floor keeps the dense point finite.
        floor = max(float(rising[-1]) * 1e-6, 1e-12)
        s = np.linspace(0.0, self.sparsity[-1], points)
        log = PchipInterpolator(self.sparsity, np.log(rising + floor))(s)
        damage = np.maximum(np.exp(log) - floor, 0.0)
        zeros = np.interp(s, self.sparsity, self.zeros)
        return Curve(self.group, tuple(s), tuple(int(z) for z in zeros), tuple(float(d) for d in damage))


@dataclass(frozen=True)
class Solution:
    """What the solver chose.

    Attributes:
        sparsity: Group -> chosen sparsity.
        damage: Predicted sum of damages.
        bound: No choice has a smaller sum than this.
        status: HiGHS's own words.
    """

    sparsity: Mapping[str, float]
    damage: float
    bound: float
    status: str


def solve(curves: Sequence[Curve], zeros: int, weights: Mapping[str, float] | None = None) -> Solution:
    """Least total damage with at least `zeros` zeros: a multiple-choice knapsack, solved exactly by HiGHS.

    minimise sum_g w_g · damage_g(x_g)  subject to  sum_g zeros_g(x_g) ≥ zeros, one point x_g a group.

    Args:
        curves: One a group.
        zeros: Zeros wanted in all.
        weights: Group -> factor on its damage; 1 where missing.

    Raises:
        RaysenseError: The curves cannot give that many zeros.
    """
    most = sum(max(curve.zeros) for curve in curves)
    if zeros > most:
        raise RaysenseError(f"zeros: {zeros:,} wanted, but the measured curves reach only {most:,}")
    owner = np.repeat(np.arange(len(curves)), [len(curve.zeros) for curve in curves])
    factor = np.array([(weights or {}).get(curve.group, 1.0) for curve in curves])
    damage = np.concatenate([curve.damage for curve in curves]) * factor[owner]
    gain = np.concatenate([np.asarray(curve.zeros, dtype=np.float64) for curve in curves])
    # HiGHS works to absolute tolerances: bring both sides to order one.
    damage_unit, gain_unit = max(float(damage.max()), 1e-300), float(gain.max())
    one_each = sparse.csr_matrix((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    result = milp(
        damage / damage_unit,
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(sparse.csr_matrix(gain / gain_unit), zeros / gain_unit, np.inf),
        ],
        integrality=np.ones(len(owner), dtype=np.int64),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-3},
    )
    if result.x is None:
        raise RaysenseError(f"zeros: no allocation with {zeros:,} zeros was found ({result.message})")
    chosen = np.flatnonzero(result.x > 0.5)
    first = np.concatenate([[0], np.cumsum([len(curve.zeros) for curve in curves])])
    sparsity = {curves[owner[i]].group: curves[owner[i]].sparsity[i - first[owner[i]]] for i in chosen}
    bound = getattr(result, "mip_dual_bound", None)
    return Solution(
        sparsity,
        float(damage[chosen].sum()),
        float(bound) * damage_unit if bound is not None else float("nan"),
        str(result.message),
    )
