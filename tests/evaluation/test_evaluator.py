"""The resident evaluator on the bundled pipeline: a real text-to-image pipeline, real images."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from raysense.allocation import Allocation
from raysense.evaluation.evaluator import Evaluator
from raysense.pipelines.sample import call_pipeline
from raysense.prompts.sets import Prompt
from raysense.records import EvaluationRequest
from raysense.study import Study, load

SMALL = [
    "rungs.probe={prompts: 4, timesteps: 2}",
    "rungs.layer={prompts: 2, timesteps: 2}",
    "rungs.preview.prompts=8",
    "rungs.score.prompts=12",
    "rungs.validation.prompts=8",
    "sampling.steps=4",
]


@pytest.fixture(scope="module")
def study() -> Study:
    return load(overrides=SMALL)


@pytest.fixture(scope="module")
def evaluator(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    return Evaluator(study, str(tmp_path_factory.mktemp("run")))


def uniform(evaluator: Evaluator, sparsity: float, component: str = "unet") -> Allocation:
    grid = evaluator.grid
    addresses = [a for a in grid.addresses if a.startswith(component)]
    return Allocation({a: grid.level_for(a, sparsity) for a in addresses})


def test_dense_against_itself(evaluator: Evaluator, study: Study) -> None:
    evaluation = evaluator.evaluate(EvaluationRequest(Allocation(), "score"))
    measures = evaluation.measures
    for name in ("clip_score_drop", "frechet_rise", "kid_rise"):
        assert measures[name].value == pytest.approx(0.0, abs=1e-9)
    assert measures["closeness"].value == pytest.approx(1.0)
    assert measures["clip_score"].n == 12
    assert "scorer" in measures["clip_score"].extractor or "open_clip" in measures["clip_score"].extractor
    assert evaluation.zeros == evaluator.inventory.zeros_before
    assert len(evaluation.samples) == 12
    again = evaluator.evaluate(EvaluationRequest(Allocation(), "score"))
    assert again.nfe == 0  # everything about the dense pipeline is remembered


def test_prompts_that_are_cut_off_are_noted(tmp_path: Path) -> None:
    long = [f"{'a ghost and ' * 12} {number}" for number in range(10)]
    (tmp_path / "p.txt").write_text("\n".join([*long, *(f"a big ghost {number}" for number in range(10))]))
    small = [
        "rungs.score.prompts=8",
        "rungs.preview.prompts=8",
        "rungs.validation.prompts=8",
        "sampling.steps=1",
    ]
    study = load(overrides=[f"prompts={tmp_path}/p.txt", *small])
    notes = Evaluator(study, str(tmp_path / "run")).evaluate(EvaluationRequest(Allocation(), "score")).notes
    assert "5 prompts are longer than the CLIP model reads" in notes
    assert "5 prompts are longer than the pipeline's `tokenizer` reads" in notes


def test_cost_is_counted_nfe(evaluator: Evaluator, study: Study) -> None:
    evaluator.evaluate(EvaluationRequest(Allocation(), "score"))
    evaluation = evaluator.evaluate(EvaluationRequest(uniform(evaluator, 0.3), "score"))
    assert evaluation.nfe == 12 * study.sampling.steps * 2
    assert evaluation.images == 12


def test_zeros_are_counted_and_equal_the_arithmetic(evaluator: Evaluator) -> None:
    for sparsity in (0.1, 0.5, 0.9):
        allocation = uniform(evaluator, sparsity)
        evaluation = evaluator.evaluate(EvaluationRequest(allocation, "probe"))
        assert evaluation.zeros == evaluator.grid.zeros(allocation)
        assert evaluation.images == 0


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_the_probe_sees_every_component_and_grows(evaluator: Evaluator, component: str) -> None:
    dense = evaluator.evaluate(EvaluationRequest(Allocation(), "probe")).measures["probe_error"]
    assert dense.value == pytest.approx(0.0, abs=1e-9)
    errors = [
        evaluator.evaluate(EvaluationRequest(uniform(evaluator, s, component), "probe"))
        .measures["probe_error"]
        .value
        for s in (0.3, 0.6, 0.9)
    ]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_the_order_of_requests_does_not_matter(evaluator: Evaluator) -> None:
    request = EvaluationRequest(uniform(evaluator, 0.5), "preview")
    first = evaluator.evaluate(request).measures
    evaluator.evaluate(EvaluationRequest(uniform(evaluator, 0.9, "text_encoder"), "probe"))
    evaluator.evaluate(EvaluationRequest(uniform(evaluator, 0.2), "probe"))
    second = evaluator.evaluate(request).measures
    assert first == second


def test_heavy_pruning_is_visible_in_every_image_metric(evaluator: Evaluator) -> None:
    measures = evaluator.evaluate(EvaluationRequest(uniform(evaluator, 0.95), "score")).measures
    assert measures["closeness"].value < 0.9
    assert measures["frechet_rise"].value > 0
    assert measures["kid_rise"].value > 0


def test_noise_depends_on_prompt_and_seed_alone(evaluator: Evaluator, study: Study) -> None:
    evaluator.masker.restore()
    prompts = [Prompt("a", "a big cat on a red background"), Prompt("b", "a small dog on a blue background")]
    prompts += [Prompt("c", "a big key on a white background")]
    with torch.inference_mode():
        together = call_pipeline(evaluator.pipeline, prompts, [1, 1, 1], study.sampling)
        alone = [call_pipeline(evaluator.pipeline, [p], [1], study.sampling) for p in prompts]
        backwards = call_pipeline(evaluator.pipeline, prompts[::-1], [1, 1, 1], study.sampling)
        other = call_pipeline(evaluator.pipeline, prompts[:1], [2], study.sampling)
    # Matrix products are summed in another order for another batch size; nothing else may differ.
    assert torch.allclose(together, torch.cat(alone), atol=2e-3)
    assert torch.allclose(together, backwards.flip(0), atol=2e-3)
    assert (together[0] - other[0]).abs().mean() > 0.01


def test_another_evaluator_agrees(evaluator: Evaluator, study: Study, tmp_path: Path) -> None:
    request = EvaluationRequest(uniform(evaluator, 0.6), "preview")
    mine, theirs = evaluator.evaluate(request), Evaluator(study, str(tmp_path)).evaluate(request)
    for name, measure in mine.measures.items():
        assert math.isclose(measure.value, theirs.measures[name].value, rel_tol=5e-3, abs_tol=1e-4), name


def test_out_of_memory_halves_the_batch_and_says_so(evaluator: Evaluator) -> None:
    # Memory that ends at ten samples in the denoiser: a real raise out of a real forward pass.
    def narrow(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > 10:
            raise torch.OutOfMemoryError("fake memory holds 10 samples")

    request = EvaluationRequest(uniform(evaluator, 0.45), "preview")
    roomy = evaluator.evaluate(request)
    evaluator.sampler.forget()
    handle = evaluator.pipeline.unet.register_forward_pre_hook(narrow)
    try:
        tight = evaluator.evaluate(request)
        probed = evaluator.evaluate(EvaluationRequest(uniform(evaluator, 0.45), "probe"))
    finally:
        handle.remove()
    assert (
        tight.notes
        == "out of memory: batch 32 -> 16; out of memory: batch 16 -> 8; out of memory: batch 8 -> 4"
    )
    assert tight.images == 8
    assert tight.measures["clip_score"].n == roomy.measures["clip_score"].n == 8
    for name, measure in roomy.measures.items():
        # Distances of sets of eight images multiply what kernels of another batch size round otherwise.
        tolerance = 5e-3 if name.startswith(("frechet", "kid")) else 1e-3
        assert math.isclose(measure.value, tight.measures[name].value, rel_tol=tolerance, abs_tol=1e-4), name
    assert probed.measures["probe_error"].n == 8
    assert probed.notes == ""  # the batch stays halved


def test_a_climb_does_not_sample_the_preview_twice_and_gets_the_same_bits(evaluator: Evaluator) -> None:
    climber = uniform(evaluator, 0.35)
    cold = evaluator.evaluate(EvaluationRequest(climber, "score"))
    evaluator.sampler.forget()
    evaluator.evaluate(EvaluationRequest(climber, "preview"))
    warm = evaluator.evaluate(EvaluationRequest(climber, "score"))
    assert warm.measures == cold.measures
    assert warm.nfe == cold.nfe * 4 / 12


def test_text_embeddings_are_remembered_by_prompt_and_state_of_the_encoder(evaluator: Evaluator) -> None:
    encoder, texts = evaluator.pipeline.text_encoder, evaluator.live.texts
    prompts = ["a big cat on a red background", "", "a small dog", ""]
    ids = evaluator.pipeline.tokenizer(
        prompts, padding="max_length", max_length=24, return_tensors="pt"
    ).input_ids
    with torch.inference_mode():
        evaluator.masker.apply(uniform(evaluator, 0.5, "text_encoder"))
        with texts.bypassed():
            fresh = torch.cat([encoder(row[None])[0] for row in ids])
        first = encoder(ids)[0]
        misses = texts.misses
        again = encoder(ids[[3, 2]])[0]  # another batch, another order
        evaluator.masker.apply(uniform(evaluator, 0.5, "unet"))
        dense = encoder(ids)[0]
        evaluator.masker.apply(uniform(evaluator, 0.5, "text_encoder"))
        back = encoder(ids)[0]
    assert torch.equal(first, fresh)
    assert torch.equal(again, fresh[[3, 2]])
    assert torch.equal(back, fresh)
    assert not torch.equal(dense, fresh)
    assert texts.misses - misses <= 3  # the dense encoder's own; all else was remembered


def test_the_layer_rung_grows_and_asks_nothing_of_the_denoiser(evaluator: Evaluator) -> None:
    found = [evaluator.evaluate(EvaluationRequest(uniform(evaluator, s), "layer")) for s in (0.0, 0.3, 0.8)]
    values = [evaluation.measures["layer_error"].value for evaluation in found]
    assert values[0] == 0
    assert 0 < values[1] < values[2] < 1
    assert found[2].nfe <= 2 * 2 * 2
    encoder = evaluator.evaluate(EvaluationRequest(uniform(evaluator, 0.5, "text_encoder"), "layer"))
    assert encoder.measures["layer_error"].value > 0


def test_the_null_prompt_counts_in_the_text_error(evaluator: Evaluator) -> None:
    pruned = evaluator.evaluate(EvaluationRequest(uniform(evaluator, 0.6, "text_encoder"), "probe")).measures
    assert 0 < pruned["text_error"].value < 1
    other = evaluator.evaluate(EvaluationRequest(uniform(evaluator, 0.6, "unet"), "probe")).measures
    assert other["text_error"].value == 0
