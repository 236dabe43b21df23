"""The test beds: what the diffusion stages train, judge and export, one row a bed.

Both paint the same captions with the same autoencoder; they differ in the denoiser and in the path from noise to image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from raysense.study import Sampling

from . import models, transformer

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(clean latents, noise, quantiles in [0, 1) of the noise level, token ids) -> the loss of a batch."""


@dataclass(frozen=True)
class Bed:
    """One bundled pipeline.

    Attributes:
        name: What a study calls it (`pipeline: bundled`).
        folder: Its place under ``raysense/bundled``.
        tokenizer: Makes its tokenizer.
        parts: Makes what is trained: component name -> module.
        loss: Readies the parts for training (faster attention; compilation on a CPU) and gives their loss.
        assemble: Puts trained parts, tokenizer and autoencoder together.
        sampling: How it is meant to be sampled.
        steps: Training steps.
        learning_rate: The peak.
    """

    name: str
    folder: str
    tokenizer: Callable[[], CLIPTokenizer]
    parts: Callable[[CLIPTokenizer], nn.ModuleDict]
    loss: Callable[[nn.ModuleDict], Loss]
    assemble: Callable[[nn.ModuleDict, CLIPTokenizer, AutoencoderKL], DiffusionPipeline]
    sampling: Sampling
    steps: int
    learning_rate: float


def _unet_parts(words: CLIPTokenizer) -> nn.ModuleDict:
    return nn.ModuleDict({"unet": models.unet(), "text_encoder": models.text_encoder(words)})


def _unet_loss(parts: nn.ModuleDict) -> Loss:
    """v-prediction over DDPM's schedule."""
    unet, text_encoder = parts["unet"], parts["text_encoder"]
    assert isinstance(unet, UNet2DConditionModel)
    unet.set_attn_processor(AttnProcessor())  # as in the scorer: faster backward
    signal = models.scheduler().alphas_cumprod.to(unet.device)

    def loss_of(clean: Tensor, noise: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        level = signal[timestep][:, None, None, None]
        a, b = level.sqrt(), (1 - level).sqrt()
        predicted = unet(a * clean + b * noise, timestep, text_encoder(tokens)[0]).sample
        return F.mse_loss(predicted.float(), a * noise - b * clean)

    if unet.device.type == "cpu":
        loss_of = torch.compile(loss_of)
    return lambda clean, noise, quantile, tokens: loss_of(clean, noise, (quantile * 1000).long(), tokens)


def _unet_pipeline(parts: nn.ModuleDict, words: CLIPTokenizer, vae: AutoencoderKL) -> DiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=parts["text_encoder"],
        tokenizer=words,
        unet=parts["unet"],
        scheduler=models.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _transformer_parts(words: CLIPTokenizer) -> nn.ModuleDict:
    first, second = (transformer.text_encoder(words, width) for width in transformer.TEXT_WIDTHS)
    return nn.ModuleDict(
        {"transformer": transformer.transformer(), "text_encoder": first, "text_encoder_2": second}
    )


def _transformer_loss(parts: nn.ModuleDict) -> Loss:
    """Flow matching (rectified flow), noise levels logit-normal (Esser et al. 2024)."""
    model = parts["transformer"]
    assert isinstance(model, SD3Transformer2DModel)
    model.set_attn_processor(transformer.CountingProcessor())
    if model.device.type == "cpu":
        for block in model.transformer_blocks:
            block.compile()
    encoders = [parts["text_encoder"], parts["text_encoder_2"]]

    def loss_of(clean: Tensor, noise: Tensor, quantile: Tensor, tokens: Tensor) -> Tensor:
        level = torch.special.ndtri(quantile.clamp(1e-4, 1 - 1e-4)).sigmoid()
        share = level[:, None, None, None]
        # Without a T5 encoder there are 256 zero embeddings by default, or as few as the caller asks for.
        many = torch.rand(len(clean), device=clean.device) < 0.25
        embedded, pooled = transformer.embed(encoders, tokens)
        predicted = model(
            (1 - share) * clean + share * noise,
            embedded,
            pooled,
            level * 1000,
            joint_attention_kwargs={"log_count": many * math.log(256)},
        ).sample
        return F.mse_loss(predicted.float(), noise - clean)

    return loss_of


def _transformer_pipeline(
    parts: nn.ModuleDict, words: CLIPTokenizer, vae: AutoencoderKL
) -> DiffusionPipeline:
    vae.register_to_config(shift_factor=0.0)  # Stable Diffusion 3's latents are shifted, ours are not
    return StableDiffusion3Pipeline(
        transformer=parts["transformer"],
        scheduler=transformer.scheduler(),
        vae=vae,
        text_encoder=parts["text_encoder"],
        tokenizer=words,
        text_encoder_2=parts["text_encoder_2"],
        tokenizer_2=words,
        text_encoder_3=None,
        tokenizer_3=None,
    )


UNET = Bed(
    name="bundled",
    folder="pipeline",
    tokenizer=models.tokenizer,
    parts=_unet_parts,
    loss=_unet_loss,
    assemble=_unet_pipeline,
    sampling=Sampling(),
    steps=8000,
    learning_rate=2e-3,
)
TRANSFORMER = Bed(
    name="bundled-transformer",
    folder="transformer",
    tokenizer=transformer.tokenizer,
    parts=_transformer_parts,
    loss=_transformer_loss,
    assemble=_transformer_pipeline,
    sampling=Sampling(max_sequence_length=1),
    steps=21_000,
    learning_rate=1.5e-3,
)
BEDS = {bed.name: bed for bed in (UNET, TRANSFORMER)}
