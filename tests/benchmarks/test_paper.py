"""The page about the paper is what the committed rows say."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.paper import (
    PAGE,
    ROWS,
    TEXT,
    Bed,
    against_magnitude,
    beds,
    beyond_the_sum,
    page,
    reaching,
    sd2_alone,
    sd2_bracket,
    sd2_together,
    told_by,
    verdict,
)


@pytest.fixture(scope="module")
def both() -> list[Bed]:
    return beds(ROWS)


def test_the_grid_is_the_papers(both: list[Bed]) -> None:
    for bed in both:
        sizes = bed.points.groupby("point_set").size()
        listed = sizes[["text-encoder", "denoiser", "diagonal", "ratios"]]
        assert list(listed) == [32, 9, 36, 22]
        assert 1 + listed.sum() == 100
        assert (bed.points["failed"] == "").all()


def test_the_page_is_what_the_rows_say(both: list[Bed]) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(*told_by(ROWS))


def test_differences_are_paired_and_hold_for_all_shares(both: list[Bed]) -> None:
    bed = both[0]
    found = dict(against_magnitude(bed, "Wanda"))
    assert list(found) == list(TEXT)
    points = bed.points.query("point_set == 'text-encoder' and not owl")
    at = points[np.isclose(points["text"], 0.8)].set_index("wanda")["clip_score_drop"]
    assert found[0.8].value == pytest.approx(at[True] - at[False], abs=1e-6)
    text, paint, together, beyond = beyond_the_sum(bed)[0]
    assert (text, paint) == (0.425, 0.3)
    assert beyond.ci_low < beyond.value < beyond.ci_high
    assert together.value > beyond.value


def test_the_published_points_are_read_off_their_table() -> None:
    assert sd2_bracket(sd2_alone("clip_vit_b32_cosine", "text_encoder")) == "40% to 50%"
    assert sd2_bracket(sd2_alone("clip_vit_b32_cosine", "unet")) == "40% to 45%"
    alone = sd2_alone("fid_10k", "unet")
    assert (alone[0.0], alone[0.6]) == (0.0, pytest.approx(234.1221 - 18.066))
    # 264.9 - 18.066 together; alone (27.2 + (134.2 - 27.2) / 2 - 18.066) + (72.3 - 18.066).
    assert sd2_together([(0.625, 0.5), (0.6, 0.475)]) == ["62.5% / 50.0%: 2.11 and 1.06"]


def test_a_bound_is_reached_where_the_straight_line_says() -> None:
    curve = {0.2: np.array([0.0, 0.0, 0.001]), 0.4: np.array([0.2, 0.2, 0.2])}
    place, early, late = reaching(curve, 0.1)
    assert place == pytest.approx(0.3, abs=0.001)
    assert early < 0.3 < late


@pytest.mark.parametrize(
    ("favour", "against", "of", "word"),
    [
        (4, 0, 8, "confirmed"),
        (3, 0, 8, "undecided"),
        (4, 1, 8, "undecided"),
        (0, 5, 8, "refuted"),
        (0, 0, 1, "undecided"),
    ],
)
def test_a_verdict_needs_half_of_the_places(favour: int, against: int, of: int, word: str) -> None:
    assert verdict(favour, against, of) == word
