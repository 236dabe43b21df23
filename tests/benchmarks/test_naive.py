"""The stages that the sweep of the naive recipe goes through."""

from __future__ import annotations

import pytest

from benchmarks.beds import STUDIES, study_of
from benchmarks.naive import stages
from raysense.names import BUNDLED_PIPELINES
from raysense.pruning.layers import Layer


@pytest.mark.parametrize("bed", BUNDLED_PIPELINES)
def test_every_bundled_pipeline_is_a_bed_with_a_study_of_its_own(bed: str) -> None:
    assert bed in STUDIES
    study = study_of(bed, ["sampling.steps=3"])
    assert (study.pipeline, study.sampling.steps) == (bed, 3)


def test_text_encoders_are_stages_and_a_denoiser_is_cut_where_half_of_its_weights_have_passed() -> None:
    def block(component: str, name: str, *sizes: int) -> list[Layer]:
        address = f"{component}:{name}"
        return [
            Layer(f"{address}.{i}", component, f"{name}.{i}", "linear", (n, 1), address)
            for i, n in enumerate(sizes)
        ]

    blocks = [
        block("text_encoder", "a", 5, 5),
        block("text_encoder", "b", 500),
        block("transformer", "a", 10, 30),
        block("transformer", "b", 20),
        block("transformer", "c", 40),
        block("transformer", "d", 1),
    ]
    assert stages(blocks, {"transformer"}) == {
        "text_encoder": ["text_encoder:a.0", "text_encoder:a.1", "text_encoder:b.0"],
        "transformer, earlier blocks": ["transformer:a.0", "transformer:a.1", "transformer:b.0"],
        "transformer, later blocks": ["transformer:c.0", "transformer:d.0"],
    }
