import socket
from pathlib import Path

import pytest

from raysense.cli import main
from raysense.errors import RaysenseError
from raysense.names import RENAMED, renamed
from raysense.study import Study, Track, load, parse, plain_yaml
from raysense.study.checks import look
from raysense.study.load import examine

MINIMAL = {"name": "s", "constraints": {"clip_score": {"max_drop": 0.01}}}


def test_quickstart_is_valid() -> None:
    assert load().name == "quickstart"


READY = sorted(Path(__file__).parents[2].glob("search/*.yaml"))


def test_the_ready_studies_are_there() -> None:
    names = {path.stem for path in READY}
    assert names >= {"quickstart", "sd2_paper", "sd2_layers", "sdxl", "sd35_medium", "flux"}
    assert names >= {"flux2_klein", "z_image_turbo", "qwen_image"}


@pytest.mark.parametrize("path", READY, ids=lambda path: path.name)
def test_ready_studies_pass_validate_without_a_network(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_network(*args: object) -> None:
        raise AssertionError("validate must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    assert main(["validate", str(path)]) == 0
    assert parse(plain_yaml.parse(capsys.readouterr().out)) == load(path)


def test_the_copy_to_edit_is_the_default_study() -> None:
    assert load(READY[0].parent / "quickstart.yaml") == load()


def test_yaml_round_trip() -> None:
    study = load()
    assert parse(plain_yaml.parse(study.to_yaml())) == study


def test_set_changes_one_value() -> None:
    study = load(overrides=["rungs.score.prompts=64", "prune.components=[unet]", "budget.max_nfe=1000"])
    assert study.rungs.score.prompts == 64
    assert study.prune.components == ("unet",)
    assert study.budget.max_nfe == 1000


def test_identity_ignores_what_may_be_extended() -> None:
    study = parse(MINIMAL)
    more = parse({**MINIMAL, "name": "t", "budget": {"max_nfe": 5}, "cluster": {"evaluators": 8}})
    more = more.model_copy(update={"track": Track(mlflow="sqlite:///x.db", tensorboard="board")})
    assert study.identity() == more.identity()
    assert parse({**MINIMAL, "seed": 1}).identity() != study.identity()


def test_bounds_name_field_measure_and_direction() -> None:
    study = parse(
        {"name": "s", "constraints": {"clip_score": {"max_drop": 0.01, "min": 0.2}, "kid": {"max_rise": 0.5}}}
    )
    found = {(b.field, b.measure, b.is_upper, b.limit) for b in study.constraints.bounds()}
    assert found == {
        ("constraints.clip_score.max_drop", "clip_score_drop", True, 0.01),
        ("constraints.clip_score.min", "clip_score", False, 0.2),
        ("constraints.kid.max_rise", "kid_rise", True, 0.5),
    }


ALL_METRICS = {
    "name": "s",
    "metrics": {"also": ["ssim"], "custom": {"sharpness": "my.metrics.sharpness"}},
    "constraints": {
        "cmmd": {"max_rise": 0.5},
        "precision": {"max_drop": 0.1},
        "recall": {"min": 0.3},
        "lpips": {"max": 0.4},
        "custom": {"sharpness": {"max_drop": 0.2, "min": 1.0}},
    },
}


def test_every_metric_can_be_bound_and_what_is_bound_is_measured() -> None:
    study = parse(ALL_METRICS)
    found = {(b.field, b.measure, b.is_upper) for b in study.constraints.bounds()}
    assert found == {
        ("constraints.cmmd.max_rise", "cmmd_rise", True),
        ("constraints.precision.max_drop", "precision_drop", True),
        ("constraints.recall.min", "recall", False),
        ("constraints.lpips.max", "lpips", True),
        ("constraints.custom.sharpness.max_drop", "sharpness_drop", True),
        ("constraints.custom.sharpness.min", "sharpness", False),
    }
    assert {"clip_score", "frechet", "kid", "closeness", "cmmd", "precision", "recall", "lpips", "ssim"} == {
        *study.measured()
    }
    assert parse(plain_yaml.parse(study.to_yaml())) == study
    assert set(parse(MINIMAL).measured()) == {"clip_score", "frechet", "kid", "closeness"}


def test_saved_statistics_serve_the_frechet_distance_only() -> None:
    saved = {"metrics": {"reference": {"path": "coco.npz"}}}
    assert "kid" not in parse({**MINIMAL, **saved}).measured()
    with pytest.raises(RaysenseError, match=r"`metrics.reference.path` is 'coco.npz'.* kid cannot"):
        parse({**MINIMAL, **saved, "constraints": {"kid": {"max_rise": 1.0}}})


def test_margin_uses_the_bad_end_of_the_interval() -> None:
    upper, lower = parse(
        {"name": "s", "constraints": {"clip_score": {"max_drop": 0.5, "min": 0.5}}}
    ).constraints.bounds()
    assert upper.margin(0.1, 0.4) == pytest.approx(0.1)
    assert lower.margin(0.4, 0.9) == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "constraints.clip_score.max_drop=-0.1",
            ["`constraints.clip_score.max_drop` must be ≥ 0, but got -0.1"],
        ),
        ("rungs.scoer=1", ["`rungs.scoer`", "did you mean `score`"]),
        ("nonsense=1", ["`nonsense` is not a key of a study", "known here", "pipeline"]),
        ("prune.max_layer_sparsity=2", ["`prune.max_layer_sparsity` must be ≤ 1, but got 2"]),
        ("cluster.gpus_per_evaluator=2", ["`cluster.gpus_per_evaluator` must be ≤ 1, but got 2"]),
        ("prune.kinds=[lin]", ["`prune.kinds.0`", "'linear'", 'got "lin"']),
        ("cluster.evaluators=many", ["`cluster.evaluators`", "'auto'", '"many"']),
        ("seed=1.5", ["`seed` must be a valid integer", "1.5"]),
        ("constraints.lpips.max=-1", ["`constraints.lpips.max` must be ≥ 0, but got -1"]),
        ("constraints.ssim={}", ["`constraints.ssim.min` is required"]),
        ("constraints.recall={}", ["`constraints.recall` must set one of max_drop, min"]),
        ("constraints.custom.sharp.min=1", ["`constraints.custom.sharp`", "`metrics.custom.sharp:"]),
        ("constraints.custom.sharp.mni=1", ["`constraints.custom.sharp.mni`", "did you mean `min`"]),
        ("metrics.custom.kid=my.kid", ["`metrics.custom.kid` must not reuse the name 'kid'"]),
        ("metrics.custom.sharp=no dots", ["`metrics.custom.sharp`", "no dots"]),
        ("metrics.also=[lpipss]", ["`metrics.also.0`", "'lpips'", "lpipss"]),
        ("metrics.reference.limit=1", ["`metrics.reference.limit` must be ≥ 2"]),
        ("rungs.probe.tilt=9", ["`rungs.probe.tilt` must be ≤ 8"]),
        ("constraints={}", ["`constraints` must name at least one of clip_score"]),
        ("constraints.clip_score={}", ["`constraints.clip_score` must set one of max_drop, min"]),
        ("constraints=null", ["`constraints`"]),
        ("rungs.preview.prompts=5000", ["`rungs` preview must have at most"]),
        ("track.mlfow=x", ["`track.mlfow`", "did you mean `mlflow`"]),
        ("track.experiment=x", ["`track.experiment` names an experiment", "set `track.mlflow`"]),
        ("track.tensorboard=s3://b/c", ["`track.tensorboard` must be a folder", "s3://b/c"]),
        (
            "track.mlflow=http://me:secret@host",
            ["`track.mlflow` holds a password", "MLFLOW_TRACKING_PASSWORD"],
        ),
        ("name=a/b", ["`name`", "a/b"]),
        ("novalue", ["`--set novalue` must look like key=value"]),
        ("name.deeper=1", ["`--set name.deeper`", "not a section"]),
        ("seed=[", ["`--set seed` must have a YAML value"]),
    ],
)
def test_mistakes_name_field_value_and_remedy(override: str, words: list[str]) -> None:
    with pytest.raises(RaysenseError) as caught:
        load(overrides=[override])
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keys_of_older_studies_are_refused_with_their_new_names(tmp_path: Path) -> None:
    old = """
name: old
constraints: {clip_score: {max_drop: 0.1}}
prune: {cap: 0.9}
metrics: {frechet: {extractor: inception-v3-compat}}
budget: {max_cost: 1000}
cluster: {images_per_part: 64}
search: {strategies: [recipe]}
"""
    file = tmp_path / "old.yaml"
    file.write_text(old)
    mistakes, _ = look(examine(file))
    assert sorted(mistakes) == sorted(renamed(key) for key in RENAMED)
    with pytest.raises(
        RaysenseError, match=r"^`prune\.cap` is called `prune\.max_layer_sparsity` since raysense 0\.3\.0$"
    ):
        load(overrides=["prune.cap=0.9"])
    with pytest.raises(RaysenseError, match=r"^`budget\.max_cost` is called `budget\.max_nfe`"):
        Study(name="old", constraints={"clip_score": {"max_drop": 0.1}}, budget={"max_cost": 10})


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(RaysenseError, match="cannot read the study"):
        load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(RaysenseError, match="not valid YAML"):
        load(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(RaysenseError, match="must be a mapping"):
        load(tmp_path / "list.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RaysenseError, match="not valid YAML"):
        load(tmp_path / "bytes.yaml")


def test_a_required_field_is_named() -> None:
    with pytest.raises(RaysenseError, match="`name` is required"):
        parse({"constraints": MINIMAL["constraints"]})
    assert isinstance(parse(MINIMAL), Study)
