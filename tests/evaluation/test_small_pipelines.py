"""The resident evaluator on small random pipelines of other families than the bundled one."""

from __future__ import annotations

from pathlib import Path

import torch

from raysense.evaluation.engine import Evaluator
from raysense.evaluation.records import Task
from raysense.pipelines.load import modules_of
from raysense.pruning.allocation import Allocation
from raysense.pruning.layers import count_zeros, weight_of
from raysense.study import Study, parse
from tests.pruning.families import FAMILIES, SIZE


def study_of(folder: Path, select: list[str], **more: object) -> Study:
    return parse(
        {
            "name": "small",
            "pipeline": str(folder),
            "sampling": {"steps": 2, "guidance": 4.0, "batch": 4, **SIZE},
            "prune": {"components": select},
            "constraints": {"clip_score": {"max_drop": 0.5}},
            "rungs": {
                "probe": {"prompts": 2, "timesteps": 2},
                "preview": {"prompts": 8},
                "score": {"prompts": 8},
                "validation": {"prompts": 8},
            },
            **more,
        }
    )


def built(name: str, folder: Path, select: list[str], **more: object) -> Evaluator:
    torch.manual_seed(0)
    FAMILIES[name].build().save_pretrained(folder / "pipeline")
    return Evaluator(study_of(folder / "pipeline", select, **more), str(folder / "store"))


def test_zeros_are_those_of_the_live_vae_that_is_cast_for_every_decoding(tmp_path: Path) -> None:
    """diffusers gives Stable Diffusion XL's VAE new storage whenever it decodes in float16."""
    evaluator = built("sdxl", tmp_path, ["unet", "vae"], dtype="float16")
    modules = modules_of(evaluator.pipeline)
    weight = evaluator.pipeline.vae.decoder.conv_in.weight
    storages = {weight.data_ptr()}
    for share in (0.5, 0.1, 0.3):
        allocation = evaluator.grid.uniform(share)
        evaluation = evaluator.evaluate(Task(allocation, "preview"))
        live = sum(count_zeros(weight_of(modules, layer)) for layer in evaluator.inventory.layers)
        assert evaluation.zeros == live == evaluator.grid.zeros(allocation) + evaluator.inventory.zeros_before
        assert "sampled anew" not in evaluation.notes
        storages.add(weight.data_ptr())
    assert len(storages) > 1
    evaluator.stand_at(Allocation())
    assert evaluator.masker.count_zeros() == evaluator.inventory.zeros_before
