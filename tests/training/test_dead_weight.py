"""The dead-weight check finds a block that is missed, one that is not, and what the layers hold together."""

from __future__ import annotations

import pytest
import torch

from raysense.metrics.features import EfficientNetLite0Features
from raysense.pipelines.load import load_pipeline, modules_of
from raysense.prompts.sets import Prompt
from raysense.study import Sampling
from training.beds import BEDS, Bed
from training.dead_weight import HARMLESS, dead_weight

PROMPTS = [
    Prompt(text, text)
    for text in (
        "a small giraffe between a purple sky and a yellow floor",
        "a big tractor on a red background",
        "a small goat between a green sky and a black floor",
        "a big rocket between a white sky and a blue floor",
    )
]


def test_a_block_that_does_nothing_is_found_and_the_pipeline_left_as_it_was() -> None:
    pipeline = load_pipeline("bundled")
    # What leaves this block is its input alone: all that is inside it stands idle.
    last = pipeline.unet.down_blocks[1].attentions[0].proj_out
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    before = {
        name: {k: v.clone() for k, v in part.state_dict().items()}
        for name, part in modules_of(pipeline).items()
    }
    found = dead_weight(
        pipeline, ["unet"], PROMPTS, EfficientNetLite0Features(96), Sampling(steps=3, guidance=1)
    )

    assert not found.passes
    assert "unet:down_blocks.1.attentions.0" in found.dead_blocks
    assert "unet:up_blocks.1.resnets.0" in found.blocks
    assert "unet:up_blocks.1.resnets.0" not in found.dead_blocks
    assert found.together_loss < HARMLESS
    assert all(share >= 0.03 for share in found.shares.values())
    assert sum(found.shares.values()) < 1
    for name, part in modules_of(pipeline).items():
        assert all((v == before[name][k]).all() for k, v in part.state_dict().items())


@pytest.mark.parametrize("bed", BEDS.values(), ids=list(BEDS))
def test_the_bundled_pipelines_hold_no_dead_weight(bed: Bed) -> None:
    """The check of `training.judge` with few images and steps; full figures: docs/explanation/bundled-pipeline.md."""
    pipeline, components = load_pipeline(bed.name), list(bed.parts(bed.tokenizer()))
    network = EfficientNetLite0Features(96)
    sampling = bed.sampling.model_copy(update={"steps": 6})
    found = dead_weight(pipeline, components, PROMPTS, network, sampling)
    assert found.passes, found.as_json()
    assert found.together < 0.15
    assert min(found.blocks.values()) > HARMLESS
