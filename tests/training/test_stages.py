"""What a bed has learned survives being kept, exported, loaded and unpacked; the weights here are untrained ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from raysense.pipelines.load import load_pipeline, modules_of, notes_of
from training import stages
from training.beds import BEDS, Bed

UNUSED = Path("unused")


@pytest.fixture(params=BEDS.values(), ids=BEDS)
def bed(request: pytest.FixtureRequest) -> Bed:
    chosen: Bed = request.param
    return chosen


@pytest.fixture
def learned(bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.ModuleDict:
    """A bed's parts, whose average lies under ``runs`` as a checkpoint; all else is the test's own."""
    shutil.copytree(stages.BUNDLE, tmp_path / "bundle")
    monkeypatch.setattr(stages, "BUNDLE", tmp_path / "bundle")
    monkeypatch.setattr(stages, "CHECKPOINTS", tmp_path / "checkpoints")
    torch.manual_seed(3)
    parts = bed.parts(bed.tokenizer())
    (tmp_path / "runs" / bed.name).mkdir(parents=True)
    average = {f"module.{name}": weight for name, weight in parts.state_dict().items()}
    torch.save({"average": average | {"n_averaged": 7}}, tmp_path / "runs" / bed.name / "diffusion.pt")
    shutil.copytree(stages.BUNDLE / "pipeline" / "vae", tmp_path / "runs" / "vae")
    return parts


def halved(parts: nn.ModuleDict) -> dict[str, torch.Tensor]:
    """The weights after a journey in 16 bits."""
    return {name: weight.half().float() for name, weight in parts.state_dict().items()}


def test_training_goes_on_from_what_was_kept(bed: Bed, learned: nn.ModuleDict, tmp_path: Path) -> None:
    stages.keep(emoji=UNUSED, out=tmp_path / "runs", device="cpu", bed=bed)
    stages.unpack(emoji=UNUSED, out=tmp_path / "elsewhere", device="cpu", bed=bed)
    weights = torch.load(tmp_path / "elsewhere" / bed.name / "diffusion-start.pt", weights_only=True)
    for name, wanted in halved(learned).items():
        assert torch.equal(weights[name], wanted)


def test_an_exported_bed_loads_and_training_goes_on_from_it(
    bed: Bed, learned: nn.ModuleDict, tmp_path: Path
) -> None:
    scorer = load_file(stages.BUNDLE / "scorer" / "open_clip_model.safetensors")
    torch.save(scorer, tmp_path / "runs" / "scorer-average.pt")
    before = {path: path.read_bytes() for path in (stages.BUNDLE / "scorer").iterdir()}
    shutil.rmtree(stages.BUNDLE / bed.folder, ignore_errors=True)
    stages.export(emoji=UNUSED, out=tmp_path / "runs", device="cpu", bed=bed)

    pipeline = load_pipeline(str(stages.BUNDLE / bed.folder))
    assert not notes_of(pipeline)
    modules = modules_of(pipeline)
    for name, wanted in halved(learned).items():
        component, _, path = name.partition(".")
        assert torch.equal(modules[component].state_dict()[path], wanted)
    for path_before, content in before.items():
        assert path_before.read_bytes() == content
    stages.unpack(emoji=UNUSED, out=tmp_path / "elsewhere", device="cpu", bed=bed)
    weights = torch.load(tmp_path / "elsewhere" / bed.name / "diffusion-start.pt", weights_only=True)
    assert all(torch.equal(weights[name], wanted) for name, wanted in halved(learned).items())
