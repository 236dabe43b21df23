"""What a study says in the end: nothing passed, and by how much; what stands at the cap; every bound's interval."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from rich.console import Console

from raysense.allocation import Allocation
from raysense.execution.local import LocalExecutor
from raysense.records import Evaluation, EvaluationRequest, Measure
from raysense.results.near_miss import at_max_layer_sparsity, at_max_layer_sparsity_in_words, miss_in_words
from raysense.results.summary import render, summarise
from raysense.search.job import denominators
from raysense.store.store import Store
from raysense.strategies.rules import built_in_rules
from raysense.strategies.schedule import make_strategy
from raysense.study import parse
from tests.strategies.test_schedule import SIGNATURE, Landscape, made_up

CLIP = 0.9


class Judged(Landscape):
    """Damage of everything that is pruned, as asked on each rung; the score itself beside its drop."""

    harm: Mapping[str, float] = MappingProxyType({})
    scale = 1.0

    def damage(self, allocation: Any) -> float:
        return self.scale * super().damage(allocation)

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        found = super().evaluate(request)
        found = replace(found, seconds=float(found.nfe))
        if "clip_score_drop" not in found.measures:
            return found
        drop = self.damage(request.allocation) + (
            self.harm.get(request.rung, 0.0) if request.allocation else 0.0
        )
        measures = {
            "clip_score_drop": Measure(drop, drop - self.noise, drop + self.noise, 32, "made-up"),
            "clip_score": Measure(CLIP - drop, CLIP - drop - 0.01, CLIP - drop + 0.01, 32, "made-up"),
        }
        return replace(found, measures=measures)


def ended(
    folder: Path, constraints: dict[str, Any], hours: float | None = None, **kind: Any
) -> tuple[dict[str, Any], str]:
    """The summary of a study on such a pipeline, and what the console says."""
    plain, inventory, grid, _ = made_up(strategies=["uniform", "solver"], bisections=4, rounds=0, levels=3)
    study = parse(
        {**plain.model_dump(mode="json"), "constraints": constraints, "budget": {"max_hours": hours}}
    )
    runner = make_strategy(study, inventory, grid, built_in_rules(inventory, grid, {}))
    landscape = Judged(inventory, grid)
    for name, value in kind.items():
        setattr(landscape, name, value)
    store = Store.open(str(folder), create=True)
    store.begin(study.model_dump(mode="json"), signature=SIGNATURE, denominators=denominators(inventory))
    LocalExecutor(landscape).run(runner, store, signature=SIGNATURE, lookahead=4)
    assert runner.error is None
    assert runner.outcome is not None
    summary = summarise(study, inventory, grid, runner.outcome, store, 1.0, runner.tracker)
    console = Console(file=io.StringIO(), width=200)
    render(summary, "out", console)
    return summary, console.file.getvalue()  # type: ignore[attr-defined]


DROP = {"clip_score": {"max_drop": 0.2}}


def test_none_came_to_the_held_out_prompts(tmp_path: Path) -> None:
    summary, told = ended(tmp_path, DROP, harm={"preview": 0.0, "score": 0.3, "validation": 0.3}, noise=0.001)
    missed = summary["missed"]
    assert missed["rung"] == "score"
    (row,) = missed["bounds"]
    assert row["by"] == pytest.approx(row["ci_high"] - 0.2)
    assert row["enough"] is None, "no number of images helps"
    assert "Nothing passed. Of" in told
    assert f"missed `constraints.clip_score.max_drop` by {row['by']:.3g}" in told
    assert "the search's prompts" in told
    assert "held-out" not in told
    assert "loosen `constraints.clip_score.max_drop`" in told


def test_all_fell_at_the_preview(tmp_path: Path) -> None:
    summary, told = ended(tmp_path, DROP, harm={"preview": 9.0}, noise=0.001)
    assert summary["missed"]["rung"] == "preview"
    assert "the preview" in told


@pytest.mark.parametrize("broken", [0, 3])
@pytest.mark.parametrize("stopped", [True, False])
def test_where_nothing_was_judged_it_says_why(broken: int, stopped: bool) -> None:
    summary = {
        "missed": {"rung": None, "tried": broken, "bounds": []},
        "budget": {"stopped": stopped or None},
    }
    (told,) = miss_in_words(summary)
    assert ("all 3 candidates" in told) == bool(broken)
    assert ("nothing was tried" in told) == (not broken)
    assert ("the budget ended" in told) == stopped


def test_a_budget_that_ends_before_the_first_candidate(tmp_path: Path) -> None:
    # Enough for the dense pipeline and for what learns the noise, which is inside the budget; for no candidate.
    summary, told = ended(tmp_path, DROP, hours=3500 / 3600)
    rows = Store.open(str(tmp_path)).evaluations()
    sampled = [row for row in rows if row.stage == "search"]
    assert all("/light-" in row.trial and row.rung == "preview" for row in sampled)
    assert any(row.measures["clip_score_drop"].ci_high < 0.2 for row in sampled)
    assert (summary["missed"]["rung"], summary["missed"]["tried"]) == (None, 0)
    assert "nothing was tried: the budget ended before the first candidate" in told
    assert "could be judged" not in told


def test_the_held_out_prompts_were_failed_by_the_interval_alone(tmp_path: Path) -> None:
    summary, told = ended(tmp_path, DROP, harm={"validation": 0.19}, scale=1e-4, noise=0.05)
    missed = summary["missed"]
    assert missed["rung"] == "validation"
    (row,) = missed["bounds"]
    assert row["value"] < 0.2 < row["value"] + 0.05 * summary["tests"]["stretch"]
    # The half-width that the test asks for, shrunk with the root of the number of images, just fits.
    reach = summary["tests"]["stretch"] * 0.05 * (row["n"] / row["enough"]) ** 0.5
    assert row["value"] + reach == pytest.approx(0.2, abs=1e-3)
    assert f"about {row['enough']:,} images in `rungs.validation`" in told
    assert "held-out prompts" in told


def test_what_stands_at_the_cap_is_said() -> None:
    study, _, grid, _ = made_up()
    first, second, third, *_ = grid.addresses
    winner = Allocation({first: grid.top(first), second: grid.top(second) - 1, third: grid.top(third)})
    share = (grid.weights(first) + grid.weights(third)) / grid.n
    words = at_max_layer_sparsity_in_words(at_max_layer_sparsity(study, grid, winner))
    assert words.startswith(
        f"2 of 12 layers, {share:.0%} of the weights, stand at the largest sparsity allowed "
        "(`prune.max_layer_sparsity` 0.95)"
    )
    assert at_max_layer_sparsity_in_words(at_max_layer_sparsity(study, grid, Allocation({second: 1}))) == ""
    assert at_max_layer_sparsity(study, grid, None) is None


def test_an_absolute_bound_has_its_interval_and_its_bound_in_the_table(tmp_path: Path) -> None:
    summary, told = ended(tmp_path, {"clip_score": {"max_drop": 0.2, "min": 0.75}})
    assert summary["feasible"]
    assert summary["missed"] is None
    (absolute,) = [row for row in summary["constraints"] if row["measure"] == "clip_score"]
    (line,) = [line for line in told.splitlines() if "≥ 0.75" in line]
    assert f"[{absolute['ci_low']:.4f}, {absolute['ci_high']:.4f}]" in line
    (line,) = [line for line in told.splitlines() if "≤ 0.2" in line]
    assert "clip score drop" in line
