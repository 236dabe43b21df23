"""Small, randomly initialised pipelines of the families that raysense meets, tokenizers included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import (
    AutoencoderDC,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from transformers import (
    Gemma2Config,
    Gemma2Model,
)

from benchmarks.families import parts
from raysense.pipelines.sample import call_pipeline
from raysense.prompts.sets import Prompt
from raysense.study import Sampling, Study, parse

SAMPLING = Sampling(steps=2, guidance=5.0)
TOKENS = 12


@dataclass(frozen=True)
class Family:
    """How to build a pipeline, what of it to prune, and how to call it."""

    build: Callable[[], DiffusionPipeline]
    select: tuple[str, ...]
    call: dict[str, Any] = field(default_factory=dict)
    prompts: str = "prompt"


def sample(
    pipeline: DiffusionPipeline, family: Family, prompts: Sequence[str], seeds: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Images (n, height, width, 3) in [0, 1], as the main job samples them; DiT has labels for prompts."""
    if family.prompts == "prompt":
        asked = [Prompt(text, text) for text in prompts]
        size = {name: value for name, value in family.call.items() if name in SIZE}
        more = {name: value for name, value in family.call.items() if name not in SIZE}
        sampling = SAMPLING.model_copy(update={**size, "call": more})
        return call_pipeline(pipeline, asked, seeds, sampling).movedim(1, -1).numpy()
    images: npt.NDArray[np.float32] = pipeline(
        **{family.prompts: [len(prompt) for prompt in prompts]},
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        num_inference_steps=SAMPLING.steps,
        output_type="np",
    ).images
    return images


clip_tokenizer = partial(parts.clip_tokenizer, TOKENS)
t5_tokenizer = partial(parts.t5_tokenizer, TOKENS)
gemma_tokenizer = parts.gemma_tokenizer
clip = partial(parts.clip, length=TOKENS)
t5 = parts.t5
vae = partial(parts.vae, block_out_channels=(16, 32), norm_num_groups=8)
unet = parts.unet


def stable_diffusion(**options: Any) -> DiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        unet=unet(16, **options),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> DiffusionPipeline:
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip(),
        text_encoder_2=clip(projection=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            32,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=6 * 8 + 16,
        ),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
    )


def sd3() -> DiffusionPipeline:
    return StableDiffusion3Pipeline(
        vae=vae(channels=8, **parts.PLAIN),
        text_encoder=clip(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(),
        tokenizer_3=t5_tokenizer(),
        transformer=SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=8,
            out_channels=8,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=32,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def flux() -> DiffusionPipeline:
    return FluxPipeline(
        vae=vae(channels=4, **parts.PLAIN),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def pixart_sigma() -> DiffusionPipeline:
    return PixArtSigmaPipeline(
        vae=vae(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=PixArtTransformer2DModel(
            sample_size=16,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=4,
            cross_attention_dim=32,
            caption_channels=32,
            in_channels=4,
            out_channels=8,
            use_additional_conditions=False,
        ),
        scheduler=DDIMScheduler(clip_sample=False),
    )


def sana() -> DiffusionPipeline:
    return SanaPipeline(
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(16, 16),
            decoder_block_out_channels=(16, 16),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
        ),
        text_encoder=Gemma2Model(
            Gemma2Config(
                vocab_size=32,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
            )
        ),
        tokenizer=gemma_tokenizer(),
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def dit() -> DiffusionPipeline:
    return DiTPipeline(
        transformer=DiTTransformer2DModel(
            sample_size=16,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=4,
            in_channels=4,
            out_channels=8,
            num_embeds_ada_norm=1000,
        ),
        vae=vae(),
        scheduler=DDIMScheduler(clip_sample=False),
    )


SIZE = {"height": 32, "width": 32}


def study_of(folder: Path, select: list[str], **more: object) -> Study:
    """A study of a small pipeline in a folder, on few images."""
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


FAMILIES = {
    "sd1": Family(lambda: stable_diffusion(attention_head_dim=4), ("text_encoder", "unet", "vae"), SIZE),
    "sd2": Family(
        lambda: stable_diffusion(attention_head_dim=(2, 4), use_linear_projection=True),
        ("text_encoder", "unet"),
        SIZE,
    ),
    "sdxl": Family(sdxl, ("text_encoder", "text_encoder_2", "unet"), SIZE),
    "sd3": Family(
        sd3,
        ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer"),
        {**SIZE, "max_sequence_length": TOKENS},
    ),
    "flux": Family(
        flux, ("text_encoder", "text_encoder_2", "transformer"), {**SIZE, "max_sequence_length": TOKENS}
    ),
    "pixart_sigma": Family(
        pixart_sigma,
        ("text_encoder", "transformer"),
        {**SIZE, "max_sequence_length": TOKENS, "use_resolution_binning": False, "clean_caption": False},
    ),
    "sana": Family(
        sana,
        ("text_encoder", "transformer"),
        {
            **SIZE,
            "max_sequence_length": TOKENS,
            "use_resolution_binning": False,
            "clean_caption": False,
            "complex_human_instruction": None,
        },
    ),
    "dit": Family(dit, ("transformer", "vae"), prompts="class_labels"),
}
