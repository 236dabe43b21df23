"""What a study says when nothing passed: what came nearest, by how much it missed, on which prompts, what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from raysense.allocation import Allocation, LevelGrid
from raysense.feasibility import margins, utilisation
from raysense.metrics.spec import base_of
from raysense.pruning.layers import Inventory
from raysense.strategies.context import Candidate, Findings
from raysense.strategies.verdict import quality_budget
from raysense.study import Study

PROMPTS = {
    "validation": "held-out prompts",
    "score": "the search's prompts",
    "preview": "the search's first prompts (the preview)",
}


def nearest_miss(study: Study, findings: Findings, inventory: Inventory) -> dict[str, Any] | None:
    """What came nearest to the budget on the highest rung that anything was judged on; None if something passed.

    Returns:
        ``rung``, ``strategy``, ``allocation``, ``sparsity_components``, ``tried`` (how many were judged there) and
        ``bounds``: the missed ones, each with ``field``, ``measure``, ``limit``, ``value``, ``ci_low``, ``ci_high``,
        ``n``, ``is_upper``, ``by`` (how far the interval that is tested lies past the bound) and ``enough`` (so many
        images would narrow it enough; None where the value itself is past the bound). Where no candidate could be
        judged, ``rung`` is None and ``tried`` counts those that failed or collapsed: 0 where none was tried.
    """
    if findings.winner is not None:
        return None
    budget = quality_budget(study)
    found: list[Candidate] = []
    rung = None
    for rung in PROMPTS:
        judged = findings.validated if rung == "validation" else findings.tried
        found = [c for c in judged if c.evaluation.rung == rung]
        whole = [c for c in found if not (c.evaluation.failed or c.evaluation.collapsed)]
        if whole:
            break
    else:
        broken = [c for c in findings.tried if c.evaluation.failed or c.evaluation.collapsed]
        return {"rung": None, "tried": len(broken), "bounds": []}
    stretch = budget.stretch.get(rung, 1.0)

    def used(candidate: Candidate) -> float:
        share = utilisation(candidate.evaluation, budget.bounds, stretch)
        return math.inf if share is None else share

    nearest = min(whole, key=used)
    return {
        "rung": rung,
        "strategy": nearest.strategy,
        "allocation": nearest.allocation.key,
        "sparsity_components": inventory.sparsities(nearest.evaluation.zeros)["sparsity_components"],
        "tried": len(found),
        "bounds": _missed(nearest, budget.bounds, stretch),
    }


def _missed(nearest: Candidate, bounds: Sequence[Any], stretch: float) -> list[dict[str, Any]]:
    rows = []
    for m in margins(nearest.evaluation, bounds, stretch):
        if m.margin >= 0:
            continue
        n = nearest.evaluation.measures[m.bound.measure].n
        room = m.bound.limit - m.value if m.bound.is_upper else m.value - m.bound.limit
        reach = stretch * (m.ci_high - m.value if m.bound.is_upper else m.value - m.ci_low)
        enough = math.ceil(n * (reach / room) ** 2) if room > 0 and math.isfinite(reach) else None
        rows.append(
            {
                "field": m.bound.field, "measure": m.bound.measure, "limit": m.bound.limit, "value": m.value,
                "ci_low": m.ci_low, "ci_high": m.ci_high, "n": n, "is_upper": m.bound.is_upper,
                "by": -m.margin, "enough": enough,
            }
        )  # fmt: skip
    return rows


def miss_in_words(summary: Mapping[str, Any]) -> list[str]:
    """Sentences for a study in which nothing passed."""
    missed = summary.get("missed")
    stopped = bool(summary["budget"]["stopped"])
    if missed is None or missed["rung"] is None:
        return [_nothing_judged(missed["tried"] if missed else 0, stopped)]
    lines = [
        f"Nothing passed. Of {missed['tried']} tested on {PROMPTS[missed['rung']]} the nearest was "
        f"{missed['strategy']} at {missed['sparsity_components']:.1%} of the components' parameters "
        f"({missed['allocation']})."
    ]
    for row in missed["bounds"]:
        sign = "≤" if row["is_upper"] else "≥"
        lines.append(
            f"It missed `{row['field']}` by {row['by']:.3g}: {base_words(row['measure'])} {row['value']:.4g} "
            f"[{row['ci_low']:.4g}, {row['ci_high']:.4g}] on {row['n']:,} images, wanted {sign} {row['limit']:g}."
        )
    lines.append(_advice(missed, stopped))
    return lines


def _nothing_judged(broken: int, stopped: bool) -> str:
    """Why there is nothing to be near.

    Args:
        broken: Candidates that failed or collapsed.
        stopped: The budget ended the search. What is sampled to learn the noise is no candidate, however it fared.
    """
    if broken:
        rest = " before the budget ended" if stopped else ""
        return (
            f"Nothing passed: all {broken} candidates that were tried{rest} failed or gave images that are none. Look "
            "for `failed` and `collapsed` in the rows."
        )
    if stopped:
        return "Nothing passed, because nothing was tried: the budget ended before the first candidate."
    return "Nothing passed, because nothing was tried: no strategy had a candidate. Look for `failed` in the rows."


def _advice(missed: Mapping[str, Any], stopped: bool) -> str:
    rung, rows = missed["rung"], missed["bounds"]
    if not rows:
        # Inside on the search's prompts, and nothing came to the held-out ones.
        why = " The budget ended before: raise it and go on with --resume." if stopped else ""
        return f"It was inside the quality budget there, but was not tested on held-out prompts.{why}"
    fields = ", ".join(f"`{row['field']}`" for row in rows)
    if all(row["enough"] for row in rows):
        most = max(row["enough"] for row in rows)
        return (
            f"The value itself is inside, only the interval is too wide: about {most:,} images in `rungs.{rung}` would "
            f"narrow it enough; or loosen {fields}."
        )
    lighter = "raise `search.bisections`, so that less is tried too" if rung != "validation" else (
        "give the score rung more prompts, so that the search is misled less"
    )  # fmt: skip
    return f"The value itself is past the bound: loosen {fields}, or {lighter}."


def base_words(measure: str) -> str:
    """A measure's name as a person reads it in a sentence: ``clip_score_drop`` → clip_score drop."""
    base = base_of(measure)
    return measure if base == measure else f"{base} {measure.removeprefix(base + '_')}"


def at_max_layer_sparsity(
    study: Study, grid: LevelGrid, allocation: Allocation | None
) -> dict[str, Any] | None:
    """How much of a winner could not go further because of `prune.max_layer_sparsity`.

    Returns:
        ``layers`` at their highest level, ``of`` how many, ``weights`` (the share of all selected weights that is
        in them) and the ``max_layer_sparsity``. None without a winner, and where a pattern fixes what a layer loses.
    """
    if allocation is None or study.prune.pattern is not None:
        return None
    own = [address for address in grid.addresses if grid.top(address)]
    full = [address for address in own if allocation[address] == grid.top(address)]
    return {
        "layers": len(full),
        "of": len(own),
        "weights": sum(map(grid.weights, full)) / grid.n,
        "max_layer_sparsity": study.prune.max_layer_sparsity,
    }


def at_max_layer_sparsity_in_words(found: Mapping[str, Any] | None) -> str:
    """A sentence about the layers that are as sparse as allowed, or an empty text where nothing does."""
    if not found or not found["layers"]:
        return ""
    return (
        f"{found['layers']} of {found['of']} layers, {found['weights']:.0%} of the weights, stand at "
        f"the largest sparsity allowed (`prune.max_layer_sparsity` {found['max_layer_sparsity']:g}): a "
        "higher one lets them go further."
    )
