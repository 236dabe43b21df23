"""How images are made: what may be said, what is refused, and that what is not said leaves a study's identity alone."""

from __future__ import annotations

import pytest

from raysense.errors import RaysenseError
from raysense.study import examine, load, parse
from raysense.study.checks import look

BEFORE = {
    "batch": 32,
    "guidance": 2.0,
    "height": None,
    "max_sequence_length": None,
    "steps": 12,
    "width": None,
}


def test_what_is_not_used_is_not_part_of_the_identity() -> None:
    study = load()
    assert study.identity()["sampling"] == study.sampling.model_dump() == BEFORE
    for name in ("variant", "config", "lora", "pickled"):
        assert name not in study.identity()
        assert name not in study.model_dump()
        assert f"\n{name}:" in study.to_yaml()
    assert "  call: {}" in study.to_yaml()


@pytest.mark.parametrize(
    "override",
    [
        "sampling.guidance=0",
        "sampling.call={clip_skip: 1}",
        "sampling.scheduler={class: HeunDiscreteScheduler}",
        "variant=fp16",
        "lora=[{path: /a.safetensors, weight: 0.5}]",
    ],
)
def test_what_is_used_is_part_of_it_and_comes_back(override: str) -> None:
    study = load(None, [override])
    assert study.identity() != load().identity()
    assert parse(study.model_dump(mode="json")) == study


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("sampling.guidance=-0.5", "must be ≥ 0"),
        ("sampling.call={prompt: a}", "prompts come from `prompts`"),
        ("sampling.call={num_inference_steps: 3}", "set `sampling.steps`"),
        ("sampling={max_sequence_length: 3, call: {max_sequence_length: 4}}", "give one of them"),
        ("sampling.scheduler=Heun", "must be a mapping with class, options"),
        ("sampling.scheduler={options: {}}", "`sampling.scheduler.class` is required"),
        ("sampling.scheduler={class: a.B}", "`sampling.scheduler.class`"),
    ],
)
def test_what_cannot_be_is_refused(override: str, told: str) -> None:
    with pytest.raises(RaysenseError, match=told):
        load(None, [override])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "sampling.call={clipskip: 1}",
            "`sampling.call.clipskip`: .* takes no clipskip; did you mean `clip_skip`",
        ),
        (
            "sampling.max_sequence_length=8",
            "`sampling.max_sequence_length`: StableDiffusionPipeline takes no",
        ),
        ("sampling.scheduler={class: Heun}", "'Heun' is no scheduler of the installed diffusers"),
        ("sampling.scheduler={class: EulerDiscrete}", "did you mean EulerDiscreteScheduler"),
        (
            "sampling.scheduler={class: DDIMScheduler, options: {eta: 1}}",
            "has no 'eta'; it has .*beta_end",
        ),
    ],
)
def test_what_the_pipeline_or_its_scheduler_does_not_take_is_said_by_validate(
    override: str, told: str
) -> None:
    import re

    (mistake,) = look(examine(None, [override]))[0]
    assert re.search(told, mistake)
