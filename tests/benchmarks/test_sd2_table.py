import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.sd2_table import (
    CLIP,
    FID,
    LINEAR,
    PARAMETERS,
    Model,
    Places,
    Surface,
    answer,
    main,
    points,
    predict,
    read,
    regions,
)


@pytest.fixture(scope="module")
def model() -> Model:
    surfaces = {metric.name: Surface(metric, points(), steps=1500) for metric in (FID, CLIP)}
    return Model(surfaces, {"fid": 1.0, "clip": 1.0})


def test_lands_beside_the_published_point(model: Model) -> None:
    found = answer(model, step=0.02)
    best, safe, published = found["by_median"], found["by_interval"], found["published"]
    assert (
        published["sparsity_components"]
        == (0.475 * LINEAR["text_encoder"] + 0.35 * LINEAR["unet"]) / PARAMETERS
    )
    # The published point was found by hand on this very table: the search is level with it, not far ahead.
    assert 0.9 < best["zeros"] / published["zeros"] < 1.2
    assert safe["zeros"] <= best["zeros"]
    for point in (best, safe):
        assert point["fid"] <= found["bounds"]["fid"]
        assert point["clip"] >= found["bounds"]["clip"]
    assert safe["fid_high_95"] <= found["bounds"]["fid"]


def test_damage_only_grows_once_it_has_begun(model: Model) -> None:
    text = np.linspace(0.5, 0.6, 9)
    nothing = np.zeros(9)
    for at in (
        Places(text, nothing, nothing.astype(np.int64), nothing),
        Places(nothing, text - 0.15, nothing.astype(np.int64), nothing),
    ):
        fid, low, high = model.interval("fid", at)
        clip, *_ = model.interval("clip", at)
        assert (np.diff(fid) > -0.5).all()  # up to Monte Carlo noise
        assert fid[-1] > 1.4 * fid[0]
        assert (np.diff(clip) < 0.005).all()
        assert (low < fid).all()
        assert (fid < high).all()


def test_intervals_widen_where_the_points_end(model: Model) -> None:
    unet = np.array([0.45, 0.475, 0.4])
    nothing = np.zeros(3)
    middle, low, high = model.interval("fid", Places(nothing, unet, nothing.astype(np.int64), nothing))
    relative = (high - low) / middle
    assert relative[1] > relative[0]  # between two measured points, on the cliff


def test_a_stretch_left_out_holds_every_row_of_it() -> None:
    table = points()
    found = regions(table)
    assert len(found) == len(table)
    assert found[0] == "dense"
    assert len(set(found)) == 17


def test_predicts_the_rows_of_a_file(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "asked.csv"
    path.write_text(
        "text_encoder_method,text_encoder_sparsity,unet_method,unet_sparsity,fid_10k\n"
        "magnitude,0.55,none,0,19.04\nnone,0,magnitude,0.5,10\nnone,0,none,0,\n"
    )
    found = predict(model, read(path))
    assert found["fid_inside"].tolist() == [True, False, None]
    assert (found["clip_low"] < found["clip_high"]).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text_encoder_method,unet_sparsity\nmagnitude,0.1\n", "lacks the columns"),
        (
            "text_encoder_method,text_encoder_sparsity,unet_method,unet_sparsity\nobs,0.1,none,0\n",
            "row 1: `text_encoder_method` is 'obs'",
        ),
        (
            "text_encoder_method,text_encoder_sparsity,unet_method,unet_sparsity\nnone,0,none,0\nnone,47.5,none,0\n",
            "row 2: `text_encoder_sparsity` must be a share",
        ),
        (
            "text_encoder_method,text_encoder_sparsity,unet_method,unet_sparsity\nnone,0,none,0.3\n",
            "row 1: `unet_sparsity` is 0.3, but no method is named",
        ),
        ("text_encoder_method,text_encoder_sparsity,unet_method,unet_sparsity\n", "has no rows"),
        ("", "cannot read"),
    ],
)
def test_refuses_a_file_that_it_cannot_read(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "asked.csv"
    path.write_text(text)
    assert main(["--predict", str(path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.long
def test_covers_whole_stretches_that_it_was_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    coverage = json.loads(capsys.readouterr().out.splitlines()[-1])["coverage_by_region"]
    assert min(coverage.values()) >= 0.9
