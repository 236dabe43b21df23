"""Loading: what does not match is refused; compiling and laying out a denoiser leave masks, hooks and values alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from transformers import CLIPConfig, CLIPImageProcessor

from raysense.errors import RaysenseError
from raysense.pipelines.load import (
    Foreign,
    compile_denoiser,
    empty_components,
    load_pipeline,
    modules_of,
    notes_of,
)
from raysense.pipelines.origin import pipeline_folder
from raysense.pipelines.sample import call_pipeline, metered, refuse_other_scale
from raysense.prompts.sets import Prompt
from raysense.study import Sampling, SchedulerChoice
from tests.pruning.families import FAMILIES


def test_a_compiled_denoiser_survives_mask_switches_and_is_still_metered() -> None:
    unet = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8)).requires_grad_(False)
    pipeline: Any = SimpleNamespace(components={"unet": unet})
    x, dense = torch.randn(4, 8), unet[0].weight.clone()
    torch._dynamo.reset()
    counter = CompileCounter()
    compile_denoiser(pipeline, backend=counter)
    outputs = []
    with torch.inference_mode(), metered(pipeline) as meter:
        for level in (0.0, 0.5, 0.2, 0.0):
            unet[0].weight.copy_(dense * (dense.abs() > level))
            outputs.append(unet(x))
            eager = unet[2](unet[1](unet[0](x)))
            assert torch.allclose(outputs[-1], eager, atol=1e-6)
    assert counter.frame_count == 1  # compiled once, whatever the weights
    assert meter.nfe == 16
    assert torch.equal(outputs[0], outputs[3])
    assert not torch.allclose(outputs[0], outputs[1])


def test_channels_last_changes_the_layout_and_nothing_else() -> None:
    plain, last = load_pipeline("bundled"), load_pipeline("bundled", channels_last=True)
    weight = last.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    for (name, a), (_, b) in zip(plain.unet.named_parameters(), last.unet.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def broken(folder: Path, part: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> str:
    """A copy of the bundled pipeline with one component's tensors changed."""
    shutil.copytree(pipeline_folder("bundled"), folder)
    (file,) = (folder / part).glob("*.safetensors")
    tensors = change(load_file(file))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: {"model." + name: tensor for name, tensor in t.items()}, "lacks .* and has no use for"),
        (lambda t: dict(list(t.items())[1:]), "lacks 1 tensors"),
        (lambda t: {**t, "lora.up": torch.ones(2)}, r"has no use for 1 tensors \(lora.up\)"),
        (lambda t: {**t, next(iter(t)): next(iter(t.values()))[:1]}, "shape"),
        (lambda t: {**t, max(t): t[max(t)] * float("nan")}, "NaN or infinite"),
    ],
)
def test_weights_that_are_not_all_there_are_refused(
    part: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], told: str, tmp_path: Path
) -> None:
    folder = broken(tmp_path / "pipeline", part, change)
    with pytest.raises(RaysenseError, match=told) as caught:
        load_pipeline(folder)
    assert part in str(caught.value)


def test_a_component_of_an_unknown_class_is_neither_run_nor_forgotten(tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(pipeline_folder("bundled"), folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": ["my", "MyUNet"]}))
    (folder / "unet" / "my.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nMyUNet = None\n")
    with pytest.raises(RaysenseError, match=r"`unet`.*my\.MyUNet"):
        load_pipeline(str(folder))
    assert isinstance(empty_components(str(folder))["unet"], Foreign)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["MyPipeline", None, ["my", "MyPipeline"], "UNet2DConditionModel"])
def test_a_pipeline_of_an_unknown_class_is_refused_with_and_without_weights(
    kind: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(pipeline_folder("bundled"), folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": kind}))
    for reads in (load_pipeline, empty_components):
        with pytest.raises(
            RaysenseError, match=r"`pipeline`: the model_index.json of .* names .*`_class_name`"
        ):
            reads(str(folder))


def test_a_safety_checker_is_switched_off_and_said(tmp_path: Path) -> None:
    config = CLIPConfig(
        text_config={
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_attention_heads": 1,
            "num_hidden_layers": 1,
        },
        vision_config={
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_attention_heads": 1,
            "num_hidden_layers": 1,
        },
        projection_dim=8,
    )
    made = StableDiffusionPipeline(
        **{
            **load_pipeline("bundled").components,
            "safety_checker": StableDiffusionSafetyChecker(config),
            "feature_extractor": CLIPImageProcessor(),
        }
    )
    made.save_pretrained(tmp_path)
    loaded = load_pipeline(str(tmp_path))
    assert loaded.safety_checker is None
    assert set(modules_of(loaded)) == set(empty_components(str(tmp_path))) == {"unet", "vae", "text_encoder"}
    assert any("safety checker is switched off" in note for note in notes_of(loaded))
    assert not notes_of(load_pipeline("bundled"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_component_has_the_studys_type_or_it_is_said(dtype: str, tmp_path: Path) -> None:
    FAMILIES["sd3"].build().save_pretrained(tmp_path)
    loaded = load_pipeline(str(tmp_path), dtype=dtype)
    other = {
        name
        for name, module in modules_of(loaded).items()
        if any(weight.dtype != getattr(torch, dtype) for weight in module.parameters())
    }
    assert other <= {"text_encoder_3"}  # T5 keeps a few matrices in float32 where float16 would overflow
    assert {note.partition(":")[0] for note in notes_of(loaded)} == other
    assert all(weight.dtype == getattr(torch, dtype) for weight in loaded.transformer.parameters())


def test_images_of_another_size_than_the_study_says_are_refused() -> None:
    pipeline, prompts = load_pipeline("bundled"), [Prompt("a", "a cat")]
    both = call_pipeline(pipeline, prompts, [1], Sampling(steps=1, height=48, width=40))
    assert both.shape == (1, 3, 48, 40)
    for size, missing in (({"height": 48}, "width"), ({"width": 10**12}, "height")):
        with pytest.raises(RaysenseError, match=f"makes images of 32 x 32 .*give `sampling.{missing}` too"):
            call_pipeline(pipeline, prompts, [1], Sampling(steps=1, **size))


def test_pixels_on_another_scale_are_refused() -> None:
    class Gives:
        def __init__(self, images: Any) -> None:
            self.images = images.movedim(1, -1).numpy() if isinstance(images, Tensor) else images

        def __call__(
            self,
            prompt: Any,
            generator: Any = None,
            num_inference_steps: int = 1,
            guidance_scale: float = 1.0,
            output_type: str = "np",
        ) -> Any:
            return SimpleNamespace(images=self.images)

    gives: Any = Gives
    prompts = [Prompt("a", "a cat")]
    fine = torch.rand(1, 3, 8, 8)
    assert torch.equal(call_pipeline(gives(fine), prompts, [1], Sampling()), fine)
    refuse_other_scale(gives(fine), fine * 1.0005)
    for images in (fine * 2 - 1, fine * 1.1 + 0.1):
        with pytest.raises(RaysenseError, match=r"`pipeline`.* pixels from"):
            refuse_other_scale(gives(fine), images)
    for images in (fine[:, :1], fine.tolist()):
        with pytest.raises(RaysenseError, match=r"`pipeline`.* no images"):
            call_pipeline(gives(images), prompts, [1], Sampling())


def test_layers_that_their_class_keeps_in_float32_run_among_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import UNet2DConditionModel

    monkeypatch.setattr(UNet2DConditionModel, "_keep_in_fp32_modules", ["time_embedding"])
    pipeline = load_pipeline("bundled", dtype="bfloat16")
    kinds = {name: weight.dtype for name, weight in pipeline.unet.named_parameters()}
    kept = {name for name, kind in kinds.items() if kind == torch.float32}
    assert kept == {name for name in kinds if "time_embedding" in name}
    assert any("unet: 4 of" in note and "are float32, not bfloat16" in note for note in notes_of(pipeline))
    sampling = Sampling(steps=2, guidance=2.0)
    with torch.inference_mode():
        images = call_pipeline(pipeline, [Prompt("a", "a cat")], [1], sampling)
        exact = call_pipeline(load_pipeline("bundled"), [Prompt("a", "a cat")], [1], sampling)
    assert (images - exact).abs().mean() < 0.02


def test_another_scheduler_takes_the_pipelines_settings_and_its_own_options() -> None:
    choice = SchedulerChoice.model_validate(
        {"class": "HeunDiscreteScheduler", "options": {"use_karras_sigmas": True}}
    )
    own, pipeline = load_pipeline("bundled").scheduler, load_pipeline("bundled", scheduler=choice)
    assert type(pipeline.scheduler).__name__ == "HeunDiscreteScheduler"
    assert pipeline.scheduler.config.beta_schedule == own.config.beta_schedule
    assert pipeline.scheduler.config.use_karras_sigmas
    for kind, options, told in (
        ("Foo", {}, "is no scheduler"),
        ("DiffusionPipeline", {}, "is no scheduler"),
        ("DDIMScheduler", {"foo": 1}, "DDIMScheduler has no 'foo'"),
        ("DDIMScheduler", {"beta_schedule": "no"}, "cannot be made"),
    ):
        choice = SchedulerChoice.model_validate({"class": kind, "options": options})
        with pytest.raises(RaysenseError, match=rf"`sampling.scheduler.*{told}"):
            load_pipeline("bundled", scheduler=choice)
