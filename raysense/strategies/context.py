"""What every stage of a study knows, and what stages hand on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from raysense.allocation import Allocation, LevelGrid
from raysense.evaluation.rungs.cost import RungCosts
from raysense.feasibility import is_feasible, margins, utilisation
from raysense.names import ITERATIVE, OUTLIERS, SOLVER
from raysense.records import Bound, Evaluation
from raysense.strategies.curves import Curve
from raysense.study import Study

if TYPE_CHECKING:  # they load torch, and `raysense resolve` reads tables only
    from raysense.pruning.allocation_rules import AllocationRule
    from raysense.pruning.layers import Inventory

SAFER = (0.8, 0.9, 0.95, 1.0)
"""Shares of the best total that are validated, least sparse first."""

BEYOND = 0.025
"""Between the totals beyond the best that are validated, as a share of it."""


@dataclass(frozen=True)
class Candidate:
    """An allocation with its evaluation on the rung that judged it.

    Attributes:
        strategy: The strategy or allocation rule it comes from.
        allocation: What is pruned.
        zeros: Zeros in the selected layers by the grid's arithmetic.
        evaluation: Its last evaluation.
        feasible: Whether that lies inside the quality budget.
    """

    strategy: str
    allocation: Allocation
    zeros: int
    evaluation: Evaluation
    feasible: bool


@dataclass(frozen=True)
class Findings:
    """What a study found.

    Attributes:
        dense: Rung -> evaluation of the dense pipeline.
        curves: Sensitivity curves of the groups.
        tried: Everything that was judged at the score rung or fell before it.
        validated: Finalists judged on held-out prompts, each strategy's in the order of testing, least sparse first.
        winner: The sparsest finalist that passed, whichever strategy's; None if none passed.
        uniform: The sparsest uniform one that passed: what the gain is measured against.
    """

    dense: Mapping[str, Evaluation]
    curves: Sequence[Curve]
    tried: Sequence[Candidate]
    validated: Sequence[Candidate]
    winner: Candidate | None
    uniform: Candidate | None


@dataclass
class SearchContext:
    """A study's strategy at work.

    Attributes:
        study: The study.
        inventory: Its layers.
        grid: Their levels.
        rules: Allocation rules that need no measurement, by name.
        bounds: The quality budget.
        costs: What requests cost; replaced by what the baseline counts.
        own: Search strategies of the user's own, by name, see `raysense.strategies.user_defined`.
        swept: Group -> zeros -> probe error that a sweep in the same folder, or in the one that rows are
            taken from, has measured: not measured again.
    """

    study: Study
    inventory: Inventory
    grid: LevelGrid
    rules: Mapping[str, AllocationRule]
    bounds: Sequence[Bound]
    costs: RungCosts
    own: Mapping[str, Any] = field(default_factory=dict)
    swept: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    def zeros(self, share: float) -> int:
        """Zeros at a share of all selected weights, at most what the grid can remove."""
        return min(int(share * self.grid.n), self.grid.max_zeros)

    @cached_property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Groups of layers that have levels of their own; layers that move with another come with it."""
        own = set(self.grid.addresses)
        groups = self.inventory.groups(self.study.search.granularity)
        kept = {name: tuple(a for a in members if a in own) for name, members in groups.items()}
        return {name: members for name, members in kept.items() if members}

    @property
    def rule_names(self) -> list[str]:
        """The study's strategies that are allocation rules known beforehand: no solver, no OWL, nothing iterative."""
        others = (SOLVER, *OUTLIERS, *ITERATIVE, *self.own)
        return [name for name in self.study.search.strategies if name not in others]

    def utilisation(self, candidate: Candidate) -> float:
        """Constraint utilisation of a candidate, see `utilisation_of`."""
        return utilisation_of(candidate, self.bounds)

    @property
    def safer(self) -> tuple[float, ...]:
        """Shares of a contender's total that are validated, least sparse first."""
        return SAFER[-self.study.search.finalists :]

    @property
    def beyond(self) -> tuple[float, ...]:
        """Shares of a contender's total that are validated when it passed itself."""
        return tuple(1 + BEYOND * (step + 1) for step in range(self.study.search.beyond))


def candidate_of(
    context: SearchContext, strategy: str, allocation: Allocation, last: Evaluation
) -> Candidate:
    """A candidate by its last evaluation of the search."""
    feasible = last.rung == "score" and is_feasible(last, context.bounds)
    return Candidate(strategy, allocation, context.grid.zeros(allocation), last, feasible)


def best_of(candidates: Sequence[Candidate]) -> Candidate | None:
    """The sparsest feasible one."""
    passing = [candidate for candidate in candidates if candidate.feasible]
    return max(passing, key=lambda candidate: candidate.zeros, default=None)


def utilisation_of(candidate: Candidate, bounds: Sequence[Bound]) -> float:
    """Constraint utilisation as proposers take it: above 1 for all that is not feasible, infinite for what broke."""
    used = utilisation(candidate.evaluation, bounds)
    if used is None:
        return math.inf
    return used if candidate.feasible else max(used, 1 + 1e-6)


def headline_of(context: SearchContext, tried: Sequence[Candidate]) -> str:
    """One line about the best candidate so far."""
    best = best_of(tried)
    if best is None:
        return "nothing inside the budget yet"
    share = context.inventory.sparsities(best.evaluation.zeros)["sparsity_components"]
    parts = [
        f"{m.bound.measure} {m.value:.4g} ({'≤' if m.bound.is_upper else '≥'} {m.bound.limit:g}, margin {m.margin:.2g})"
        for m in margins(best.evaluation, context.bounds)
    ]
    return f"{share:.1%} of the components by {best.strategy}: {', '.join(parts)}"
