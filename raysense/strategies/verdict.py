"""When a candidate is hopeless, and which budget decides; whether it is met, `raysense.feasibility` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raysense.feasibility import Budget
from raysense.metrics.builtin import spec_of
from raysense.metrics.intervals import GROUPS, LEVEL, look_levels, quantile
from raysense.metrics.spec import MetricSpec
from raysense.names import JOINT, SOLVER, UNIFORM
from raysense.records import Bound, StopRule
from raysense.study import Rungs, Study


def quality_budget(study: Study) -> Budget:
    """The budget that decides which rows of a study are feasible."""
    return Budget(tuple(study.constraints.bounds()), {"validation": held_out_stretch(study)})


def competitors(study: Study) -> int:
    """How many strategies may send finalists to the held-out prompts: known before anything is measured."""
    names = set(study.search.strategies)
    if SOLVER in names and study.search.rounds:
        names.add(JOINT)
    if study.search.compare:
        return len(names)
    # The best of all, and one ratio for all layers.
    return min(len(names), 2) if UNIFORM in names else 1


def look_share(look: int) -> float:
    """The share of one look's error that the so-manieth run on the same held-out prompts may use.

    The first has all of it, so that it is judged as if it were the only one; the later ones share half of it again,
    1 / (2 k (k - 1)) the k-th, however many there will be. All runs together err in 1.5 times 2.5 % of cases at most.

    Raises:
        ValueError: Below 1.
    """
    if look < 1:
        raise ValueError(f"look {look}")
    return 1.0 if look == 1 else 1 / (2 * look * (look - 1))


def held_out_stretch(study: Study) -> float:
    """How many times wider than 95 % the intervals on held-out prompts must clear the bounds.

    docs/explanation/evaluation.md says why.

    Whatever passes competes, so all competing strategies share the 2.5 % of one interval's side: with K of them, each
    one's fixed sequence is tested at 2.5 % / K. Where earlier runs have looked at these prompts, less is left to share.
    """
    level = 1 - (1 - LEVEL) * look_share(study.search.earlier_looks + 1) / competitors(study)
    # Precision and recall have the fewest degrees of freedom; for the others this is a little too wide.
    freedom = min(study.rungs.validation.prompts, GROUPS) - 1
    return quantile(freedom, level) / quantile(freedom)


def hopeless(bounds: Sequence[Bound], rungs: Rungs, own: Mapping[str, MetricSpec] | None = None) -> StopRule:
    """Stop climbing the rungs once an interval lies wholly on the wrong side of a bound.

    The preview is a first look at the sample that the score rung completes. By alpha spending (Lan & DeMets 1983;
    here the error grows in step with the images) it may use up the share preview / score of the error, split
    evenly among the bounds. So a candidate that truly keeps every bound is dropped on the way, at the preview or
    in the end for lying wholly outside, with probability 2.5 % at most, as if it had been looked at once.

    Args:
        bounds: The quality budget.
        rungs: How large the looks are.
        own: What is known of the study's own metrics.
    """
    certain = [bound for bound in bounds if not spec_of(bound.measure, own).needs_full_sample]
    return StopRule(
        above={bound.measure: bound.limit for bound in certain if bound.is_upper},
        below={bound.measure: bound.limit for bound in certain if not bound.is_upper},
        stretch=preview_stretch(rungs, len(certain)),
    )


def preview_stretch(rungs: Rungs, bounds: int) -> float:
    """How many times wider than 95 % the preview's intervals must be to decide; see `hopeless`."""
    fraction = rungs.preview.prompts * rungs.preview.seeds / (rungs.score.prompts * rungs.score.seeds)
    alpha = (1 - LEVEL) / max(bounds, 1)
    level = look_levels([fraction] if fraction == 1 else [fraction, 1.0], alpha)[0]
    freedom = rungs.preview.prompts - 1
    return quantile(freedom, level) / quantile(freedom)
