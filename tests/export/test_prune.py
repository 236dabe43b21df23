"""Pruned where they stand on disk, weights are those of an evaluator, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.evaluation.evaluator import Evaluator
from raysense.evaluation.identity import inventory_and_grid
from raysense.evaluation.inputs import identity_of_choice
from raysense.evaluation.learned import Learned
from raysense.export import prune
from raysense.export.dense import write_dense
from raysense.export.prune import prune_folder
from raysense.pipelines.load import empty_components, load_pipeline, modules_of
from raysense.store.disk import Disk
from raysense.study import Study, parse
from tests.pruning.families import FAMILIES, SIZE

METHODS: dict[str, dict[str, object]] = {
    "magnitude": {},
    "wanda": {"saliency": "wanda", "calibration": {"prompts": 2}},
    "taylor": {"saliency": "taylor", "calibration": {"prompts": 2}},
    "sparsegpt": {"saliency": "sparsegpt", "calibration": {"prompts": 2, "levels": 3}},
    "wanda 2:4": {"saliency": "wanda", "calibration": {"prompts": 2}, "pattern": "2:4"},
}


def study_of(folder: Path, dtype: str = "float32", **more: object) -> Study:
    plain = {"name": "pruned", "pipeline": str(folder), "dtype": dtype}
    sampling = {"steps": 2, "batch": 2, **SIZE}
    prune_ = {"components": ["text_encoder", "unet"], "include": ["*attn*", "*time_embedding*"], **more}
    bound = {"clip_score": {"max_drop": 0.5}}
    return parse({**plain, "sampling": sampling, "prune": prune_, "constraints": bound})


def on_disk(
    evaluator: Evaluator, study: Study, allocation: Allocation, out: Path, store: str
) -> dict[str, int]:
    """The allocation written from the dense files and what is in the store."""
    inventory, grid = evaluator.inventory, evaluator.grid
    learned = Learned(study, inventory, grid, evaluator.prompts, Disk(store), identity_of_choice(study))
    assert learned.has_all([study.prune.methods[0]])
    write_dense(study, out)
    classes = {name: type(module) for name, module in modules_of(evaluator.pipeline).items()}
    return prune_folder(
        out,
        classes,
        inventory,
        grid,
        allocation,
        lambda layer, weight, level: learned.at_level(layer, weight, level, study.prune.methods[0]),
        getattr(torch, study.dtype),
    )


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_it_is_what_an_evaluator_measured(
    method: str, renamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if renamed and method not in ("magnitude", "sparsegpt"):
        pytest.skip("one method that chooses and one that updates show it")
    torch.manual_seed(0)
    FAMILIES["sd1"].build().save_pretrained(tmp_path / "pipeline")
    study = study_of(tmp_path / "pipeline", **METHODS[method])
    store = str(tmp_path / "store")
    evaluator = Evaluator(study, store)
    full = evaluator.grid.uniform(0.5) if "2:4" not in method else evaluator.grid.uniform(1.0)
    allocation = Allocation({address: level for i, (address, level) in enumerate(full.items()) if i % 3})
    evaluator.stand_at(allocation)
    if renamed:  # as a component whose class gives its weights other names in a file
        monkeypatch.setattr(prune, "_name", lambda layer: f"other.{layer.path}")
    zeros = on_disk(evaluator, study, allocation, tmp_path / "out", store)
    assert sum(zeros.values()) == evaluator.live.zeros > 0
    written = modules_of(load_pipeline(str(tmp_path / "out")))
    for name, module in modules_of(evaluator.pipeline).items():
        ours = written[name].state_dict()
        assert all(torch.equal(ours[key], weight) for key, weight in module.state_dict().items()), name


def test_an_allocation_of_other_layers_changes_nothing(tmp_path: Path) -> None:
    FAMILIES["sd1"].build().save_pretrained(tmp_path / "pipeline")
    study = study_of(tmp_path / "pipeline")
    evaluator = Evaluator(study, str(tmp_path / "store"))
    with pytest.raises(RaysenseError, match="unet:nowhere"):
        on_disk(evaluator, study, Allocation({"unet:nowhere": 1}), tmp_path / "out", str(tmp_path / "store"))


def test_no_index_of_files_that_are_gone_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded whole and saved again, a component may stand in fewer files than before."""
    folder = tmp_path / "pipeline"
    FAMILIES["sd1"].build().save_pretrained(folder)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="50KB")
    study = study_of(folder, components=["unet"], include=["*time_embedding*"])
    inventory, grid = inventory_and_grid(study, empty_components(str(folder)))
    monkeypatch.setattr(prune, "_name", lambda layer: f"other.{layer.path}")
    allocation = Allocation(grid.uniform(0.5))
    prune_folder(
        folder, {"unet": type(unet)}, inventory, grid, allocation, lambda *given: given[1] * 0, torch.float32
    )
    written = UNet2DConditionModel.from_pretrained(folder / "unet")
    assert not any(written.get_submodule(layer.path).weight.any() for layer in inventory.layers)
