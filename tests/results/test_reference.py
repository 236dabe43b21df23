"""The committed reference study is what this code measures, and what is shown of it is what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from raysense.evaluation.evaluator import Evaluator
from raysense.records import EvaluationRequest
from raysense.results.query_answers import answers
from raysense.results.run import Run
from raysense.study import load
from tests.conftest import REFERENCE, REPORTS

# The same machine with the study's one thread gives the very same numbers; two threads, another order of sums. So: a
# hundredth of the stored interval's half width, and a ten-thousandth of the value. Other weights are far outside.
OF_HALF_WIDTH, OF_VALUE = 0.01, 1e-4


@pytest.fixture(scope="module")
def run() -> Run:
    return Run(str(REFERENCE))


@pytest.fixture(scope="module")
def evaluator(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluator]:
    before = torch.get_num_threads()
    yield Evaluator(run.study, str(tmp_path_factory.mktemp("again")), threads=1)
    torch.set_num_threads(before)


def test_it_is_the_study_that_reference_yaml_describes(run: Run) -> None:
    assert run.study == load(REPORTS / "reference.yaml")


@pytest.mark.parametrize(
    ("stage", "rung", "which"),
    [("sensitivity", "probe", 7), ("search", "score", 0), ("validation", "validation", -1)],
)
def test_measured_again_the_rows_are_the_same(
    run: Run, evaluator: Evaluator, stage: str, rung: str, which: int
) -> None:
    evaluations, measures = run.table("evaluations"), run.table("measures")
    row = evaluations.query("stage == @stage and rung == @rung").sort_values("trial").iloc[which]
    again = evaluator.evaluate(
        EvaluationRequest(run.allocation(row["allocation"]), rung, int(row["replicate"]))
    )
    stored = measures[measures["key"] == row["key"]].set_index("metric")
    assert again.zeros == row["zeros"]
    assert set(again.measures) == set(stored.index)
    for metric, old in stored.iterrows():
        new = again.measures[str(metric)]
        margin = OF_HALF_WIDTH * (old["ci_high"] - old["ci_low"]) / 2 + OF_VALUE * abs(old["value"]) + 1e-6
        for part in ("value", "ci_low", "ci_high"):
            assert getattr(new, part) == pytest.approx(old[part], abs=margin), (metric, part)
        assert (new.n, new.extractor) == (old["n"], old["extractor"])


def test_the_answers_beside_the_queries_are_what_it_gives(run: Run) -> None:
    queries: Path = REPORTS / "queries"
    assert (queries / "README.md").read_text() == answers(run, queries)
    swept = answers(
        Run(str(REPORTS / "paper/bundled")), queries / "sweep", 8, "paper/bundled", "queries/sweep"
    )
    assert (queries / "sweep/README.md").read_text() == swept


def test_the_queries_and_the_frames_speak_of_one_sensitivity(run: Run) -> None:
    curves = run.sensitivity()
    probed = curves[curves["metric"] == run.damage_metric()]
    queried = run.sql((REPORTS / "queries" / "sensitive_layers.sql").read_text()).set_index("group")
    levels = probed.groupby("group")["zeros"].nunique()
    assert queried["measured_levels"].to_dict() == levels.loc[queried.index].to_dict()
    worst = probed.groupby("group")["value"].max().round(5)
    assert queried["worst_damage"].to_dict() == worst.loc[queried.index].to_dict()
