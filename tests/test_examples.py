"""The examples run as they stand, from outside the package: nothing of raysense is touched for any of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raysense import plugins
from raysense.allocation import Allocation
from raysense.cli import main
from raysense.evaluation.evaluator import Evaluator
from raysense.evaluation.identity import signature
from raysense.evaluation.inputs import inputs_of
from raysense.execution.local import LocalExecutor
from raysense.feasibility import Budget, is_feasible, utilisation
from raysense.pipelines.load import modules_of
from raysense.prompts.sets import load_prompts
from raysense.records import CALIBRATION, Evaluation, EvaluationRequest
from raysense.results.page import build
from raysense.results.run import Run
from raysense.results.summary import summarise
from raysense.search.job import begin_store
from raysense.store.checksummed_json import seal
from raysense.store.disk import Disk
from raysense.store.store import Store
from raysense.strategies.rules import built_in_rules
from raysense.strategies.schedule import make_strategy
from raysense.strategies.user_defined import user_rules
from raysense.study import Study, load
from raysense.study.complete import complete
from raysense.testing import (
    check_allocation_rule,
    check_extractor,
    check_metric,
    check_saliency,
    check_strategy,
)

EXAMPLES = Path(__file__).parents[1] / "examples" / "plugins"
STUDY = EXAMPLES / "study.yaml"

QUICK = [
    "sampling.steps=2",
    "prune.include=['*attn1*']",
    "prune.calibration.prompts=2",
    "rungs={preview: {prompts: 8}, score: {prompts: 8}, validation: {prompts: 8}}",
    "search.bisections=1",
    "search.offspring=2",
    "search.finalists=1",
    "constraints={clip_score: {max_drop: 0.9}, custom: {noise: {max_rise: 0.5}, energy: {max: 50}}}",
]


@pytest.fixture(scope="module", autouse=True)
def beside() -> Iterator[None]:
    before = list(sys.path)
    plugins.make_importable([EXAMPLES])
    yield
    sys.path[:] = before


def study_of(*overrides: str) -> Study:
    return complete(load(STUDY, [*QUICK, *overrides]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The example study, run in this process."""
    out = str(tmp_path_factory.mktemp("plugins") / "run")
    study = study_of()
    evaluator = Evaluator(study, out)
    inventory, grid, modules = evaluator.inventory, evaluator.grid, modules_of(evaluator.pipeline)
    rules = built_in_rules(inventory, grid, modules) | user_rules(study.search.strategies, inventory, grid)
    strategy = make_strategy(study, inventory, grid, rules, calibration_cost=1)
    inputs = inputs_of(study, load_prompts(study.prompts), evaluator.scorer, "cpu")
    store = begin_store(study, out, inventory, grid, inputs)
    LocalExecutor(evaluator).run(strategy, store, signature=signature(study, grid, inputs))
    assert strategy.outcome is not None
    summary = summarise(study, inventory, grid, strategy.outcome, store, 1.0, strategy.tracker)
    Disk(out).write("summary.json", seal(summary, indent=2, finite=True))
    return out


def rows_of(run: str) -> list[Evaluation]:
    return Store.open(run).evaluations()


def test_all_kinds_of_plug_ins_take_part(finished: str) -> None:
    rows = rows_of(finished)
    assert not [row.failed for row in rows if row.failed]
    assert {row.method for row in rows} == {"my_saliency.ria"}
    strategies = {row["strategy"] for row in Store.open(finished).table("evaluations").to_pylist()}
    assert {"uniform", "my_search.later", "my_search.walk"} <= strategies
    for row in rows:
        if row.rung in ("preview", "score", "validation"):
            assert {"noise", "noise_rise", "energy", "energy_rise"} <= row.measures.keys()
            assert row.measures["frechet"].extractor == "thumbnails 4x4"
            assert (
                row.measures["energy"].ci_low < row.measures["energy"].value < row.measures["energy"].ci_high
            )
    assert any(row.rung == CALIBRATION for row in rows)


def test_lower_is_better_everywhere_it_counts(finished: str) -> None:
    study, run = study_of(), Run(finished)
    dense = min((row for row in rows_of(finished) if row.rung == "score"), key=lambda row: row.zeros)
    assert dense.measures["noise_rise"].value == 0
    (bound,) = [b for b in study.constraints.bounds() if b.measure == "energy"]
    assert (bound.is_upper, bound.limit) == (True, 50)
    pruned = next(row for row in rows_of(finished) if row.rung == "score" and row.zeros > dense.zeros)
    value, rise = pruned.measures["energy"], pruned.measures["energy_rise"]
    # From the dense value, 0 of the room, to the bound, 1: by the worse end, which is the upper one.
    start = value.value - rise.value
    assert start == pytest.approx(dense.measures["energy"].value)
    assert utilisation(pruned, [bound]) == pytest.approx((value.ci_high - start) / (50 - start))
    assert is_feasible(pruned, [bound]) is (value.ci_high <= 50)
    assert run.study.higher_is_better("noise") is False
    front = run.front("noise")
    assert (front["noise"].diff().dropna() >= 0).all(), "a sparser candidate of the front is noisier"
    summary = run.summary
    assert summary is not None
    assert summary["metrics"]["noise"]["unit"] == "standard deviation of pixels"
    assert summary["metrics"]["energy_rise"]["unit"] == "pruned minus dense, paired by prompt and seed"


def test_reading_imports_no_plug_in(
    finished: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [place for place in sys.path if Path(place) != EXAMPLES])
    for name in [name for name in sys.modules if name.startswith("my_")]:
        monkeypatch.delitem(sys.modules, name)
    run = Run(finished)
    page = build(run, images=0)
    assert "energy distance of thumbnails" in page
    assert "noise rise" in page
    assert "lower is better" in page
    assert run.study.metrics.own["energy"].of_set
    assert main(["query", finished, "SELECT metric, is_upper FROM bounds ORDER BY metric"]) == 0
    assert "noise_rise" in capsys.readouterr().out
    assert main(["compare", finished, finished]) == 0
    verdicts = run.sql("SELECT feasible FROM verdicts WHERE rung = 'score'")
    budget = Budget(tuple(run.bounds))
    judged = {row.key: row for row in rows_of(finished) if row.rung == "score"}
    assert sorted(verdicts["feasible"]) == sorted(budget.judged(row)["feasible"] for row in judged.values())
    assert not [name for name in sys.modules if name.startswith("my_")]


def test_a_method_that_updates_weights(tmp_path: Path) -> None:
    study = study_of("prune.saliency=my_saliency.refit", "prune.calibration.levels=2")
    assert study.prune.updates
    evaluator = Evaluator(study, str(tmp_path))
    allocation = evaluator.grid.uniform(0.5)
    row = evaluator.evaluate(EvaluationRequest(allocation, "probe"))
    assert row.method == "my_saliency.refit"
    assert row.zeros == evaluator.inventory.zeros_before + evaluator.grid.zeros(allocation)
    assert (
        evaluator.evaluate(EvaluationRequest(Allocation(), "probe")).zeros == evaluator.inventory.zeros_before
    )
    masked = study_of("prune.saliency=magnitude", "prune.calibration.levels=2")
    assert not masked.prune.updates


CHECKS = {
    "my_metrics.noise": check_metric,
    "my_metrics.energy": check_metric,
    "my_saliency.ria": check_saliency,
    "my_saliency.refit": check_saliency,
    "my_search.walk": check_strategy,
    "my_search.later": check_allocation_rule,
    "my_features.Thumbnails": check_extractor,
}


@pytest.mark.parametrize("path", CHECKS)
def test_every_example_keeps_its_contract(path: str) -> None:
    module, _, name = path.rpartition(".")
    check: Any = CHECKS[path]
    check(getattr(importlib.import_module(module), name))


def test_the_study_is_valid_and_says_what_its_decorators_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(STUDY)]) == 0
    printed = capsys.readouterr().out
    assert "higher_is_better: false" in printed
    assert "kind: set" in printed
    assert main(["validate", str(STUDY), "--set", "constraints.custom.noise={max_drop: 1}"]) == 2
    assert "use `max_rise`" in capsys.readouterr().err
