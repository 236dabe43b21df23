"""Which points a sweep measures: groups of layers, and how a group's total is shared out among its layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from raysense.allocation import Allocation, LevelGrid
from raysense.errors import RaysenseError
from raysense.names import OUTLIERS, SWEEP_RULES, UNIFORM
from raysense.pruning import allocation_rules
from raysense.pruning.allocation_rules import AllocationRule, Counts
from raysense.pruning.layers import Inventory
from raysense.records import EvaluationRequest
from raysense.strategies.rules import built_in_rules
from raysense.strategies.screen import runs_for, subsets
from raysense.strategies.user_defined import user_rules
from raysense.study import PointSet, Screen, Study, Sweep
from raysense.study.sweep import in_words

TOGETHER, SUBSET = "together", "subset"
"""What stands in the column `over` of points that prune several groups: those listed, and those of the screen."""


@dataclass(frozen=True)
class Point:
    """A point of a sweep.

    Attributes:
        request: What is measured.
        set: Its set of points.
        over: What its groups are: component, block, layer, kind; `TOGETHER` or `SUBSET` for several at once.
        shares: Group -> share of its own weights that was asked for.
        rules: How each group's total is shared out, as the study has it.
        method: What chooses the weights, by name.
        listed: Whether the study lists it; otherwise it was put between others to find a cliff.
    """

    request: EvaluationRequest
    set: str
    over: str
    shares: Mapping[str, float]
    rules: str | Mapping[str, str]
    method: str
    listed: bool = True

    @property
    def rule(self) -> str:
        """`rules` in one text."""
        return in_words(dict(self.rules) if isinstance(self.rules, Mapping) else self.rules)

    @property
    def groups(self) -> str:
        """Its groups in one text."""
        return " + ".join(group for group, share in self.shares.items() if share)

    @property
    def curve(self) -> tuple[object, ...]:
        """What points of one curve have in common."""
        return self.set, self.groups, self.method, self.rule, self.request.steps, self.request.rung


@dataclass
class Layout:
    """A study's layers by group, and what gives a group's total to its layers.

    Attributes:
        study: The study, with a section `sweep`.
        inventory: Its layers.
        grid: Their levels.
        counts: Rule -> what `allocation_rules.counts_below` gave of all layers; None for a plan, in which another even
            allocation stands in for each that follows from weights, and costs the same.
        denoisers: Components that have steps: only these can be pruned for a part of the trajectory.
        outliers: Each of `OUTLIERS` -> layer -> outlier ratio; empty before they are known.
    """

    study: Study
    inventory: Inventory
    grid: LevelGrid
    counts: Callable[[str], Counts] | None
    denoisers: Sequence[str]
    outliers: dict[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = set(self.grid.addresses)
        self._groups: dict[str, dict[str, tuple[str, ...]]] = {}
        for over in ("component", "block", "layer", "kind"):
            groups = self._kinds() if over == "kind" else self.inventory.groups(over)  # type: ignore[arg-type]
            kept = {name: tuple(a for a in members if a in own) for name, members in groups.items()}
            self._groups[over] = {name: members for name, members in kept.items() if members}
        self._rules: dict[tuple[str, str], tuple[AllocationRule, LevelGrid]] = {}

    @property
    def sweep(self) -> Sweep:
        """The study's section."""
        assert self.study.sweep is not None
        return self.study.sweep

    def matching(self, over: str, only: Sequence[str], field: str) -> list[str]:
        """The groups that patterns name.

        Raises:
            RaysenseError: A pattern names none.
        """
        there = self._groups[over]
        for pattern in only:
            if not any(fnmatchcase(name, pattern) for name in there):
                raise RaysenseError(
                    f"`{field}.only`: {pattern!r} matches no {over} (there are {len(there)}, such as "
                    f"{', '.join(list(there)[:3])}); layers of few steps move with larger ones and are no group"
                )
        return [name for name in there if any(fnmatchcase(name, pattern) for pattern in only)]

    def members(self, group: str, field: str) -> tuple[str, ...]:
        """The layers of a component, block, layer or kind that have levels of their own.

        Raises:
            RaysenseError: There is no such group.
        """
        for groups in self._groups.values():
            if group in groups:
                return groups[group]
        known = ", ".join(self._groups["component"])
        raise RaysenseError(
            f"`{field}` names {group!r}, which is no component, block, layer or kind of the studied layers "
            f"(components: {known}; kinds: {', '.join(self._groups['kind'])}; `raysense layers` lists the others)"
        )

    def weights(self, shares: Mapping[str, float]) -> int:
        """Weights of some groups."""
        return sum(
            self.grid.weights(address)
            for group, share in shares.items()
            if share
            for address in self.members(group, "sweep")
        )

    def allocation(self, shares: Mapping[str, float], rules: str | Mapping[str, str]) -> Allocation:
        """Some groups at their shares, each by its rule; everything else dense."""
        levels: dict[str, int] = {}
        for group, share in shares.items():
            if share:
                rule, grid = self._rule(group, rule_for(rules, group))
                found = rule(min(round(share * grid.n), grid.max_zeros))
                if both := sorted(set(found) & set(levels)):
                    raise RaysenseError(
                        f"`sweep`: {both[0]} belongs to two of the groups {', '.join(shares)}; name it once"
                    )
                levels |= found
        return Allocation(levels)

    def point(
        self,
        one: str,
        over: str,
        rung: str,
        shares: Mapping[str, float],
        rules: str | Mapping[str, str] = UNIFORM,
        method: str = "",
        steps: tuple[float, float] | None = None,
        listed: bool = True,
    ) -> Point:
        """A point, its request as plain as can be: what does not differ from the study's own is not said."""
        allocation = self.allocation(shares, rules)
        own = self.study.prune.saliency
        asked = "" if method == own or not allocation else method
        part = None if steps in (None, (0.0, 1.0)) or not allocation else steps
        request = EvaluationRequest(allocation, rung, method=asked, steps=part)
        words = method or (own if isinstance(own, str) else " or ".join(own))
        return Point(request, one, over, dict(shares), rules, words, listed)

    def points(self) -> list[Point]:
        """All that the study lists, in its order."""
        found = [
            point
            for number, one in enumerate(self.sweep.points)
            for point in self._of_set(one.name or str(number), one, f"sweep.points.{number}")
        ]
        return found + (self._screened(self.sweep.screen) if self.sweep.screen else [])

    def check(self) -> None:
        """Refuse points that cannot be measured, as far as that is known without weights.

        Raises:
            RaysenseError: A group is not there, two overlap, a denoiser's steps are asked for another component.
        """
        sweep = self.sweep
        for number, one in enumerate(sweep.points):
            field = f"sweep.points.{number}"
            groups = [*(self.matching(one.over, one.only, field) if not one.together else ())]
            groups += [group for shares in one.together for group in shares]
            for group in groups if one.steps else ():
                if group.split(":")[0] not in self.denoisers:
                    raise RaysenseError(
                        f"`{field}.steps`: {group!r} has no denoising steps, only {', '.join(self.denoisers)} has; "
                        "name the groups in `only`"
                    )
            for shares in one.together:
                for group in shares:
                    self.members(group, f"{field}.together")
                self.allocation(shares, UNIFORM)
            for entry in one.rules:
                for group in entry if isinstance(entry, Mapping) else ():
                    self.members(group, f"{field}.rules")
        if sweep.screen:
            groups = self.matching(sweep.screen.over, sweep.screen.only, "sweep.screen")
            if len(groups) < 3:
                raise RaysenseError(
                    f"`sweep.screen` combines {len(groups)} {sweep.screen.over}s, but 3 at least: use another `over`"
                )

    def _of_set(self, name: str, one: PointSet, field: str) -> Iterator[Point]:
        rung, methods = self.sweep.rung_of(one), one.saliency or ("",)
        several = [(TOGETHER, shares) for shares in one.together]
        groups = [] if one.together else self.matching(one.over, one.only, field)
        alone = [(one.over, {group: share}) for group in groups for share in self._shares(group, one)]
        if not several and not alone:
            raise RaysenseError(
                f"`{field}.zeros`: no {one.over} can lose {min(one.zeros):,} weights; ask for fewer"
            )
        sharing = itertools.product(methods, one.rules, one.steps or (None,))
        for entry, rules, steps in sharing:
            method = in_words(entry)
            for over, shares in several + alone:
                yield self.point(name, over, rung, shares, rules, method, steps)

    def _shares(self, group: str, one: PointSet) -> list[float]:
        """A group's shares in a set: as listed, or what gives the listed zeros."""
        grid = self.grid.part(self.members(group, "sweep"))
        return list(one.sparsity) or [zeros / grid.n for zeros in one.zeros if zeros <= grid.max_zeros]

    def _screened(self, screen: Screen) -> list[Point]:
        groups = self.matching(screen.over, screen.only, "sweep.screen")
        rung = self.sweep.rung_of(screen)
        alone = [self.point("screen", screen.over, rung, {group: screen.sparsity}) for group in groups]
        design = subsets(len(groups), runs_for(len(groups), screen.runs), self.study.seed)
        chosen = [
            {group: screen.sparsity for group, is_in in zip(groups, row, strict=True) if is_in}
            for row in design
        ]
        return alone + [self.point("screen", SUBSET, rung, shares) for shares in chosen]

    def _kinds(self) -> dict[str, tuple[str, ...]]:
        kinds: dict[str, list[str]] = {}
        for layer in self.inventory.layers:
            kinds.setdefault(f"{layer.component}:{layer.kind}", []).append(layer.address)
        return {name: tuple(members) for name, members in kinds.items()}

    def _rule(self, group: str, rule: str) -> tuple[AllocationRule, LevelGrid]:
        if (group, rule) not in self._rules:
            grid = self.grid.part(self.members(group, "sweep"))
            self._rules[group, rule] = self._made(rule, grid), grid
        return self._rules[group, rule]

    def _made(self, rule: str, grid: LevelGrid) -> AllocationRule:
        """A rule for some of the layers."""
        inside = set(grid.layers)
        rows = [i for i, layer in enumerate(self.inventory.layers) if layer.address in inside]
        layers = tuple(self.inventory.layers[i] for i in rows)
        inventory = replace(self.inventory, layers=layers, n_selected=sum(layer.n for layer in layers))
        if (counts := self.counts) is None:
            less = [*SWEEP_RULES, *self.sweep.rules].index(rule) * grid.base
            return lambda zeros: allocation_rules.uniform(inventory, grid, max(zeros - less, grid.base))
        if rule in OUTLIERS:
            outliers = {address: self.outliers[rule][address] for address in grid.layers}
            return lambda zeros: allocation_rules.owl(inventory, grid, zeros, outliers)
        if rule in SWEEP_RULES:
            return built_in_rules(inventory, grid, {}, None, lambda name: counts(name)[rows])[rule]
        own = user_rules([rule], inventory, grid, "sweep")
        if rule not in own:
            raise RaysenseError(f"`sweep`: {rule!r} is no allocation rule, but a search strategy")
        return own[rule]


def rule_for(rules: str | Mapping[str, str], group: str) -> str:
    """A group's rule; the one of its component where only that is named."""
    if isinstance(rules, str):
        return rules
    return rules.get(group, rules.get(group.split(":")[0], UNIFORM))
