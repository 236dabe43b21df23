from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raysense.cli import main
from raysense.errors import RaysenseError
from raysense.metrics.builtin import SPECS, higher_is_better, spec_of
from raysense.results.run import Run
from raysense.store.rows import strategy_of
from raysense.store.schema import DERIVED, LATER, TABLES
from raysense.study import load
from tests.conftest import REFERENCE, REPORTS

QUERIES = sorted((REPORTS / "queries").glob("*.sql"))


@pytest.fixture(scope="module")
def run() -> Run:
    return Run(str(REFERENCE))


@pytest.mark.parametrize("query", QUERIES, ids=lambda path: path.stem)
def test_every_query_answers(run: Run, query: Path) -> None:
    assert len(run.sql(query.read_text())) > 0


def test_frames_and_queries_agree(run: Run) -> None:
    candidates = run.candidates()
    verdicts = run.sql("SELECT key, feasible, strategy, sparsity_components FROM verdicts").set_index("key")
    own = candidates.set_index("key").loc[verdicts.index]
    assert (own["feasible"] == verdicts["feasible"]).all()
    assert (own["strategy"] == verdicts["strategy"]).all()
    assert own["sparsity_components"].to_numpy() == pytest.approx(verdicts["sparsity_components"].to_numpy())
    cliffs = run.cliffs().set_index("group")
    queried = run.sql((REPORTS / "queries" / "cliffs.sql").read_text()).set_index("group")
    assert set(cliffs.index) == set(queried.index)
    assert list(cliffs.index) == list(queried.index)
    for own, percent in (("safe", "percent_safe"), ("over", "percent_over")):
        assert (100 * cliffs[own]).round(1).to_list() == pytest.approx(
            queried[percent].to_list(), nan_ok=True
        )
    costs = run.costs().set_index("stage")["nfe"]
    by_query = run.sql((REPORTS / "queries" / "cost_per_stage.sql").read_text()).set_index("stage")
    assert costs.to_dict() == by_query["nfe"].to_dict()
    bound = run.bounds[0]
    front = run.sql((REPORTS / "queries" / "pareto.sql").read_text())
    assert list(run.front(bound.measure)["allocation"]) == list(front["allocation"])


def test_the_summary_is_what_the_tables_say(run: Run) -> None:
    summary = run.summary
    assert summary is not None
    best = run.candidates().query("rung == 'validation' and feasible and strategy != 'dense'").iloc[-1]
    assert summary["allocation"] == best["allocation"]
    assert summary["zeros"] == best["zeros"]
    assert summary["metrics"]["clip_score"]["value"] == best["clip_score"]
    assert summary["nfe"] == run.costs()["nfe"].sum()
    layers = run.layer_sparsity(run.allocation(summary["allocation"]))
    assert layers["zeros"].sum() == summary["zeros"]


def test_the_grid_is_the_stored_one(run: Run) -> None:
    layers = run.table("layers")
    leading = layers[layers["levels"] > 0]
    assert [run.grid.step(layer) for layer in leading["layer"]] == leading["step"].to_list()


def test_parquet_files_carry_the_meaning_of_every_field() -> None:
    for name in set(TABLES) - set(DERIVED):  # those are a sweep's
        schema = TABLES[name]
        files = sorted((REFERENCE / "tables" / name).glob("*.parquet"))
        assert files, name
        for file in files:
            stored = pq.read_schema(file)
            assert set(schema.names) - LATER <= set(stored.names)
            for field in stored:
                described = schema.field(field.name).metadata[b"description"]
                assert described.startswith(field.metadata[b"description"])  # more may have been said since


def test_an_unknown_allocation_is_named_with_those_there_are(run: Run) -> None:
    with pytest.raises(RaysenseError, match="no such allocation; it has"):
        run.allocation("'; DROP TABLE allocations; --")


def test_damaged_and_foreign_parquet_is_one_error(
    reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = next((reference / "tables" / "evaluations").glob("*.parquet"))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    for arguments in (["report", str(reference)], ["query", str(reference), "SELECT 1"]):
        assert main(arguments) == 2
        assert "is damaged or not a file of raysense" in capsys.readouterr().err
    pq.write_table(pq.read_table(next((REFERENCE / "tables" / "layers").glob("*.parquet"))), file)
    assert main(["report", str(reference)]) == 2
    assert "is damaged or not a file of raysense" in capsys.readouterr().err
    assert not (reference / "report.html").exists()


def test_a_folder_without_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["report", str(tmp_path)], ["compare", str(tmp_path), str(tmp_path)]):
        assert main(arguments) == 2
        assert "there is no study" in capsys.readouterr().err


def test_a_query_from_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["query", str(REFERENCE), str(REPORTS / "queries" / "methods.sql"), "--csv"]) == 0
    assert capsys.readouterr().out.startswith("strategy,judged,")
    assert main(["query", str(REFERENCE), "SELEC 1"]) == 2
    assert "syntax error" in capsys.readouterr().err
    assert main(["query", str(REFERENCE), str(tmp_path / "none.sql")]) == 2
    assert "none.sql" in capsys.readouterr().err


def test_names() -> None:
    assert strategy_of("search", "search/lamp/3") == "lamp"
    assert strategy_of("validation", "validation/joint/0") == "joint"
    assert strategy_of("baseline", "baseline/search") == "dense"
    assert strategy_of("sensitivity", "sensitivity/unet:mid_block") == ""


def test_which_way_is_good() -> None:
    better = {name for name in SPECS if higher_is_better(name)}
    assert better == {"clip_score", "closeness", "precision", "recall", "ssim"}
    study = load(overrides=["metrics.custom={sharpness: a.b, blur: {path: a.c, higher_is_better: false}}"])
    assert study.higher_is_better("sharpness")
    assert not study.higher_is_better("blur")
    for measure in (
        "frechet_rise",
        "kid_rise",
        "clip_score_drop",
        "recall_drop",
        "sharpness_drop",
        "blur_rise",
    ):
        assert not study.higher_is_better(measure)
    assert spec_of("clip_score_drop").label == "CLIP score"


def test_results_are_read_without_torch_or_ray() -> None:
    code = (
        "import sys; from raysense.results.run import Run; Run('reports/reference').study; "
        "sys.exit(bool({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_a_unique_beginning_of_an_allocations_hash_is_enough() -> None:
    run = Run(str(REFERENCE))
    assert run.winner is not None
    key = run.winner.allocation
    assert run.allocation(key[:8]) == run.allocation(key)
    assert run.allocation(key[:8]).key == key
    with pytest.raises(RaysenseError, match="no such allocation"):
        run.allocation(key[:1])
