from pathlib import Path

import pytest
import torch

from raysense.errors import RaysenseError
from raysense.evaluation.sampler import seed_of
from raysense.results.pictures import (
    LABEL_HEIGHT,
    choose_rows,
    noise_of_pictures,
    paint_comparison,
    picture,
    why_outside,
)
from raysense.results.run import Run
from raysense.study import load, revise
from tests.conftest import REFERENCE


def test_rows_keep_their_pixels() -> None:
    red = torch.zeros(2, 3, 48, 48)
    red[:, 0] = 1
    shown = picture([red, 1 - red], ["a", "b"])
    assert shown.size == (192, 2 * (96 + LABEL_HEIGHT))
    assert shown.getpixel((10, LABEL_HEIGHT + 10)) == (255, 0, 0)
    assert shown.getpixel((10, 96 + 2 * LABEL_HEIGHT + 10)) == (0, 255, 255)


def test_what_is_shown_has_the_noise_of_the_first_images_of_a_rung() -> None:
    """`raysense show` and the page alike, whatever the study's seed."""
    study = revise(load(), ["seed=3"])
    first = seed_of(study, 0, 0)
    assert noise_of_pictures(study, 2) == [first, first] == [30_000_000] * 2


def test_no_study(tmp_path: Path) -> None:
    with pytest.raises(RaysenseError, match="there is no study"):
        paint_comparison(tmp_path, tmp_path / "x.png")


def test_the_rows_go_over_the_cliff_of_the_winners_family() -> None:
    run = Run(str(REFERENCE))
    assert run.summary is not None
    rows = choose_rows(run.candidates(), run.summary["allocation"])
    assert rows[0]["kind"] == "dense"
    assert rows[-1]["kind"] == "outside"
    assert [row["zeros"] for row in rows] == sorted(row["zeros"] for row in rows)
    assert {row["strategy"] for row in rows} <= {"dense", "solver", "joint"}


def test_the_last_row_is_the_farthest_that_was_tried_and_each_says_which_bound_it_fails() -> None:
    run = Run(str(REFERENCE))
    candidates = run.candidates()
    rows = choose_rows(candidates, run.summary["allocation"])  # type: ignore[index]
    family = candidates[candidates["strategy"].isin(["solver", "joint"]) & ~candidates["feasible"]]
    assert rows[-1]["zeros"] == family["zeros"].max()
    for row in rows:
        failed = [bound for bound in run.bounds if row[f"{bound.measure}_ci_high"] > bound.limit]
        said = why_outside(row, run.study)
        assert said.count("bound ≤") == len(failed)
        for bound in failed:
            assert f"{row[f'{bound.measure}_ci_high']:.3g}, bound ≤ {bound.limit:g}" in said
        assert row["feasible"] == (not failed) or row["collapsed"]
