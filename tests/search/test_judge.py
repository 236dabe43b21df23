"""`raysense.judge`: a pruned pipeline's verdict is that of its allocation, whoever pruned it."""

from __future__ import annotations

from pathlib import Path

import pytest

import raysense as rs
from raysense.pipelines.load import load_pipeline

RUNGS = {"preview": {"prompts": 8}, "score": {"prompts": 8}, "validation": {"prompts": 8}}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dense images, sampled once."""
    return tmp_path_factory.mktemp("judge")


def study(max_drop: float) -> rs.Study:
    return rs.Study(
        constraints={"clip_score": {"max_drop": max_drop}},
        rungs=RUNGS,
        sampling={"steps": 1},
        metrics={"also": ["ssim"]},
        prune={"components": ["unet"]},
    )


def test_a_pruned_pipeline_is_judged_as_its_allocation_is(cache: Path, tmp_path: Path) -> None:
    by_share = rs.judge(None, 0.6, study(0.5), cache=cache)
    pipeline = load_pipeline("bundled")
    for module in pipeline.unet.modules():  # another tool's pruning: half of every matrix, wherever
        weight = getattr(module, "weight", None)
        if weight is not None and weight.ndim > 1:
            weight.data.flatten()[: weight.numel() // 2] = 0
    pipeline.save_pretrained(tmp_path / "pruned")
    found = rs.judge("bundled", tmp_path / "pruned", study(0.5), cache=cache)
    live = rs.judge(None, pipeline, study(0.5), cache=tmp_path / "live")
    assert found.measures == live.measures
    assert found.sparsity["selected"] == pytest.approx(0.5, abs=0.02)
    assert by_share.sparsity["selected"] == pytest.approx(0.6, abs=0.02)
    assert set(found.measures) == set(by_share.measures) >= {"clip_score_drop", "ssim", "frechet_rise"}
    (bound,) = found.bounds
    assert bound.value == found.measures["clip_score_drop"].value
    assert found.feasible == (bound.ci_high <= 0.5)
    assert "clip_score_drop" in str(found)


def test_the_dense_pipeline_itself_loses_nothing(cache: Path) -> None:
    found = rs.judge(None, "bundled", study(0.1), cache=cache)
    assert found.feasible
    assert found.used == 0
    assert found.measures["clip_score_drop"].value == 0
    assert found.measures["ssim"].value == pytest.approx(1)


def test_what_cannot_be_judged_is_refused(cache: Path) -> None:
    with pytest.raises(rs.RaysenseError, match="`rung` is 'probe'"):
        rs.judge(None, 0.5, study(0.1), rung="probe")
    with pytest.raises(rs.RaysenseError, match="`dense` must be a loaded pipeline"):
        rs.judge(7, 0.5, study(0.1))
