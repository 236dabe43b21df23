"""The arithmetic of `benchmarks.search`: ratios with their bounds, and what reaching a total cost."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.search import PRESETS, STAGES, credited, curve_of, path_of, prompts_of, ratio, write_summary
from raysense.names import EVOPRESS, JOINT, SOLVER
from raysense.records import Bound, Evaluation, Measure, TrialSpec


def test_a_ratio_has_paired_bounds_over_studies() -> None:
    found = ratio([0.6, 0.5, 0.66], [0.3, 0.25, 0.33])
    assert found["ratio"] == found["ci_low"] == found["ci_high"] == pytest.approx(2.0)
    found = ratio([0.4, 0.9], [0.2, 0.3])
    assert found["ratio"] == pytest.approx(math.sqrt(6), abs=1e-3)
    # t of one degree of freedom, 12.706, times half the distance of the two logarithms.
    assert found["ci_high"] == pytest.approx(math.exp(math.log(6) / 2 + 12.706 * math.log(1.5) / 2), rel=1e-3)


def test_one_study_has_no_bounds_and_a_rival_that_failed_is_counted() -> None:
    found = ratio([0.6, 0.5], [0.3, 0.0])
    assert found["ratio"] == 2.0
    assert found["ci_low"] is None
    assert found["rival_never_inside"] == 1


def test_a_search_that_found_nothing_counts_with_what_it_starts_from() -> None:
    reached = {"lamp": 0.4, "uniform": 0.3, "evopress": 0.0, "tpe": 0.45, "solver": 0.7, "joint": 0.0}
    rows = pd.DataFrame({"seed": 0, "strategy": list(reached), "sparsity_components": list(reached.values())})
    counted = credited(rows).loc[0].to_dict()
    assert counted == {**reached, "evopress": 0.4, "joint": 0.7}


def test_a_curve_counts_what_led_to_each_step() -> None:
    bound = Bound("constraints.clip_score.max_drop", "clip_score_drop", True, 0.01)
    path = [
        evaluation("probe", zeros=90, drop=0.0),
        evaluation("score", zeros=50, drop=0.0),
        evaluation("score", zeros=80, drop=0.02),
        evaluation("score", zeros=70, drop=0.005),
        evaluation("score", zeros=75, drop=0.005),
    ]
    assert curve_of(path, [bound]) == [(20, 50), (40, 70), (50, 75)]
    assert curve_of(path, [bound], before=100)[0] == (120, 50)


def test_everybody_is_charged_what_it_stands_on() -> None:
    def asked(name: str, rung: str, zeros: int, stage: str = "search") -> tuple[TrialSpec, list[Evaluation]]:
        return TrialSpec(name, stage, ()), [evaluation(rung, zeros, 0.0)]

    answers = [
        asked("sensitivity/a", "probe", 1, "sensitivity"),
        asked("search/lamp/0", "score", 10),
        asked("search/uniform/0", "score", 20),
        asked(f"search/{SOLVER}/0", "score", 30),
        asked(f"search/{JOINT}/0", "score", 40),
        asked(f"search/{EVOPRESS}/0", "score", 50),
        asked(f"search/{STAGES}/0", "score", 60),
    ]
    stands_on = {
        name: [e.zeros for e in path_of(name, answers, "lamp")]
        for name in ("lamp", SOLVER, JOINT, EVOPRESS, STAGES)
    }
    assert stands_on == {
        "lamp": [10],
        SOLVER: [1, 30],
        JOINT: [1, 30, 10, 20, 40],  # it learns from every rule's climb
        EVOPRESS: [10, 50],
        STAGES: [60],
    }


@pytest.mark.parametrize(
    "folder", sorted(Path("reports/benchmarks").glob("search-*/strategies.csv")), ids=str
)
def test_the_committed_table_and_picture_follow_from_the_committed_rows(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / folder.parent.name
    shutil.copytree(folder.parent, place, ignore=shutil.ignore_patterns("runs"))
    write_summary(PRESETS[place.name.removeprefix("search-")], place)
    made, committed = (each / "summary.md" for each in (place, folder.parent))
    assert made.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8")
    # Where its texts stand depends on the machine's fonts; what it shows does not.
    titles = [
        re.findall(r">([^<>]+ studies?\))<", (each / "curves.svg").read_text("utf-8"))
        for each in (place, folder.parent)
    ]
    assert titles[0] == titles[1] != []


def test_every_seed_begins_with_prompts_of_its_own(tmp_path: Path) -> None:
    begins: set[str] = set()
    for seed in range(3):
        rows = [json.loads(line) for line in prompts_of(seed, 3, tmp_path).read_text().splitlines()]
        assert len({row["id"] for row in rows}) == 1200
        for split in ("search", "validation"):
            begins |= {row["id"] for row in [r for r in rows if r["split"] == split][:192]}
    assert len(begins) == 3 * 2 * 192


def evaluation(rung: str, zeros: int, drop: float) -> Evaluation:
    return Evaluation(
        key=f"{rung}-{zeros}", trial="", stage="search", allocation="", rung=rung, replicate=0,
        measures={"clip_score_drop": Measure(drop, drop, drop, 8, "made-up")}, zeros=zeros, images=8, nfe=10,
        seconds=0.0,
    )  # fmt: skip
