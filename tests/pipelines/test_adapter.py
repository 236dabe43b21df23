"""What differs between families of pipelines, on small ones with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    FluxControlNetPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    WanPipeline,
)

from benchmarks.families.builders import FAMILIES, awake
from raysense.errors import RaysenseError
from raysense.evaluation.identity import inventory_and_grid
from raysense.pipelines.adapter import call_arguments, conditions_in, schedulers_of, why_not
from raysense.pipelines.load import empty_components, load_pipeline, modules_of
from raysense.pipelines.sample import call_pipeline
from raysense.pipelines.without_weights import foresee, watched
from raysense.prompts.sets import Prompt
from raysense.study import Sampling, parse


def small(name: str, folder: Path) -> str:
    torch.manual_seed(0)
    awake(FAMILIES[name].build()).save_pretrained(folder)
    return str(folder)


def arguments(name: str, **sampling: Any) -> dict[str, Any]:
    pipeline = FAMILIES[name].build()
    return call_arguments(pipeline, Sampling(steps=2, **sampling))


def test_guidance_is_handed_over_as_the_pipeline_takes_it() -> None:
    assert arguments("StableDiffusionPipeline", guidance=4.0)["guidance_scale"] == 4.0
    assert arguments("FluxPipeline", guidance=4.0)["guidance_scale"] == 4.0  # distilled
    told = arguments("QwenImagePipeline", guidance=4.0)
    assert (told["true_cfg_scale"], told["negative_prompt"]) == (4.0, " ")
    assert "guidance_scale" not in told
    assert arguments("QwenImagePipeline", guidance=0.0)["true_cfg_scale"] == 1.0
    own = arguments("QwenImagePipeline", guidance=4.0, call={"true_cfg_scale": 2.0, "negative_prompt": "x"})
    assert (own["true_cfg_scale"], own["negative_prompt"]) == (2.0, "x")
    assert arguments("StableCascadeCombinedPipeline", guidance=3.0)["prior_guidance_scale"] == 3.0
    assert "guidance_scale" not in arguments("Flux2KleinKVPipeline", guidance=1.0)
    with pytest.raises(RaysenseError, match=r"`sampling.guidance` is 4, but Flux2KleinKVPipeline takes none"):
        arguments("Flux2KleinKVPipeline", guidance=4.0)
    with pytest.raises(RaysenseError, match=r"`sampling.call` holds 'foo', which FluxPipeline does not take"):
        arguments("FluxPipeline", call={"foo": 1})


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (StableDiffusionPipeline, ""),
        (StableDiffusionControlNetPipeline, "it needs `image` beside a prompt"),
        (FluxControlNetPipeline, "it needs `control_image` beside a prompt"),
        (WanPipeline, "it makes videos, not images"),
        (
            StableDiffusionImg2ImgPipeline,
            "it starts from an image (`_class_name` in model_index.json may be StableDiffusionPipeline)",
        ),
    ],
)
def test_pipelines_that_want_more_than_a_prompt_are_refused(kind: type, why: str) -> None:
    assert why_not(kind) == why


def test_stages_that_follow_each_other_are_counted_and_probed_together(tmp_path: Path) -> None:
    folder = small("KandinskyV22CombinedPipeline", tmp_path)
    sampling = Sampling(
        steps=2, guidance=4.0, batch=2, height=64, width=64, call={"prior_num_inference_steps": 3}
    )
    cost = foresee(folder, sampling).cost
    assert (cost.image, cost.steps) == (10, 5)
    pipeline = load_pipeline(folder)
    assert set(schedulers_of(pipeline)) == {"scheduler", "prior_scheduler"}
    with watched(pipeline) as watch, torch.inference_mode():
        images = call_pipeline(pipeline, [Prompt("a", "a cat")], [0], sampling)
    assert (watch.nfe, watch.steps) == (10, 5)
    assert float(images.min()) >= 0  # of its own accord it hands out tensors in [-1, 1]
    assert float(images.max()) <= 1


def test_what_never_runs_is_neither_prunable_nor_in_the_components_denominator(tmp_path: Path) -> None:
    folder = small("QwenImagePipeline", tmp_path)
    study = parse(
        {
            "name": "idle",
            "pipeline": folder,
            "prune": {"components": ["text_encoder", "transformer"]},
            "constraints": {"clip_score": {"max_drop": 0.5}},
            "sampling": {"steps": 2, "guidance": 4.0, "batch": 2, "height": 32, "width": 32},
        }
    )
    for modules in (empty_components(folder), modules_of(load_pipeline(folder))):
        inventory, _ = inventory_and_grid(study, modules)
        paths = {layer.path for layer in inventory.layers if layer.component == "text_encoder"}
        assert paths
        assert not any("visual" in path or "lm_head" in path for path in paths)
        encoder = modules["text_encoder"]
        idle = sum(
            p.numel() for name, p in encoder.named_parameters() if "visual" in name or "lm_head" in name
        )
        whole = sum(p.numel() for name in ("text_encoder", "transformer") for p in modules[name].parameters())
        assert idle > 0
        assert inventory.n_components == whole - idle
        assert inventory.n_pipeline == sum(p.numel() for m in modules.values() for p in m.parameters())


@pytest.mark.parametrize("name", ["PRXPipeline", "DreamLitePipeline"])
def test_a_pipeline_that_takes_one_prompt_a_call_says_so_before_it_is_loaded(
    name: str, tmp_path: Path
) -> None:
    folder = small(name, tmp_path)
    more = FAMILIES[name].sampling
    sampling = Sampling(steps=2, height=64, width=64, **{**more, "batch": 2})
    with pytest.raises(RaysenseError, match=r"`sampling.batch`.*set it to 1"):
        foresee(folder, sampling)
    assert not foresee(folder, sampling.model_copy(update={"batch": 1})).why_not


def test_what_guidance_leads_away_from_is_said_for_every_prompt() -> None:
    pipeline = load_pipeline("bundled")
    plain = Sampling(steps=1, guidance=3.0)
    away = plain.model_copy(update={"call": {"negative_prompt": "a dog"}})
    prompts = [Prompt("a", "a cat"), Prompt("b", "a bird")]
    together = call_pipeline(pipeline, prompts, [0, 1], away)
    alone = call_pipeline(pipeline, prompts[1:], [1], away)
    assert torch.allclose(together[1:], alone, atol=1e-4)
    assert not torch.allclose(together, call_pipeline(pipeline, prompts, [0, 1], plain), atol=1e-4)


def test_text_embeddings_are_told_apart_by_prompt_in_every_shape() -> None:
    """In lists of texts, with a language model's layers before or behind the samples, and for one null prompt."""
    n, samples = 2, 4
    latents = torch.zeros(samples, 3, 8, 8)

    def rows(**kwargs: Any) -> list[list[float]]:
        found = conditions_in((latents, torch.zeros(samples)), kwargs, n)
        return [torch.cat([part.flatten(1)[:, 0] for part in parts]).tolist() for parts in found]

    own = torch.arange(float(samples))
    assert rows(encoder_hidden_states=own[:, None, None].expand(samples, 6, 5)) == [[0, 1, 2, 3]]
    assert rows(encoder_hidden_states=own[:, None, None, None].expand(samples, 6, 3, 5)) == [[0, 1, 2, 3]]
    assert rows(encoder_hidden_states=own[None, :, None, None].expand(2, samples, 6, 5)) == [[0, 1, 2, 3]]
    texts = [value.expand(length, 5) for value, length in zip(own, (6, 8, 4, 7), strict=True)]
    assert rows(cap_feats=texts) == rows(cap_feats=[[text] for text in texts]) == [[0, 1, 2, 3]]
    found = conditions_in((list(latents), torch.zeros(samples), texts), {}, n)
    assert [[part.shape for part in parts] for parts in found] == [
        [(1, 6, 5), (1, 8, 5), (1, 4, 5), (1, 7, 5)]
    ]
    assert rows(pooled_projections=own[:, None], text_bth=own[:, None, None]) == [[0, 1, 2, 3]] * 2
    assert rows(encoder_hidden_states=torch.full((1, 6, 5), 9.0)) == [[9, 9]]
    assert (
        rows(encoder_hidden_states_mask=torch.ones(samples, 6, dtype=torch.long), txt_ids=torch.ones(6, 3))
        == []
    )
