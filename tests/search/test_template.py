"""`raysense init` writes a study that is right as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysense.cli import main
from raysense.study import load


@pytest.mark.parametrize(
    ("name", "components", "embeddings"),
    [
        ("bundled", {"text_encoder", "unet"}, None),
        # 256 zero embeddings in the place of one would make its images ten times as dear.
        ("bundled-transformer", {"text_encoder", "text_encoder_2", "transformer"}, 1),
    ],
)
def test_a_study_of_a_bundled_pipeline_can_be_run_as_it_is(
    name: str, components: set[str], embeddings: int | None, tmp_path: Path
) -> None:
    file = tmp_path / "study.yaml"
    assert main(["init", name, "--out", str(file)]) == 0
    study = load(file)
    assert (study.pipeline, study.name) == (name, name)
    assert set(study.prune.components) == components
    assert study.sampling.max_sequence_length == embeddings
    assert main(["validate", str(file)]) == 0
    assert main(["init", name, "--out", str(file)]) == 2


def test_a_folder_gives_what_its_own_call_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from raysense.study import bundled_pipeline

    folder = tmp_path / "my pipeline [1]"
    folder.symlink_to(bundled_pipeline())
    assert main(["init", str(folder)]) == 0
    text = capsys.readouterr().out
    (tmp_path / "s.yaml").write_text(text)
    study = load(tmp_path / "s.yaml")
    assert study.pipeline == str(folder)
    assert (study.sampling.steps, study.sampling.guidance) == (50, 7.5)
    assert study.name == "my-pipeline-1"


def test_what_is_no_pipeline_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path)]) == 2
    assert "model_index.json" in capsys.readouterr().err
