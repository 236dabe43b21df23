"""The dense folder that an export starts from: as ``save_pretrained`` writes it, but a tensor at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn

from raysense.export import dense
from raysense.export.dense import write_dense
from raysense.pipelines.load import load_for
from raysense.study import Study, parse
from raysense.study.weight_files import Stored
from tests.pruning.families import FAMILIES


def study_of(folder: Path, dtype: str = "float32", **more: object) -> Study:
    plain = {"name": "dense", "pipeline": str(folder), "dtype": dtype, "prune": {"components": ["unet"]}}
    return parse({**plain, "constraints": {"clip_score": {"max_drop": 0.5}}, **more})


def saved(name: str, folder: Path, **options: object) -> Path:
    torch.manual_seed(0)
    FAMILIES[name].build().save_pretrained(folder, **options)
    return folder


def refuse_to_load(*_: object, **__: object) -> None:
    raise AssertionError("a component was loaded whole")


def same(out: Path, expected: Path) -> None:
    """Both folders hold the same files, tensors and settings."""
    ours, theirs = (
        {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        for folder in (out, expected)
    )
    assert ours == theirs
    for name in ours:
        one, two = out / name, expected / name
        if one.suffix == ".safetensors":
            mine, others = load_file(one), load_file(two)
            assert mine.keys() == others.keys()
            assert all(mine[key].dtype == others[key].dtype for key in mine)
            assert all(torch.equal(mine[key], others[key]) for key in mine), name
        elif one.suffix == ".json":
            first, second = (json.loads(file.read_text()) for file in (one, two))
            assert {**first, "_name_or_path": ""} == {**second, "_name_or_path": ""}, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_no_component_is_ever_whole(
    family: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(saved(family, tmp_path / "pipeline"), dtype)
    load_for(study).save_pretrained(tmp_path / "expected")
    monkeypatch.setattr(dense, "load_component", refuse_to_load)
    write_dense(study, tmp_path / "out")
    same(tmp_path / "out", tmp_path / "expected")


def test_what_its_class_keeps_in_float32_is_kept(tmp_path: Path) -> None:
    """T5 does so with one of its layers, in float16."""
    study = study_of(saved("flux", tmp_path / "pipeline"), "float16", prune={"components": ["transformer"]})
    load_for(study).save_pretrained(tmp_path / "expected")
    write_dense(study, tmp_path / "out")
    same(tmp_path / "out", tmp_path / "expected")
    types = {tensor.dtype for tensor in load_file(tmp_path / "out/text_encoder_2/model.safetensors").values()}
    assert types == {torch.float16, torch.float32}


def test_variants_and_several_files_a_component(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved("sd1", tmp_path / "pipeline", variant="fp16")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", variant="fp16")
    for file in (folder / "unet").iterdir():
        file.unlink()
    unet.save_pretrained(folder / "unet", variant="fp16", max_shard_size="50KB")
    shards = sorted(file.name for file in (folder / "unet").glob("*.safetensors"))
    assert len(shards) > 1
    monkeypatch.setattr(dense, "load_component", refuse_to_load)
    write_dense(study_of(folder, variant="fp16"), tmp_path / "out")
    written = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet")
    assert all(torch.equal(weight, written.state_dict()[key]) for key, weight in unet.state_dict().items())
    assert len(list((tmp_path / "out" / "unet").glob("*.safetensors"))) == len(shards)
    assert not list((tmp_path / "out").rglob("*fp16*"))


def test_the_scheduler_is_the_study_s(tmp_path: Path) -> None:
    folder = saved("sd1", tmp_path / "pipeline")
    write_dense(
        study_of(folder, sampling={"scheduler": {"class": "EulerDiscreteScheduler"}}), tmp_path / "out"
    )
    assert (
        json.loads((tmp_path / "out/model_index.json").read_text())["scheduler"][1]
        == "EulerDiscreteScheduler"
    )


def test_files_that_hold_something_else_are_loaded_and_checked(tmp_path: Path) -> None:
    """A tensor that is stored under an older name goes the way that the library knows."""
    folder = saved("sd1", tmp_path / "pipeline")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    older = {name.replace(".to_q.", ".query."): tensor for name, tensor in tensors.items()}
    assert older.keys() != tensors.keys()
    save_file(older, file)
    write_dense(study_of(folder), tmp_path / "out")
    now = load_file(tmp_path / "out" / "vae" / file.name)
    assert now.keys() == tensors.keys()
    assert all(torch.equal(now[name], tensors[name]) for name in tensors)


def test_one_file_that_only_an_index_names(tmp_path: Path) -> None:
    folder = saved("sd1", tmp_path / "pipeline")
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    only = whole.with_name("diffusion_pytorch_model-00001-of-00001.safetensors")
    tensors = load_file(whole.rename(only))
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(tensors, only.name)}
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps(index))
    write_dense(study_of(folder), tmp_path / "out")
    written = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet").state_dict()
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())


class Tied(nn.Module):
    """Two maps with one weight, or one with an embedding's."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.first, self.second = other, nn.Linear(4, 4, bias=False)
        self.second.weight = other.weight  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("other", "names", "copied"),
    [
        (nn.Linear(4, 4, bias=False), ["second.weight"], True),
        (nn.Linear(4, 4, bias=False), ["first.weight", "second.weight"], False),
        (nn.Embedding(4, 4), ["first.weight", "second.weight"], True),
        (nn.Embedding(4, 4), [], False),
    ],
)
def test_a_shared_weight_stands_once_where_it_may_be_pruned(
    other: nn.Module, names: list[str], copied: bool
) -> None:
    """Pruned under one of its names, it would stay dense under the other."""
    files = {Path("model.safetensors"): {name: Stored("F32", (4, 4), 0, 64) for name in names}}
    assert dense._as_its_class_names_them(Tied(other), files, torch.float32) == copied
