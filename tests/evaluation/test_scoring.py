"""Every metric a study can name, measured on real images against each kind of reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from raysense.allocation import Allocation
from raysense.cli import main
from raysense.errors import RaysenseError
from raysense.evaluation.evaluator import Evaluator
from raysense.evaluation.identity import external_key
from raysense.evaluation.inputs import hub_commit
from raysense.evaluation.scoring import ImageScorer, ScoredImages, joined
from raysense.metrics import gaussians
from raysense.metrics.intervals import mean_interval
from raysense.pipelines.origin import pipeline_folder
from raysense.records import Evaluation, EvaluationRequest
from raysense.search.prepare import prepare
from raysense.study import Study, load

SMALL = [
    "rungs.probe={prompts: 2, timesteps: 1}",
    "rungs.preview.prompts=8",
    "rungs.score.prompts=8",
    "rungs.validation.prompts=8",
    "sampling.steps=2",
    "prune.components=[unet]",
]
EVERYTHING = [
    "metrics.also=[cmmd, precision, recall, ssim]",
    f"metrics.custom.sharpness={__name__}.sharpness",
    "constraints={custom: {sharpness: {max_drop: 1.0}}}",
]


def sharpness(images: Tensor, prompts: list[str], dense: Tensor) -> Tensor:
    """A metric of one's own: mean difference of neighbouring pixels."""
    assert images.shape == dense.shape
    assert len(prompts) == len(images)
    return (images[..., 1:] - images[..., :-1]).abs().mean(dim=(1, 2, 3))


def evaluated(study: Study, cache: Path, sparsity: float = 0.5) -> tuple[Evaluator, Evaluation]:
    evaluator = Evaluator(study, str(cache))
    grid = evaluator.grid
    allocation = Allocation({address: grid.level_for(address, sparsity) for address in grid.addresses})
    return evaluator, evaluator.evaluate(EvaluationRequest(allocation, "preview"))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return evaluated(load(overrides=[*SMALL, *EVERYTHING]), tmp_path_factory.mktemp("run"))[1]


def test_every_metric_has_a_value_in_its_interval_an_extractor_and_n(everything: Evaluation) -> None:
    assert set(everything.measures) == {
        "clip_score", "clip_score_drop", "frechet", "frechet_rise", "kid", "kid_rise", "cmmd", "cmmd_rise",
        "precision", "precision_drop", "recall", "recall_drop", "closeness", "ssim", "sharpness", "sharpness_drop",
    }  # fmt: skip
    for name, measure in everything.measures.items():
        assert measure.ci_low <= measure.value <= measure.ci_high, name
        assert measure.n == 8, name
    assert everything.measures["cmmd"].extractor.startswith("open_clip:")
    assert everything.measures["kid"].extractor == "efficientnet-lite0-96"
    assert everything.measures["sharpness"].extractor.endswith("test_scoring.sharpness")
    assert everything.measures["ssim"].value < 1


def test_per_image_values_give_the_means(everything: Evaluation) -> None:
    for name in ("clip_score", "clip_score_drop", "closeness", "ssim", "sharpness", "sharpness_drop"):
        values = [sample[name] for sample in everything.samples]
        assert mean_interval(values).value == pytest.approx(everything.measures[name].value)


def pictures(folder: Path, count: int = 12) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_the_three_kinds_of_external_reference_agree_and_are_read_once(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "photos")
    rows = [{"image": f"photos/{n}.png", "caption": "noise"} for n in sorted(range(12), key=str)]
    table = tmp_path / "photos.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cache = tmp_path / "cache"
    by_folder = load(overrides=[*SMALL, f"metrics.reference.path={folder}"])
    evaluator, from_folder = evaluated(by_folder, cache)
    scorer = evaluator.scorer
    stored = cache / "cache" / external_key(evaluator.inputs, scorer, 32)
    assert stored.exists()
    saved = tmp_path / "photos.npz"
    gaussians.save(
        gaussians.statistics(scorer.external_features(32)["features"]), saved, "efficientnet-lite0-96"
    )
    for path, measures in ((table, {"frechet", "kid"}), (saved, {"frechet"})):
        # Saved statistics serve no KID, which the quickstart bounds.
        bounds = "constraints={frechet: {max_rise: 500}, closeness: {min: 0}}"
        other_study = load(overrides=[*SMALL, bounds, f"metrics.reference.path={path}"])
        _, other = evaluated(other_study, cache)
        for name in measures:
            assert other.measures[name].value == pytest.approx(from_folder.measures[name].value, rel=1e-6)
        assert ("kid" in other.measures) == ("kid" in measures)
    # Photographs of noise are no emoji: far from both, and farther than dense images of other seeds are.
    assert from_folder.measures["frechet"].value > 400


def test_prepare_reads_the_reference_once_and_the_evaluator_finds_it(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "photos")
    study = load(overrides=[*SMALL, f"metrics.reference.path={folder}"])
    found = {thing.what: thing for thing in prepare(study, str(tmp_path / "run"))}
    assert list(found) == ["prompts", "pipeline", "clip", "features", "reference"]
    assert "features of 12 images" in found["reference"].text
    evaluator = Evaluator(study, str(tmp_path / "run"))
    assert (tmp_path / "run" / "cache" / external_key(evaluator.inputs, ImageScorer(study), 32)).exists()


def test_bad_references_and_metrics_name_field_and_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "--set", "metrics.reference.path=nowhere"]) == 2
    assert "`metrics.reference.path`: there is no nowhere" in capsys.readouterr().err
    (tmp_path / "text.txt").write_text("no table")
    with pytest.raises(RaysenseError, match=r"`metrics\.reference\.path` must be a folder or one of"):
        ImageScorer(load(overrides=[f"metrics.reference.path={tmp_path / 'text.txt'}"]))
    with pytest.raises(RaysenseError, match=r"metrics\.custom\.mine: 'no\.such\.thing' cannot be imported"):
        ImageScorer(load(overrides=["metrics.custom.mine=no.such.thing"]))


def test_a_frechet_bound_alone_on_few_images_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    alone = "constraints={frechet: {max_rise: 50}, clip_score: {max_drop: 0.01}}"
    assert main(["validate", "--set", alone]) == 2
    said = capsys.readouterr().err
    assert "stands alone on the 80 images of the score rung and 160 images of the validation rung" in said
    assert "give each of these rungs 1,280, or bound closeness or kid" in said
    assert main(["validate", "--set", alone, "--set", "constraints.closeness.min=0.8"]) == 0
    assert "fewer images than efficientnet-lite0 has features" in capsys.readouterr().err
    assert main(["validate", "--set", "constraints={kid: {max_rise: 0.1}}"]) == 0
    assert "stands without a bound on each image (clip_score, closeness)" in capsys.readouterr().err
    assert main(["validate"]) == 0
    assert "stands without" not in capsys.readouterr().err


def test_a_hub_pipeline_is_pinned_to_its_commit_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub = tmp_path / "hub" / "models--someone--emoji"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text(commit)
    (hub / "snapshots").mkdir()
    (hub / "snapshots" / commit).symlink_to(pipeline_folder("bundled"), target_is_directory=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert hub_commit("someone/emoji", None) == commit
    assert hub_commit("someone/other", None) == ""
    assert hub_commit("bundled", None) == ""


def test_more_than_half_must_be_broken_and_an_undefined_metric_breaks_all() -> None:
    def part(n: int, collapsed: str = "", mine: float = 1.0) -> ScoredImages:
        values = {"clip_score": torch.ones(n), "mine": torch.full((n,), mine)}
        return ScoredImages(values, {"clip": torch.ones(n, 2)}, broken=(collapsed,) * n if collapsed else ())

    assert joined([part(3), part(2, "black")]).collapsed == ""
    assert joined([part(2), part(3, "black")]).collapsed == "black"
    undefined = joined([part(9), part(1, mine=float("nan"))])
    assert undefined.collapsed == "mine is undefined for some images"
    assert undefined.undefined == ["mine"]
    mixed = joined([part(2), part(3, "black")])
    assert mixed.rows([4, 0]).broken == ("black", "")
    assert ScoredImages.from_tensors(mixed.to_tensors()).broken == mixed.broken == ("", "", *["black"] * 3)
