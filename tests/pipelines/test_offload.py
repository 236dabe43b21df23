"""Weights that wait in the host's memory: same images, masks that survive, what is written is what runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.evaluation.calibration import needs_of
from raysense.evaluation.live_pipeline import LivePipeline
from raysense.evaluation.rungs.probe import ProbeRung
from raysense.pipelines import offload
from raysense.pipelines.load import load_pipeline, modules_of
from raysense.pipelines.sample import call_pipeline, metered
from raysense.prompts.sets import Prompt, load_prompts
from raysense.pruning.layers import count_zeros, weight_of
from raysense.study import Study
from tests.pruning.families import FAMILIES, study_of

PROMPTS = [Prompt("a", "a cat"), Prompt("b", "two dogs on a hill")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with a tied text encoder (T5)."""
    place = tmp_path_factory.mktemp("sd3")
    FAMILIES["sd3"].build().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LivePipeline:
    """The pipeline all on one device."""
    return live_pipeline(offloaded(folder, "none"), tmp_path_factory.mktemp("plain"))


def live_pipeline(study: Study, folder: Path) -> LivePipeline:
    return LivePipeline(study, str(folder), load_prompts(study.prompts))


def offloaded(folder: Path, how: str, **more: Any) -> Study:
    return study_of(folder, ["text_encoder", "transformer"], offload=how, **more)


def moving_storages(module: nn.Module, _device: torch.device) -> None:
    """What a way to a GPU and back does to weights, on a machine without one: the same values somewhere else."""
    for weight in module.parameters():
        weight.data = weight.data.clone()


def images(live: LivePipeline) -> Tensor:
    return call_pipeline(live.pipeline, PROMPTS, [0, 1], live.study.sampling)


@pytest.mark.parametrize("how", ["model", "sequential"])
def test_masks_survive_and_dense_comes_back(
    folder: Path, plain: LivePipeline, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "_move", moving_storages)
    moved = live_pipeline(offloaded(folder, how), tmp_path)
    assert moved.inventory == plain.inventory
    with offload.at_rest(moved.pipeline):
        before = {name: module.state_dict() for name, module in modules_of(moved.pipeline).items()}
        before = {name: {k: v.clone() for k, v in state.items()} for name, state in before.items()}
    half = plain.grid.uniform(0.5)
    found = []
    for live in (plain, moved):
        with torch.inference_mode(), metered(live.pipeline) as meter:
            live.stand_at(Allocation())
            dense = images(live)
            live.stand_at(half)
            pruned = images(live)
            assert not live.has_moved()
            found.append((dense, pruned, ProbeRung(live).errors(half), live.zeros, meter.nfe))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][0], found[0][1])
    assert found[0][2:] == found[1][2:]
    modules = modules_of(moved.pipeline)
    assert moved.zeros == sum(count_zeros(weight_of(modules, layer)) for layer in moved.inventory.layers)
    moved.stand_at(Allocation())
    with offload.at_rest(moved.pipeline):
        for name, module in modules.items():
            assert all(torch.equal(v, before[name][k]) for k, v in module.state_dict().items())


def test_what_waits_is_saved_whole(folder: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(str(folder))
    offload.place(pipeline, "sequential", "cpu")
    assert all(weight.is_meta for weight in pipeline.text_encoder.parameters())
    with offload.at_rest(pipeline):
        pipeline.save_pretrained(tmp_path / "again", safe_serialization=True)
    assert all(weight.is_meta for weight in pipeline.text_encoder.parameters())
    first, second = load_pipeline(str(folder)), load_pipeline(str(tmp_path / "again"))
    for name, module in modules_of(first).items():
        again = modules_of(second)[name].state_dict()
        assert all(torch.equal(v, again[k]) for k, v in module.state_dict().items())


def test_one_component_is_on_the_device_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load_pipeline(str(folder))
    where: dict[int, str] = {}
    most = []

    def go(module: nn.Module, device: torch.device) -> None:
        where[id(module)] = device.type
        most.append(sum(kind == "cuda" for kind in where.values()))

    monkeypatch.setattr(offload, "_move", go)
    monkeypatch.setattr(offload, "send_to_device", lambda given, device: given)
    offload.place(pipeline, "model", "cuda")
    for module in modules_of(pipeline).values():
        vars(module)["_old_forward"] = lambda *args, **kwargs: None
        module.forward()
    assert max(most) == 1


def test_what_cannot_be_offloaded_is_refused(folder: Path) -> None:
    with pytest.raises(RaysenseError, match=r"`offload` is 'model'.*`compile`"):
        offloaded(folder, "model", compile=True)
    prune = {"components": ["text_encoder"], "saliency": "taylor"}
    with pytest.raises(RaysenseError, match=r"`offload` is 'sequential'.*taylor"):
        needs_of(offloaded(folder, "sequential", prune=prune))
