"""What training computes is what the pipelines compute: nothing here needs trained weights."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.models.attention_processor import JointAttnProcessor2_0

from raysense.errors import RaysenseError
from raysense.pipelines.sample import call_pipeline
from raysense.prompts.sets import Prompt
from raysense.study import Sampling
from training import models, transformer
from training.beds import TRANSFORMER, UNET
from training.world import scenes

CAPTIONS = ["a small giraffe between a purple sky and a yellow floor", ""]


@pytest.mark.parametrize("zeros", [1, 256])
def test_one_zero_embedding_that_counts_for_all_gives_what_the_pipeline_gives(zeros: int) -> None:
    torch.manual_seed(0)
    words = TRANSFORMER.tokenizer()
    parts = TRANSFORMER.parts(words)
    for weight in parts["transformer"].parameters():  # as trained: no block is the identity any more
        weight.data += 0.05 * torch.randn_like(weight)
    parts.eval()
    pipeline = TRANSFORMER.assemble(parts, words, models.autoencoder())
    assert isinstance(pipeline, StableDiffusion3Pipeline)
    latents, level = torch.randn(2, 4, 8, 8), torch.tensor([300.0, 800.0])
    tokens = words(CAPTIONS, padding="max_length", max_length=17, return_tensors="pt").input_ids
    with torch.inference_mode():
        embedded, _, pooled, _ = pipeline.encode_prompt(
            CAPTIONS, None, None, max_sequence_length=zeros, do_classifier_free_guidance=False
        )
        wanted = parts["transformer"](latents, embedded, pooled, level).sample

        parts["transformer"].set_attn_processor(transformer.CountingProcessor())
        shorter, summary = transformer.embed([parts["text_encoder"], parts["text_encoder_2"]], tokens)
        counted = {"log_count": torch.full((2,), math.log(zeros))}
        found = parts["transformer"](latents, shorter, summary, level, joint_attention_kwargs=counted).sample
        parts["transformer"].set_attn_processor(JointAttnProcessor2_0())

    assert embedded.shape == (2, 17 + zeros, 160)
    assert shorter.shape == (2, 18, 160)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert wanted.std() > 0.01


def test_a_caption_fits_the_tokenizer_of_each_bed() -> None:
    words = TRANSFORMER.tokenizer()
    assert max(len(words(s.caption).input_ids) for s in scenes(held_out=True)) <= words.model_max_length == 17


def test_the_transformer_paints_with_as_few_zero_embeddings_as_a_study_asks_for() -> None:
    words = TRANSFORMER.tokenizer()
    pipeline = TRANSFORMER.assemble(TRANSFORMER.parts(words).eval(), words, models.autoencoder())
    pipeline.set_progress_bar_config(disable=True)
    seen: list[int] = []
    pipeline.transformer.register_forward_pre_hook(
        lambda _, __, named: seen.append(named["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    prompts = [Prompt("0", CAPTIONS[0])]
    with torch.inference_mode():
        images = call_pipeline(pipeline, prompts, [0], Sampling(steps=1, max_sequence_length=3))
    assert seen == [17 + 3]
    assert images.shape == (1, 3, 32, 32)


def test_a_pipeline_without_a_sequence_to_shorten_is_refused() -> None:
    words = UNET.tokenizer()
    pipeline = UNET.assemble(UNET.parts(words).eval(), words, models.autoencoder())
    with pytest.raises(
        RaysenseError, match=r"`sampling\.max_sequence_length` is 3, but StableDiffusionPipeline takes no"
    ):
        call_pipeline(pipeline, [Prompt("0", "")], [0], Sampling(max_sequence_length=3))
