"""`search --from RUN`: what an earlier run measured is not measured again, and the answer is that of a fresh run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from raysense.cli import main
from raysense.errors import RaysenseError
from raysense.evaluation.calibration import calibration_cost
from raysense.evaluation.evaluator import Evaluator
from raysense.execution.local import LocalExecutor
from raysense.records import Evaluation, EvaluationRequest
from raysense.results.run import Run
from raysense.search.earlier_run import EarlierRun
from raysense.search.job import begin_store
from raysense.strategies.context import Findings
from raysense.strategies.rules import built_in_rules
from raysense.strategies.schedule import make_strategy
from raysense.study import Study, load

BASE = (
    "search.granularity=component", "rungs.probe={prompts: 2, timesteps: 1}", "rungs.preview.prompts=8",
    "rungs.score.prompts=8", "rungs.validation.prompts=8", "sampling.steps=1", "search.bisections=2",
    "search.levels=2", "search.finalists=1", "search.rounds=0", "search.lookahead=2",
    "constraints={clip_score: {max_drop: 0.3}, frechet: {max_rise: 900}}", "search.strategies=[uniform]",
    "cluster.images_per_shard=5",
)  # fmt: skip
CHANGED = (
    "constraints={clip_score: {max_drop: 0.25}}", "search.strategies=[uniform, erk]", "budget.max_nfe=100000",
)  # fmt: skip
NOT_COMPARED = ["seconds", "evaluator", "taken_from"]


class Counting(Evaluator):
    """Counts what it measures."""

    measured = 0

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        self.measured += 1
        return super().evaluate(request)


@dataclass
class Searched:
    run: Run
    findings: Findings
    measured: int
    spent: int


def searched(out: Path, study: Study, source: Path | None = None) -> Searched:
    earlier = EarlierRun.of(str(source), study, str(out)) if source else None
    evaluator = Counting(study, str(out), threads=1)
    inventory, grid = evaluator.inventory, evaluator.grid
    rules = built_in_rules(inventory, grid, {}, {})
    strategy = make_strategy(study, inventory, grid, rules, calibration_cost(study, inventory, grid, {}))
    store = begin_store(study, str(out), inventory, grid, evaluator.inputs)
    taken = None
    if earlier is not None:
        taken = earlier.rows(study, store, evaluator.signature, evaluator.inputs)
    LocalExecutor(evaluator).run(
        strategy, store, signature=evaluator.signature, lookahead=study.search.lookahead, earlier=taken
    )
    assert strategy.error is None
    assert strategy.outcome is not None
    return Searched(Run(str(out)), strategy.outcome, evaluator.measured, strategy.tracker.spent)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Searched]:
    """A run, another with other bounds and strategies, and that one again from the first."""
    place = tmp_path_factory.mktemp("earlier")
    changed = load(overrides=[*BASE, *CHANGED])
    return {
        "first": searched(place / "first", load(overrides=BASE)),
        "fresh": searched(place / "fresh", changed),
        "taken": searched(place / "taken", changed, place / "first"),
    }


def sorted_rows(run: Run, table: str) -> pd.DataFrame:
    rows = run.table(table)
    rows = rows[[column for column in rows if column not in NOT_COMPARED]]
    return rows.sort_values(list(rows.columns)).reset_index(drop=True)


@pytest.mark.parametrize("table", ["evaluations", "measures", "samples", "allocations", "layers"])
def test_rows_and_answer_are_those_of_a_fresh_run(runs: dict[str, Searched], table: str) -> None:
    taken, fresh = runs["taken"], runs["fresh"]
    pd.testing.assert_frame_equal(sorted_rows(taken.run, table), sorted_rows(fresh.run, table))
    for found in (taken.findings.winner, fresh.findings.winner):
        assert found is not None
    assert taken.findings.winner.allocation == fresh.findings.winner.allocation
    assert len(taken.run.table(table)) > 0


def test_what_was_taken_says_where_from_and_costs_nothing(runs: dict[str, Searched]) -> None:
    taken = runs["taken"]
    rows = taken.run.table("evaluations")
    assert set(rows[rows["strategy"] == "dense"]["taken_from"]) == {runs["first"].run.uri}
    own = rows[rows["taken_from"] == ""]
    assert 0 < taken.measured == len(own) < runs["fresh"].measured == len(rows)
    assert taken.spent == own["nfe"].sum() == taken.run.costs()["nfe"].sum() < runs["fresh"].spent
    assert taken.run.costs()["taken"].sum() == len(rows) - len(own)


def test_a_change_that_decides_rows_is_refused(
    runs: dict[str, Searched], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, study = runs["first"].run.uri, load(overrides=[*BASE, "rungs.validation.prompts=16"])
    with pytest.raises(RaysenseError, match=r"rungs\.validation\.prompts: there 8, here 16"):
        EarlierRun.of(first, study, str(tmp_path / "other"))
    with pytest.raises(RaysenseError, match="is the folder of the new study"):
        EarlierRun.of(first, load(overrides=BASE), first)
    other = {**runs["first"].run.record["inputs"], "prompts": "others"}
    store = runs["fresh"].run.store
    with pytest.raises(RaysenseError, match=r"do not fit this study.*\n.*prompts' texts"):
        EarlierRun(first, load(overrides=BASE)).rows(load(overrides=BASE), store, "s", other)
    assert main(["search", "--from", str(tmp_path), "--out", str(tmp_path / "new")]) == 2
    assert "there is no study" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
