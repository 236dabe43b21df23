"""Who looked at held-out prompts before is counted, once each, and finalists are judged accordingly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raysense.allocation import Allocation
from raysense.evaluation.identity import inventory_and_grid
from raysense.pipelines.load import empty_components
from raysense.pipelines.origin import Origin
from raysense.records import Evaluation, Measure
from raysense.results.looks import how_tested, look_in_words
from raysense.results.page import write_page
from raysense.search.job import begin_store
from raysense.search.looks import FIRST, Looks, in_words, with_looks
from raysense.search.starts import Starts
from raysense.store.disk import Disk
from raysense.store.store import Store
from raysense.strategies.verdict import held_out_stretch
from raysense.study import Study, load

INPUTS: dict[str, Any] = {"pipeline": {"unet": "1"}, "prompts": "", "plugins": {}, "versions": {}}
TIGHT = "constraints={clip_score: {max_drop: 0.008}}"
OTHER = ("constraints={clip_score: {max_drop: 0.02}}", "seed=3", "search.strategies=[uniform]")

Begin = Callable[..., str]


@pytest.fixture(scope="module")
def layers() -> tuple[Any, Any]:
    study = load()
    return inventory_and_grid(study, empty_components(Origin.of(study)))


@pytest.fixture
def begin(tmp_path: Path, layers: tuple[Any, Any]) -> Begin:
    def begun(
        name: str, *overrides: str, stage: str = "validation", looks: Looks = FIRST, **changed: Any
    ) -> str:
        out = str(tmp_path / name)
        store = begin_store(load(overrides=overrides), out, *layers, {**INPUTS, **changed}, looks=looks)
        allocation = (
            Allocation()
            if stage == "baseline"
            else Allocation({store.table("layers")["layer"][0].as_py(): 1})
        )
        drop = Measure(0.004, -0.003, 0.011, 160, "")
        measures = {"clip_score_drop": drop, "kid_rise": drop}
        row = Evaluation(
            key=f"{stage}", trial=f"{stage}/solver/1.0", stage=stage, allocation=allocation.key, rung="validation",
            measures=measures, zeros=1, images=160, nfe=1, seconds=1.0,
        )  # fmt: skip
        store.put(row, allocation)
        return out

    return begun


def counted(
    out: str | Path, *overrides: str, source: str | None = None, **changed: Any
) -> tuple[Study, Looks]:
    return with_looks(load(overrides=overrides), str(out), {**INPUTS, **changed}, source)


def number(*args: Any, **kwargs: Any) -> int:
    return counted(*args, **kwargs)[0].search.earlier_looks


def test_a_run_beside_it_that_tested_finalists_on_the_same_prompts_counts(
    begin: Begin, tmp_path: Path
) -> None:
    first, new = begin("first"), tmp_path / "new"
    assert number(new, TIGHT) == 1
    assert number(new, TIGHT, "search.earlier_looks=2") == 3  # those that raysense cannot see, and this one
    assert number(new, TIGHT, "rungs.validation.prompts=10") == 1  # some of them
    begin("second", *OTHER)
    study, looks = counted(new, TIGHT)
    assert (study.search.earlier_looks, [look.run for look in looks.found]) == (
        2,
        [first, str(tmp_path / "second")],
    )
    assert study.identity() == load(overrides=[TIGHT]).identity()  # no row depends on it


def test_what_is_no_other_look_does_not_count(begin: Begin, tmp_path: Path) -> None:
    begin("first")
    begin("baseline only", *OTHER, stage="baseline")
    new = tmp_path / "new"
    assert number(new) == 0  # the same study again
    assert number(new, "cluster.evaluators=2", "name=other") == 0
    assert number(new, TIGHT, "rungs.validation.skip=160") == 0  # fresh prompts
    assert number(new, TIGHT, pipeline={"unet": "2"}) == 0
    assert number(tmp_path / "elsewhere" / "new", TIGHT) == 0
    assert number(new, "budget.max_nfe=5") == 1  # it may come to other finalists


def test_a_resumed_study_keeps_its_number_once_it_has_looked(begin: Begin, tmp_path: Path) -> None:
    first = begin("first")
    begin("later", TIGHT)
    assert number(first) == 0
    assert number(first, "budget.max_nfe=5") == 0
    waiting = begin("waiting", *OTHER, stage="search")
    assert number(waiting, *OTHER) == 2  # both have looked before it


def test_what_an_earlier_run_had_counted_is_inherited(begin: Begin, tmp_path: Path) -> None:
    first = begin("far/first")
    _, looks = counted(tmp_path / "far" / "second", TIGHT)
    second = begin("far/second", TIGHT, "search.earlier_looks=1", looks=looks)
    assert Store.open(second).table("studies").select(["look", "looked_before"]).to_pylist() == [
        {"look": 2, "looked_before": json.dumps(looks.to_fields())}
    ]
    study, found = counted(tmp_path / "near", *OTHER, source=second)
    assert [look.run for look in found.found] == [first, second]
    assert study.search.earlier_looks == 2


def test_a_run_that_is_at_work_may_look(begin: Begin, tmp_path: Path) -> None:
    out = begin("first", stage="search")
    store = Store.open(out)
    with store.lock(), Starts(Disk(out), None, {}):
        assert number(tmp_path / "new", TIGHT) == 1
    assert number(tmp_path / "new", TIGHT) == 0


def test_an_unreadable_neighbour_is_named(begin: Begin, tmp_path: Path) -> None:
    out = begin("first")
    (Path(out) / "study.json").write_text("{")
    study, looks = counted(tmp_path / "new", TIGHT)
    assert study.search.earlier_looks == 0
    assert in_words(study, looks) == [
        f"`{out}` holds a study that cannot be read; it is not counted among earlier looks."
    ]


def test_finalists_are_judged_by_what_is_left_and_the_page_says_so(begin: Begin, tmp_path: Path) -> None:
    first = begin("first", TIGHT)
    study, looks = counted(tmp_path / "new", *OTHER)
    again = begin("new", *OTHER, f"search.earlier_looks={study.search.earlier_looks}", looks=looks)
    page = Path(write_page(again, paint=False)).read_text()
    assert f"Look 2 at these held-out prompts, after <code>{first}</code>" in page
    assert "at these held-out prompts" not in Path(write_page(first, paint=False)).read_text()
    # 0.004 ± 0.007 is inside of 0.02, and no longer at a hundredth look.
    runs = (begin(f"{looked}", *OTHER, f"search.earlier_looks={looked}") for looked in (0, 99))
    assert [Store.open(run).table("evaluations")["feasible"].to_pylist() for run in runs] == [[True], [False]]
    assert held_out_stretch(study) > held_out_stretch(load(overrides=[*OTHER]))


def test_it_is_said_before_anything_is_spent(begin: Begin, tmp_path: Path) -> None:
    begin("first")
    told = in_words(*counted(tmp_path / "new", TIGHT))
    assert len(told) == 1
    assert "times as wide" in told[0]
    assert told[0].endswith("`rungs.validation.skip=160`, if `prompts` has so many, or another file.")
    assert look_in_words(how_tested(load(), [])) == ""
