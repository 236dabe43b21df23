"""The answer of a study: `summary.json` and the few lines a tired person reads."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from raysense.allocation import LevelGrid
from raysense.feasibility import margins
from raysense.metrics.spec import base_of
from raysense.pruning.layers import Inventory
from raysense.records import Bound, Evaluation
from raysense.results.looks import how_tested, look_in_words
from raysense.results.near_miss import (
    at_max_layer_sparsity,
    at_max_layer_sparsity_in_words,
    miss_in_words,
    nearest_miss,
)
from raysense.results.pareto import front
from raysense.store.schema import DENOMINATORS
from raysense.store.store import Store
from raysense.strategies.budget import BudgetTracker
from raysense.strategies.context import Candidate, Findings
from raysense.strategies.verdict import held_out_stretch
from raysense.study import Study
from raysense.terminal import say


def summarise(
    study: Study,
    inventory: Inventory,
    grid: LevelGrid,
    findings: Findings,
    store: Store,
    seconds: float,
    tracker: BudgetTracker,
) -> dict[str, Any]:
    """Everything a study found, as plain data for ``summary.json``.

    Args:
        study: The study.
        inventory: Its layers and denominators.
        grid: Their levels.
        findings: What the search returned.
        store: Where all evaluations are.
        seconds: Wall time of this run.
        tracker: What was spent, and what was not covered.
    """
    evaluations = store.evaluations()
    winner = findings.winner
    bounds = study.constraints.bounds()
    dense = findings.dense["validation"]
    zeros = winner.evaluation.zeros if winner else inventory.zeros_before
    shares = inventory.sparsities(zeros)
    record = store.study
    assert record is not None
    return {
        "study": study.name,
        "signature": record["signature"],
        "pipeline": study.pipeline,
        "feasible": winner is not None,
        "strategy": winner.strategy if winner else None,
        "allocation": winner.allocation.key if winner else None,
        "levels": dict(winner.allocation) if winner else {},
        **shares,
        "zeros": zeros,
        **{name: getattr(inventory, name) for name in DENOMINATORS},
        "constraints": _constraints(winner, bounds, held_out_stretch(study)),
        "missed": nearest_miss(study, findings, inventory),
        "at_max_layer_sparsity": at_max_layer_sparsity(study, grid, winner.allocation if winner else None),
        "tests": how_tested(study, [look["run"] for look in record.get("looks", [])]),
        "metrics": _metrics(winner.evaluation if winner else None, study),
        "dense": _metrics(dense, study),
        "uniform": _candidate(findings.uniform, inventory, study),
        "gain_over_uniform": _gain(winner, findings.uniform),
        "layers_unlike_uniform": _unlike(winner, findings.uniform),
        "validated": [_candidate(c, inventory, study) for c in findings.validated],
        "runners_up": _runners_up(findings, inventory),
        "front": {
            "score": _fronts([c for c in findings.tried if c.evaluation.rung == "score"], study, inventory),
            "validation": _fronts(findings.validated, study, inventory),
        },
        "strategies": _strategies(findings.tried, inventory, study),
        **_spent(evaluations),
        "seconds": round(seconds, 1),
        "budget": _budget(study, tracker),
    }


def _spent(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """What all evaluations took that were measured here, not in an earlier run."""
    own = [e for e in evaluations if not e.taken_from]
    return {
        "evaluations": len(evaluations),
        "taken": len(evaluations) - len(own),
        "images": sum(e.images for e in own),
        "nfe": sum(e.nfe for e in own),
    }


def _budget(study: Study, tracker: BudgetTracker) -> dict[str, Any]:
    """Limits, what was spent of them, and what stopped the study; a price only where an hour has one."""
    limits, hours = study.budget.model_dump(), tracker.seconds / 3600
    per_hour = study.budget.price_per_hour
    return {
        **limits,
        "nfe": tracker.spent,
        "hours": round(hours, 4),
        "price": None if per_hour is None else round(hours * per_hour, 2),
        "stopped": None if tracker.refusal is None else asdict(tracker.refusal),
        "stopped_in_words": "" if tracker.refusal is None else str(tracker.refusal),
    }


def _runners_up(findings: Findings, inventory: Inventory) -> list[dict[str, Any]]:
    """What passed on held-out prompts beside the winner, sparsest first; the measures stand in `validated`."""
    chosen = findings.winner.allocation if findings.winner else None
    passed = [c for c in findings.validated if c.feasible and c.allocation != chosen]
    return [_short(c, inventory) for c in sorted(passed, key=lambda c: -c.zeros)]


def _fronts(
    candidates: Sequence[Candidate], study: Study, inventory: Inventory
) -> dict[str, list[dict[str, Any]]]:
    """Bounded measure -> the candidates that none beats in both sparsity and that measure, least sparse first."""
    whole = [c for c in candidates if not (c.evaluation.failed or c.evaluation.collapsed)]
    fronts = {}
    for bound in study.constraints.bounds():
        sign = -1 if study.higher_is_better(bound.measure) else 1
        values = [c.evaluation.measures[bound.measure].value for c in whole]
        points = [(c.evaluation.zeros, sign * value) for c, value in zip(whole, values, strict=True)]
        fronts[bound.measure] = [
            {**_short(whole[i], inventory), "feasible": whole[i].feasible, "value": values[i]}
            for i in front(points)
        ]
    return fronts


def _short(candidate: Candidate, inventory: Inventory) -> dict[str, Any]:
    return {
        "strategy": candidate.strategy,
        "allocation": candidate.allocation.key,
        "sparsity_components": inventory.sparsities(candidate.evaluation.zeros)["sparsity_components"],
    }


def _metrics(evaluation: Evaluation | None, study: Study) -> dict[str, Any]:
    if evaluation is None:
        return {}
    return {
        name: {
            "value": m.value,
            "ci_low": m.ci_low,
            "ci_high": m.ci_high,
            "n": m.n,
            "extractor": m.extractor,
            "unit": _unit(name, study),
        }
        for name, m in evaluation.measures.items()
    }


def _unit(measure: str, study: Study) -> str:
    spec = study.spec_of(measure)
    return spec.unit if measure == spec.name else spec.relative_unit


def _constraints(winner: Candidate | None, bounds: Sequence[Bound], stretch: float) -> list[dict[str, Any]]:
    """Every bound, with what the winner has of it; the margin is that of the test on held-out prompts."""
    if winner is None:
        return [{"field": b.field, "measure": b.measure, "limit": b.limit} for b in bounds]
    return [
        {
            "field": m.bound.field,
            "measure": m.bound.measure,
            "limit": m.bound.limit,
            "value": m.value,
            "ci_low": m.ci_low,
            "ci_high": m.ci_high,
            "margin": m.margin,
        }
        for m in margins(winner.evaluation, bounds, stretch)
    ]


def _candidate(candidate: Candidate | None, inventory: Inventory, study: Study) -> dict[str, Any] | None:
    if candidate is None:
        return None
    return {
        "strategy": candidate.strategy,
        "allocation": candidate.allocation.key,
        "feasible": candidate.feasible,
        "zeros": candidate.evaluation.zeros,
        **inventory.sparsities(candidate.evaluation.zeros),
        "metrics": _metrics(candidate.evaluation, study),
    }


def _gain(winner: Candidate | None, uniform: Candidate | None) -> float | None:
    if winner is None or uniform is None or uniform.evaluation.zeros == 0:
        return None
    return winner.evaluation.zeros / uniform.evaluation.zeros


def _unlike(winner: Candidate | None, uniform: Candidate | None) -> int | None:
    """Layers whose level differs from the uniform allocation's."""
    if winner is None or uniform is None:
        return None
    layers = set(winner.allocation) | set(uniform.allocation)
    return sum(winner.allocation[layer] != uniform.allocation[layer] for layer in layers)


def _strategies(tried: Sequence[Candidate], inventory: Inventory, study: Study) -> dict[str, Any]:
    """The sparsest candidate of every strategy that the score rung found inside the budget (not validated)."""
    best: dict[str, Candidate] = {}
    for candidate in tried:
        known = best.get(candidate.strategy)
        if candidate.feasible and (known is None or candidate.zeros > known.zeros):
            best[candidate.strategy] = candidate
    names = dict.fromkeys(candidate.strategy for candidate in tried)
    return {name: _candidate(best.get(name), inventory, study) for name in names}


def render(summary: Mapping[str, Any], out: str, console: Console) -> None:
    """Print the answer: a short table, two sentences, the paths."""
    say(console)
    if summary["feasible"]:
        console.print(_table(summary))
        n = next(iter(summary["metrics"].values()))["n"]
        say(
            console,
            f"{summary['sparsity_components']:.1%} of the parameters of the studied components can go "
            f"({summary['sparsity_pipeline']:.1%} of the whole pipeline, {summary['zeros']:,} zeros counted), "
            f"within the quality budget on {n} images of held-out prompts.",
        )
        if summary["gain_over_uniform"] and summary["strategy"] != "uniform":
            uniform = summary["uniform"]["sparsity_components"]
            say(
                console,
                f"That is {summary['gain_over_uniform']:.2f}× what one ratio for all layers reaches under the same "
                f"test ({uniform:.1%}); {summary['layers_unlike_uniform']} layers differ from it.",
            )
        elif summary["strategy"] != "uniform":
            say(console, "One ratio for all layers did not pass the same test at any size that was tried.")
        if words := at_max_layer_sparsity_in_words(summary["at_max_layer_sparsity"]):
            say(console, words)
    else:
        for line in miss_in_words(summary):
            say(console, line)
    if words := look_in_words(summary["tests"]):
        say(console, words)
    say(
        console,
        f"{summary['evaluations']:,} evaluations, {summary['images']:,} images, "
        f"{summary['nfe']:,} NFE (evaluations of the denoiser), "
        f"{summary['seconds']:.0f} s.",
    )
    if stopped := summary["budget"]["stopped_in_words"]:
        best = "What it bought is above, the best so far; raise" if summary["feasible"] else "Raise"
        say(
            console,
            f"The budget stopped the search: {stopped}. {best} it and go on with --resume, nothing is measured again.",
        )
    if summary["runners_up"]:
        told = ", ".join(
            f"{c['allocation']} ({c['sparsity_components']:.1%})" for c in summary["runners_up"][:3]
        )
        command = f"raysense export {shlex.quote(out)} --allocation ID --out DIR"
        say(console, f"Runners-up that passed: {told}; {command}", whole=True)
    tables = f"{out}/tables/*/*.parquet (every column: docs/reference/tables.md)"
    say(console, f"Summary: {out}/summary.json\nTables:  {tables}", whole=True)


def _table(summary: Mapping[str, Any]) -> Table:
    """Every bound beside what the winner has of it."""
    table = Table("measure", "dense", "pruned", "95 % interval", "bound")
    for row in summary["constraints"]:
        base = base_of(row["measure"])
        dense, pruned = summary["dense"][base], summary["metrics"][base]
        bound = [
            f"[{row['ci_low']:.4f}, {row['ci_high']:.4f}]",
            f"{'≥' if row['field'].endswith('.min') else '≤'} {row['limit']:g}",
        ]
        absolute = base == row["measure"]
        table.add_row(
            base, f"{dense['value']:.4f}", f"{pruned['value']:.4f}", *(bound if absolute else ("", ""))
        )
        if not absolute:
            table.add_row(f"  {row['measure'].replace('_', ' ')}", "", f"{row['value']:.4f}", *bound)
    return table
