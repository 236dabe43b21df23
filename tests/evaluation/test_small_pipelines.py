"""The resident evaluator on small random pipelines of other families than the bundled one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    ChromaPipeline,
    ChromaTransformer2DModel,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from torch import nn

from benchmarks.families.builders import FAMILIES as SMALL
from benchmarks.families.builders import awake
from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.evaluation.evaluator import Evaluator
from raysense.evaluation.identity import inventory_and_grid
from raysense.evaluation.live_pipeline import LivePipeline
from raysense.evaluation.rungs.probe import ProbeRung
from raysense.pipelines.load import empty_components, load_pipeline, modules_of
from raysense.pipelines.sample import call_pipeline
from raysense.pipelines.without_weights import foresee, watched
from raysense.prompts.sets import Prompt, load_prompts
from raysense.pruning.layers import count_zeros, weight_of
from raysense.records import EvaluationRequest
from raysense.search.job import layer_rows
from raysense.search.try_once import allocate
from raysense.study import Sampling
from tests.pruning.families import FAMILIES, SIZE, study_of, t5, t5_tokenizer, vae


def chroma() -> DiffusionPipeline:
    """Calls its denoiser twice a step, with other embeddings each time."""
    return ChromaPipeline(
        transformer=ChromaTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=[4, 4, 8],
            approximator_hidden_dim=32,
            approximator_layers=1,
            approximator_num_channels=16,
        ),
        vae=vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        image_encoder=None,
        feature_extractor=None,
    )


BUILD = {**{name: family.build for name, family in FAMILIES.items()}, "chroma": chroma}
SELECT = {
    **{name: family.select for name, family in FAMILIES.items()},
    "chroma": ("text_encoder", "transformer"),
}


def saved(name: str, folder: Path) -> str:
    torch.manual_seed(0)
    pipeline = BUILD[name]()
    for module in modules_of(pipeline).values():
        for weight in module.parameters():
            if not weight.any():  # layers that begin as zeros would hide every effect
                nn.init.normal_(weight, std=0.1)
    pipeline.save_pretrained(folder / "pipeline")
    return str(folder / "pipeline")


def built(name: str, folder: Path, select: list[str], **more: object) -> Evaluator:
    saved(name, folder)
    return Evaluator(study_of(folder / "pipeline", select, **more), str(folder / "store"))


def test_zeros_are_those_of_the_live_vae_that_is_cast_for_every_decoding(tmp_path: Path) -> None:
    """diffusers gives Stable Diffusion XL's VAE new storage whenever it decodes in float16."""
    evaluator = built("sdxl", tmp_path, ["unet", "vae"], dtype="float16")
    modules = modules_of(evaluator.pipeline)
    weight = evaluator.pipeline.vae.decoder.conv_in.weight
    storages = {weight.data_ptr()}
    for share in (0.5, 0.1, 0.3):
        allocation = evaluator.grid.uniform(share)
        evaluation = evaluator.evaluate(EvaluationRequest(allocation, "preview"))
        live = sum(count_zeros(weight_of(modules, layer)) for layer in evaluator.inventory.layers)
        assert evaluation.zeros == live == evaluator.grid.zeros(allocation) + evaluator.inventory.zeros_before
        assert "sampled anew" not in evaluation.notes
        storages.add(weight.data_ptr())
    assert len(storages) > 1
    evaluator.stand_at(Allocation())
    assert evaluator.masker.count_zeros() == evaluator.inventory.zeros_before


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "chroma"])
def test_the_dense_probe_is_exactly_zero_and_every_component_is_seen(name: str, tmp_path: Path) -> None:
    """Each call is replayed with its own embeddings; a pruned VAE is seen whatever the denoiser is called with."""
    evaluator = built(name, tmp_path, [*SELECT[name], "vae"])
    dense = evaluator.evaluate(EvaluationRequest(Allocation(), "probe")).measures
    assert dense["probe_error"].value == dense["text_error"].value == 0
    for component in evaluator.study.prune.components:
        layers = [a for a in evaluator.grid.addresses if a.startswith(f"{component}:")]
        pruned = Allocation({a: evaluator.grid.level_for(a, 0.6) for a in layers})
        found = evaluator.evaluate(EvaluationRequest(pruned, "probe")).measures
        assert found["probe_error"].value > 1e-9, component
        assert (found["text_error"].value > 0) == ("text" in component)


@pytest.mark.parametrize("name", ["Krea2Pipeline", "ZImagePipeline", "KandinskyCombinedPipeline"])
def test_the_text_error_sees_the_text_encoder_of_every_family(name: str, tmp_path: Path) -> None:
    """Embeddings come as stacks of layers, as lists of texts, under names of their own, and in a later stage."""
    torch.manual_seed(0)
    awake(SMALL[name].build()).save_pretrained(tmp_path / "pipeline")
    sampling = {"steps": 2, "guidance": 4.0, "batch": 2, **SIZE, **SMALL[name].sampling}
    study = study_of(tmp_path / "pipeline", ["text_encoder"], sampling=sampling)
    live = LivePipeline(study, str(tmp_path / "store"), load_prompts(study.prompts))
    probe = ProbeRung(live)
    dense = probe.errors(Allocation())
    assert dense["text_error"].value == dense["probe_error"].value == 0
    half = Allocation({address: live.grid.level_for(address, 0.5) for address in live.grid.addresses})
    assert 0 < probe.errors(half)["text_error"].value < 2


def test_a_probe_that_meets_no_step_of_a_stage_is_refused(tmp_path: Path) -> None:
    """What that stage's denoiser and its encoder lose would cost nothing."""
    torch.manual_seed(0)
    awake(SMALL["KandinskyCombinedPipeline"].build()).save_pretrained(tmp_path / "pipeline")
    long = {"steps": 2, "guidance": 4.0, "batch": 2, **SIZE, "call": {"prior_num_inference_steps": 20}}
    study = study_of(tmp_path / "pipeline", ["unet"], sampling=long)
    live = LivePipeline(study, str(tmp_path / "store"), load_prompts(study.prompts))
    with pytest.raises(
        RaysenseError, match=r"`rungs.probe.timesteps` is 2, and none of .* 22, is one of `unet`"
    ):
        ProbeRung(live).errors(Allocation())


def test_a_pipeline_whose_replay_is_not_exact_is_refused(tmp_path: Path) -> None:
    evaluator = built("flux", tmp_path, ["transformer"])
    calls = 0

    def drifts(module: nn.Module, args: object, output: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        nonlocal calls
        calls += 1
        return (output[0] * (1 + 1e-3 * calls),)

    evaluator.pipeline.transformer.register_forward_hook(drifts)
    with pytest.raises(RaysenseError, match=r"dense FluxPipeline does not give what it gave before"):
        evaluator.evaluate(EvaluationRequest(Allocation(), "probe"))


@pytest.mark.parametrize(
    ("name", "scheduler", "image", "steps"),
    [
        ("sd1", DDIMScheduler(), 8, 4),
        ("sd1", PNDMScheduler(skip_prk_steps=True), 10, 5),
        ("sd1", PNDMScheduler(skip_prk_steps=False), 26, 13),
        ("sd1", HeunDiscreteScheduler(), 14, 7),
        ("sdxl", None, 8, 4),
        ("sd3", None, 8, 4),
        ("flux", None, 4, 4),  # distilled with its guidance inside
        ("chroma", None, 8, 4),  # two calls a step
    ],
)
def test_cost_and_order_are_foreseen_without_weights(
    name: str, scheduler: Any, image: int, steps: int, tmp_path: Path
) -> None:
    folder, sampling = saved(name, tmp_path), Sampling(steps=4, guidance=4.0, **SIZE)
    if scheduler is not None:
        made = DiffusionPipeline.from_pretrained(folder)
        made.scheduler = type(scheduler).from_config(made.scheduler.config, **scheduler.config)
        made.save_pretrained(folder)
    foreseen = foresee(folder, sampling)
    assert (foreseen.cost.image, foreseen.cost.steps, foreseen.why_not) == (image, steps, "")
    pipeline = load_pipeline(folder)
    with torch.inference_mode(), watched(pipeline) as watch:
        call_pipeline(pipeline, [Prompt("a", "a picture")], [0], sampling)
    assert (watch.nfe, watch.steps) == (image, steps)
    assert tuple(watch.order) == foreseen.order


def test_steps_that_the_scheduler_refuses_are_said(tmp_path: Path) -> None:
    folder = saved("sd1", tmp_path)
    with pytest.raises(RaysenseError, match=r"`sampling.steps`: DDIMScheduler cannot sample in 2000 steps"):
        foresee(folder, Sampling(steps=2000, **SIZE))


def test_what_probes_and_images_cost_is_what_is_counted(tmp_path: Path) -> None:
    evaluator = built("chroma", tmp_path, ["transformer"])
    study = evaluator.study
    cost = foresee(study.pipeline, study.sampling).cost
    some = [evaluator.grid.uniform(share) for share in (0.2, 0.4)]
    probes = [evaluator.evaluate(EvaluationRequest(allocation, "probe")).nfe for allocation in some]
    assert probes == [
        cost.probe(study.rungs.probe, records=True),
        cost.probe(study.rungs.probe),
    ]


def test_more_sparsity_than_the_cap_allows_is_refused_with_the_most_that_there_is(
    tmp_path: Path,
) -> None:
    evaluator = built("flux", tmp_path, ["transformer"], search={"strategies": ["uniform"]})
    most = evaluator.grid.max_zeros
    with pytest.raises(
        RaysenseError, match=rf"at most 0\.\d+ of .* {most:,} zeros.*--set prune\.max_layer_sparsity=0\.995"
    ):
        allocate(evaluator, 0.99)
    asked, allocation = allocate(evaluator, evaluator.study.prune.max_layer_sparsity)
    assert asked == round(
        evaluator.study.prune.max_layer_sparsity * evaluator.grid.n
    )  # what was asked is said, not what was given
    assert evaluator.grid.zeros(allocation) <= most


def test_layers_are_stored_in_the_order_of_their_first_call(tmp_path: Path) -> None:
    """Registration puts a U-Net's middle block behind its up blocks; it runs before them."""
    folder = saved("sd1", tmp_path)
    study = study_of(Path(folder), ["text_encoder", "unet"])
    inventory, grid = inventory_and_grid(study, empty_components(folder))
    rows = layer_rows(inventory, grid, "layer", foresee(folder, study.sampling).order).to_pylist()
    assert sorted(row["order"] for row in rows) == list(range(len(rows)))
    first: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: row["order"]):
        first.setdefault(row["layer"].split(".")[0], row["order"])
    assert first["unet:conv_in"] < first["unet:down_blocks"] < first["unet:mid_block"]
    assert first["unet:mid_block"] < first["unet:up_blocks"] < first["unet:conv_out"]
    assert min(row["order"] for row in rows if row["component"] == "unet") > max(
        row["order"] for row in rows if row["component"] == "text_encoder"
    )
    assert {row["order"] for row in layer_rows(inventory, grid, "layer").to_pylist()} == {None}
