"""Another budget, fewer components, less sparse layers: answered from stored evaluations, without a new image."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysense.allocation import Allocation, LevelGrid
from raysense.errors import RaysenseError
from raysense.feasibility import by_value, is_feasible, utilisation
from raysense.metrics.builtin.probe_error import PROBE_ERROR
from raysense.names import JOINT, SOLVER, UNIFORM
from raysense.records import Bound, Evaluation
from raysense.search.prediction import Forecast, HeldOutForecast, Seen
from raysense.store.rows import levels_of, strategy_of
from raysense.store.store import Store
from raysense.strategies.context import Candidate, utilisation_of
from raysense.strategies.curves import Curve, damages_of
from raysense.strategies.solver import OBJECTIVES
from raysense.strategies.swept_curves import is_ordinary, probed, swept_points
from raysense.strategies.verdict import held_out_stretch
from raysense.study import Study, parse, revise

CHANGEABLE = (
    "constraints",
    "prune.components",
    "prune.max_layer_sparsity",
    "search.granularity",
    "budget",
    "name",
)
_BISECTIONS = 20
_LEAST_DAMAGE = 1e-12
_DENOMINATORS = ("selected", "prunable", "components", "pipeline")


def resolve(run: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The sparsest allocation that the study's measured curves and candidates predict to be inside other bounds.

    The probe curves say what each group costs, and the solver shares each total out by them, as it did in the study;
    the candidates of the search say what so much damage uses of the budget (see `HeldOutForecast`). Measured candidates
    that meet the new bounds are named beside it.

    Args:
        run: A study's folder or address.
        overrides: ``key=value`` pairs below `CHANGEABLE`.

    Returns:
        Plain data: ``measured`` (the sparsest stored candidate inside the bounds, those of held-out prompts first, or
        None) and ``predicted``: sparsities, levels, and what a test on the study's held-out prompts is expected to say:
        the utilisation of the budget by the worse end of its interval (1 lies on the bound), with a 95 % interval. It
        is the sparsest total whose whole interval is inside, below what already failed; the dense pipeline, and
        ``supported`` false, where no candidate is inside.

    Raises:
        RaysenseError: No study, no curves, something else is changed, or the dense pipeline misses a bound.
    """
    stored = _read(run, overrides)
    study, grid, bounds = stored.study, stored.grid, stored.study.constraints.bounds()
    _refuse_dense(run, stored.evaluations, bounds)
    stretch = held_out_stretch(study)
    rows = _evidence(stretch, grid, stored.evaluations, stored.levels, bounds, stored.swept)
    prediction = _Prediction(stored, rows, stretch)
    allowed = set(study.prune.components)
    fitting = [
        row
        for row in rows
        if all(
            a.split(":")[0] in allowed and _share(grid, a, row.allocation) <= study.prune.max_layer_sparsity
            for a in row.allocation
        )
    ]
    inside = [row for row in fitting if row.feasible]
    # Held-out rows come first: a total that passed on the search's prompts alone says less.
    measured = max(inside, key=lambda row: (row.evaluation.rung == "validation", row.zeros), default=None)
    # Where no stored row is inside, nothing says where the bound lies: nothing is predicted.
    supported = any(row.feasible and row.zeros for row in rows)
    most = int(min(prediction.most, _ceiling(fitting)))
    best = prediction.sparsest(most) if supported else Allocation()
    forecast = prediction.forecast(best) if best else Forecast(0.0, 0.0, 0.0)
    denominators = stored.denominators
    return {
        "study": study.name,
        "constraints": study.model_dump(mode="json")["constraints"],
        "components": list(study.prune.components),
        "predicted": {
            **_shares(grid.zeros(best), denominators),
            "supported": supported,
            "utilisation": forecast.expected,
            "utilisation_ci_low": forecast.ci_low,
            "utilisation_ci_high": forecast.ci_high,
            "allocation": best.key,
            "levels": dict(best),
        },
        "measured": None if measured is None else _measured(measured, denominators),
    }


def _measured(row: Candidate, denominators: Mapping[str, int]) -> dict[str, Any]:
    """A stored candidate as plain data."""
    return {
        **_shares(row.evaluation.zeros, denominators),
        "rung": row.evaluation.rung,
        "allocation": row.allocation.key,
    }


@dataclass(frozen=True)
class _Stored:
    """What a study has stored, and what it is asked.

    Attributes:
        study: The study with what is changed.
        grid: Levels of its layers.
        groups: Group -> its layers that have levels of their own.
        levels: Allocation -> layer -> level.
        evaluations: All of them.
        curves: Sensitivity curves of the groups.
        denominators: What sparsities are shares of, for the components that are asked for.
        swept: Keys of a sweep's points that are pruned as the study prunes.
        alike: Those of them that prune each group evenly, as its curve was measured.
        strange: Whether it is asked to prune other layers than its own candidates.
    """

    study: Study
    grid: LevelGrid
    groups: Mapping[str, Sequence[str]]
    levels: Mapping[str, Mapping[str, int]]
    evaluations: Sequence[Evaluation]
    curves: Sequence[Curve]
    denominators: Mapping[str, int]
    swept: frozenset[str]
    alike: frozenset[str]
    strange: bool


def asked_of(old: Study, overrides: Sequence[str]) -> Study:
    """The study that a question makes of another one: what is changed, and another look at its held-out prompts.

    Raises:
        RaysenseError: Something is changed that stored rows cannot answer.
    """
    study = revise(old, overrides)
    _check_changes(old, study)
    if study.constraints == old.constraints:
        return study
    # Asked after the study's own verdict: one more look at the same held-out prompts.
    looks = study.search.earlier_looks + 1
    return study.model_copy(update={"search": study.search.model_copy(update={"earlier_looks": looks})})


def _read(run: str, overrides: Sequence[str]) -> _Stored:
    store = Store.open(run)
    record = store.study
    assert record is not None
    old = parse(record["definition"])
    study = asked_of(old, overrides)
    layers = store.table("layers").to_pylist()
    grid = LevelGrid([(row["layer"], row["weights"]) for row in layers], old.prune.max_layer_sparsity)
    if any(row["levels"] and grid.step(row["layer"]) != row["step"] for row in layers):
        raise RaysenseError("`prune` gives layers fixed levels in this study; there is nothing to solve anew")
    levels = levels_of(store.table("allocations"))
    own = set(grid.addresses)
    groups: dict[str, list[str]] = {}
    for row in layers:
        if row["layer"] in own:
            # A sweep may have curves of another granularity than the study's own.
            asked = (
                row["group"] if study.search.granularity == old.search.granularity else _group_of(row, study)
            )
            groups.setdefault(asked, []).append(row["layer"])
    evaluations = store.evaluations()
    points = store.table("points").to_pylist()
    curves = _curves(_measured_points(study, points, evaluations, levels, groups, grid), groups, grid)
    if not curves:
        raise RaysenseError(
            f"`{run}` has no sensitivity curves of {study.search.granularity}s; run the study with `solver` in "
            f"`search.strategies`, or a sweep over them (`over: {study.search.granularity}`)"
        )
    same = study.prune.components == old.prune.components
    denominators = record["denominators"] if same else _denominators(study)
    ordinary = [point for point in points if is_ordinary(point, old)]
    swept = frozenset(point["key"] for point in ordinary)
    curved = (UNIFORM, study.search.granularity)
    alike = frozenset(point["key"] for point in ordinary if (point["rule"], point["granularity"]) == curved)
    strange = not same or study.prune.max_layer_sparsity != old.prune.max_layer_sparsity
    return _Stored(study, grid, groups, levels, evaluations, curves, denominators, swept, alike, strange)


class _Prediction:
    """The solver's allocations by the study's curves, and what its candidates say of them under other bounds.

    Args:
        stored: The study.
        rows: Its candidates.
        stretch: How many times wider than reported a test's interval is that must clear the bounds.

    Attributes:
        most: Zeros that the components and `prune.max_layer_sparsity` allow.
    """

    def __init__(self, stored: _Stored, rows: Sequence[Candidate], stretch: float) -> None:
        study = stored.study
        allowed = set(study.prune.components)
        fine = [curve.refined() for curve in stored.curves]
        self._free = [
            _up_to(c, study.prune.max_layer_sparsity) for c in fine if c.group.split(":")[0] in allowed
        ]
        self._stored = stored
        self._ends = {curve.group: max(curve.zeros) for curve in fine}
        self.most = sum(max(curve.zeros) for curve in self._free)
        self._damages = damages_of(fine, stored.groups, stored.grid)
        self._learned = HeldOutForecast(list(self._seen(rows)), study.rungs.validation.prompts, stretch)

    def _seen(self, rows: Sequence[Candidate]) -> Iterator[Seen]:
        """Candidates that say something of the solver's: its own and the joint search's; all, where there are none."""
        study = self._stored.study
        bounds = study.constraints.bounds()
        own = [row for row in rows if row.strategy in (SOLVER, JOINT)]
        for row in own or rows:
            value, used = by_value(row.evaluation, bounds), utilisation(row.evaluation, bounds)
            if value is not None and used is not None and self._knows(row):
                prompts = getattr(study.rungs, row.evaluation.rung).prompts
                alike = row.strategy == SOLVER and not self._stored.strange
                damage = self._damage(row.allocation)
                yield Seen(damage, value, used - value, prompts, row.evaluation.rung, alike)

    def _knows(self, row: Candidate) -> bool:
        """Whether all of a candidate's zeros lie on the groups' curves."""
        grid, groups, allocation = self._stored.grid, self._stored.groups, row.allocation
        if row.evaluation.key in self._stored.swept - self._stored.alike:
            return False
        within = {
            group: sum(grid.zeros_at(a, allocation[a]) for a in groups[group] if a in allocation)
            for group in self._ends
        }
        on_curves = all(within[group] <= end for group, end in self._ends.items())
        return on_curves and sum(within.values()) == grid.zeros(allocation)

    def _damage(self, allocation: Allocation) -> float:
        return float(sum(self._damages(allocation)))

    def forecast(self, allocation: Allocation) -> Forecast:
        """What a test of an allocation on held-out prompts would say."""
        return self._learned.of(max(self._damage(allocation), _LEAST_DAMAGE))

    def sparsest(self, most: int) -> Allocation:
        """The sparsest total up to `most` whose whole predicted interval is inside the bounds."""
        low, high, best = 0, most, Allocation()
        for _ in range(_BISECTIONS):
            middle = (low + high + 1) // 2
            allocation = self._solved(middle)
            if self.forecast(allocation).ci_high <= 1:
                low, best = middle, allocation
            else:
                high = middle
        return best

    def _solved(self, zeros: int) -> Allocation:
        grid, groups, zeros = self._stored.grid, self._stored.groups, min(zeros, self.most)
        chosen = OBJECTIVES[self._stored.study.search.objective](self._free, zeros, {}).sparsity
        wish = {a: chosen[g] * grid.weights(a) for g in chosen for a in groups[g]}
        return grid.nearest(wish, zeros, among=[a for g in chosen for a in groups[g]])


def _refuse_dense(run: str, evaluations: Sequence[Evaluation], bounds: Sequence[Bound]) -> None:
    """Refuse bounds that the dense pipeline misses, or that nobody measured."""
    nothing = Allocation().key
    dense = {e.rung: e for e in evaluations if e.stage == "baseline" and e.allocation == nothing}
    if "score" not in dense:
        raise RaysenseError(f"`{run}` has no dense baseline on the score rung yet; go on with it first")
    for bound in bounds:
        if bound.measure not in dense["score"].measures:
            raise RaysenseError(f"`{bound.field}` bounds {bound.measure}, which `{run}` did not measure")
    baseline = Candidate("dense", Allocation(), 0, dense["score"], is_feasible(dense["score"], bounds))
    if utilisation_of(baseline, bounds) > 1:
        raise RaysenseError("`constraints`: the dense pipeline itself misses a bound; loosen it")


def _evidence(
    held_out: float,
    grid: LevelGrid,
    evaluations: Sequence[Evaluation],
    levels: Mapping[str, Mapping[str, int]],
    bounds: Sequence[Bound],
    swept: frozenset[str] = frozenset(),
) -> list[Candidate]:
    """What was judged, under the new bounds: by held-out prompts where there are some, else by the score rung.

    On held-out prompts as in a study: a strategy's finalists count from the least sparse up to the first failure.
    """
    found: dict[str, Candidate] = {}
    failed: set[str] = set()
    for rung, stage in (("score", "sweep"), ("score", "search"), ("validation", "validation")):
        stretch = held_out if rung == "validation" else 1.0
        for evaluation in sorted(evaluations, key=lambda evaluation: evaluation.zeros):
            if (evaluation.rung, evaluation.stage) != (rung, stage) or evaluation.failed:
                continue
            if stage == "sweep" and evaluation.key not in swept:
                continue  # by another method, or in a part of the steps
            allocation = Allocation(levels.get(evaluation.allocation, {}))
            strategy = strategy_of(stage, evaluation.trial)
            feasible = strategy not in failed and is_feasible(evaluation, bounds, stretch)
            if rung == "validation" and not feasible:
                failed.add(strategy)
            found[evaluation.allocation] = Candidate(
                strategy, allocation, grid.zeros(allocation), evaluation, feasible
            )
    return list(found.values())


def _ceiling(rows: Sequence[Candidate]) -> int | float:
    """Zeros that a prediction stays below: of the study's own search, the first that failed above what passed.

    A failure on held-out prompts counts wherever it lies: what the score rung passed there was luck.
    """
    own = [row for row in rows if row.strategy in (SOLVER, JOINT)]
    held = [row for row in own if row.evaluation.rung == "validation"]
    ends: list[int | float] = [math.inf]
    for known in (held, own):
        passed = max((row.zeros for row in known if row.feasible), default=0)
        ends += [row.zeros - 1 for row in known if not row.feasible and row.zeros > passed]
    return min(ends)


def _denominators(study: Study) -> dict[str, int]:
    """The denominators of other components, from the pipeline's configuration."""
    from raysense.evaluation.identity import inventory_and_grid
    from raysense.pipelines.load import empty_components
    from raysense.pipelines.origin import Origin

    components = empty_components(Origin.of(study))
    inventory, _ = inventory_and_grid(study, components)
    return {f"n_{name}": getattr(inventory, f"n_{name}") for name in _DENOMINATORS}


def in_words(answer: Mapping[str, Any], run: str) -> str:
    """What a person reads: what was measured first."""
    predicted, measured = answer["predicted"], answer["measured"]
    lines = []
    if measured is not None:
        where = "held-out prompts" if measured["rung"] == "validation" else "the search's prompts only"
        lines.append(
            f"measured on {where}, inside these bounds: {measured['sparsity_components']:.1%} of the parameters of the "
            f"studied components ({measured['zeros']:,} zeros)"
        )
    if not predicted["supported"]:
        lines.append(
            "nothing is predicted: no stored candidate is inside these bounds, so no row says where they lie; loosen "
            "one, or run the study with them"
        )
    elif not predicted["zeros"] or (measured is not None and predicted["zeros"] <= measured["zeros"]):
        lines.append("nothing sparser is predicted to be inside with its whole interval")
    else:
        lines += [
            f"predicted, not measured: {predicted['sparsity_components']:.1%} of the parameters of the studied "
            f"components ({predicted['zeros']:,} zeros)",
            "utilisation of the budget by the worse end of a test's interval on held-out prompts, foretold: "
            f"{predicted['utilisation']:.2f} [{predicted['utilisation_ci_low']:.2f}, "
            f"{predicted['utilisation_ci_high']:.2f}]; 1 lies on the bound",
        ]
    lines.append(
        f"To measure and validate, run the study with these bounds; levels: raysense resolve "
        f"{shlex.quote(str(run))} --json"
    )
    return "\n".join(lines)


def _check_changes(old: Study, new: Study) -> None:
    """Only what stored rows can answer may change."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    for key in before.keys() | after.keys():
        if before.get(key) != after.get(key) and not key.startswith(CHANGEABLE):
            raise RaysenseError(
                f"`{key}` changes what was measured; without new images only {', '.join(CHANGEABLE)} may change"
            )
    if extra := sorted(set(new.prune.components) - set(old.prune.components)):
        raise RaysenseError(
            f"`prune.components` has {extra[0]!r}, which the study did not measure; leave some out only"
        )
    if new.prune.max_layer_sparsity > old.prune.max_layer_sparsity:
        raise RaysenseError(
            f"`prune.max_layer_sparsity` must be at most the study's {old.prune.max_layer_sparsity:g}, "
            f"but got {new.prune.max_layer_sparsity:g}"
        )


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _measured_points(
    study: Study,
    points: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Evaluation],
    levels: Mapping[str, Mapping[str, int]],
    groups: Mapping[str, Sequence[str]],
    grid: LevelGrid,
) -> dict[str, dict[int, float]]:
    """Group -> zeros -> damage: probe errors of the search and of a sweep; where a sweep probed nothing, image damage.

    Image damage is the share of the quality budget that a group alone uses, by its value.
    """
    group_of = {a: group for group, members in groups.items() for a in members}
    found: dict[str, dict[int, float]] = {}
    for evaluation in evaluations:
        if evaluation.stage != "sensitivity" or evaluation.failed or PROBE_ERROR not in evaluation.measures:
            continue
        of = {group_of[layer] for layer in levels[evaluation.allocation]}
        if len(of) == 1:  # another granularity's curves may hold several
            zeros = grid.zeros(levels[evaluation.allocation])
            found.setdefault(of.pop(), {})[zeros] = evaluation.measures[PROBE_ERROR].value
    by_key = {evaluation.key: evaluation for evaluation in evaluations}
    bounds = study.constraints.bounds()

    def of_images(evaluation: Evaluation) -> float | None:
        return (
            None
            if any(b.measure not in evaluation.measures for b in bounds)
            else by_value(evaluation, bounds)
        )

    swept = swept_points(points, by_key, levels, grid, study, "probe", probed)
    for group, more in swept.items():
        found.setdefault(group, {}).update(more)
    return found or swept_points(points, by_key, levels, grid, study, "score", of_images)


def _group_of(row: Mapping[str, Any], study: Study) -> str:
    """A layer's group under the granularity that is asked for."""
    return str(row[study.search.granularity])


def _curves(
    points: Mapping[str, Mapping[int, float]], groups: Mapping[str, Sequence[str]], grid: LevelGrid
) -> list[Curve]:
    """The points as curves."""
    curves = []
    for group, measured in points.items():
        size = sum(grid.weights(a) for a in groups[group])
        zeros = sorted(measured)
        # Past the first point at which nothing is left of the group's work, nothing is read (as in the plan).
        gone = next((i for i, z in enumerate(zeros) if measured[z] > 1.0), len(zeros) - 1)
        zeros = zeros[: gone + 1]
        damage = (0.0, *(measured[z] for z in zeros))
        curves.append(Curve(group, (0.0, *(z / size for z in zeros)), (0, *zeros), damage))
    return curves


def _up_to(curve: Curve, cap: float) -> Curve:
    """The points of a curve up to a sparsity."""
    kept = sum(s <= cap + 1e-9 for s in curve.sparsity)
    return Curve(curve.group, curve.sparsity[:kept], curve.zeros[:kept], curve.damage[:kept])


def _share(grid: LevelGrid, address: str, allocation: Allocation) -> float:
    return grid.zeros_at(address, allocation[address]) / grid.weights(address)


def _shares(zeros: int, denominators: Mapping[str, int]) -> dict[str, Any]:
    return {
        "zeros": zeros,
        **{f"sparsity_{name}": zeros / denominators[f"n_{name}"] for name in _DENOMINATORS},
    }
