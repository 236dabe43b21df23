"""Denoisers in the shapes of published ones, with random weights, built on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline, FluxTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from raysense.names import BUNDLED
from raysense.pipelines.load import load_pipeline

Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Shape:
    """A denoiser and what it is called with.

    Attributes:
        name: Whose shape.
        told: What it is, and how large its input.
        build: Makes the module, in torch's default type on its default device.
        inputs: Samples -> arguments of a call.
        batches: Samples a call to measure.
    """

    name: str
    told: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, torch.device, torch.dtype], Inputs]
    batches: tuple[int, ...]


def make(shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """The module, ready for inference."""
    torch.manual_seed(0)
    with torch.device(device), default_dtype(dtype):
        module = shape.build()
    return module.eval().requires_grad_(False)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """While this is open, new parameters are of this type: large networks never exist in 32 bits."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def shapes(quick: bool, few: bool = False) -> dict[str, Shape]:
    """Stable Diffusion 2, Stable Diffusion XL and FLUX.

    Args:
        quick: Small networks of the same blocks instead.
        few: FLUX with a fifth of its blocks, all alike.
    """
    return {shape.name: shape for shape in (_sd2(quick), _sdxl(quick), _flux(quick, few))}


def sd2_unet(quick: bool, sample_size: int, cross: int) -> nn.Module:
    """Stable Diffusion 2's U-Net."""
    widths, heads = ((32, 64, 128, 128), (2, 2, 4, 4)) if quick else ((320, 640, 1280, 1280), (5, 10, 20, 20))
    build: Any = UNet2DConditionModel  # diffusers leaves its constructors untyped
    module: nn.Module = build(
        sample_size=sample_size,
        block_out_channels=widths,
        attention_head_dim=heads,
        cross_attention_dim=cross,
        use_linear_projection=True,
    )
    return module


def sd2_pipeline(quick: bool, side: int, device: str | torch.device = "cpu") -> DiffusionPipeline:
    """Stable Diffusion 2's U-Net and text encoder with random 16-bit weights, around the bundle's autoencoder.

    Args:
        quick: Narrow and shallow instead.
        side: Of the latents.
        device: Where the weights are drawn; the pipeline is on the CPU.
    """
    pipeline = load_pipeline(BUNDLED)
    tokens = pipeline.text_encoder.config
    width, depth = (64, 2) if quick else (1024, 23)
    config = CLIPTextConfig(
        vocab_size=tokens.vocab_size,
        max_position_embeddings=tokens.max_position_embeddings,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    torch.manual_seed(0)
    with torch.device(device), default_dtype(torch.bfloat16):
        encoder: Any = CLIPTextModel(config)
        unet = sd2_unet(quick, side, width)
    pipeline.register_modules(unet=unet.cpu(), text_encoder=encoder.cpu())
    return pipeline


def _normal(*sizes: int, like: tuple[torch.device, torch.dtype]) -> Tensor:
    return torch.randn(sizes, device=like[0], dtype=like[1])


def _sd2(quick: bool) -> Shape:
    side, cross = (16, 64) if quick else (64, 1024)

    def inputs(n: int, device: torch.device, dtype: torch.dtype) -> Inputs:
        like = (device, dtype)
        return {
            "sample": _normal(n, 4, side, side, like=like),
            "timestep": torch.tensor(500, device=device),
            "encoder_hidden_states": _normal(n, 77, cross, like=like),
        }

    told = f"Stable Diffusion 2's U-Net{' (narrow)' * quick}, {side}x{side} latents"
    batches = (1, 2) if quick else (1, 4, 16, 64)
    return Shape("sd2", told, lambda: sd2_unet(quick, side, cross), inputs, batches)


def _sdxl(quick: bool) -> Shape:
    side, cross, pooled = (16, 64, 32) if quick else (128, 2048, 1280)
    time_dim = 8 if quick else 256

    def build() -> nn.Module:
        make_unet: Any = UNet2DConditionModel
        module: nn.Module = make_unet(
            sample_size=side,
            block_out_channels=(32, 64, 128) if quick else (320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2) if quick else (1, 2, 10),
            attention_head_dim=(2, 2, 4) if quick else (5, 10, 20),
            cross_attention_dim=cross,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=time_dim,
            projection_class_embeddings_input_dim=pooled + 6 * time_dim,
        )
        return module

    def inputs(n: int, device: torch.device, dtype: torch.dtype) -> Inputs:
        like = (device, dtype)
        return {
            "sample": _normal(n, 4, side, side, like=like),
            "timestep": torch.tensor(500, device=device),
            "encoder_hidden_states": _normal(n, 77, cross, like=like),
            "added_cond_kwargs": {
                "text_embeds": _normal(n, pooled, like=like),
                "time_ids": torch.ones(n, 6, device=device, dtype=dtype),
            },
        }

    told = f"Stable Diffusion XL's U-Net{' (narrow)' * quick}, {side}x{side} latents"
    return Shape("sdxl", told, build, inputs, (1, 2) if quick else (1, 4, 16))


def _flux(quick: bool, few: bool) -> Shape:
    tokens, texts, joint, pooled = (64, 16, 64, 32) if quick else (4096, 512, 4096, 768)
    blocks, singles = (1, 2) if quick else (4, 8) if few else (19, 38)

    def build() -> nn.Module:
        make_transformer: Any = FluxTransformer2DModel
        module: nn.Module = make_transformer(
            in_channels=64,
            num_layers=blocks,
            num_single_layers=singles,
            attention_head_dim=32 if quick else 128,
            num_attention_heads=4 if quick else 24,
            joint_attention_dim=joint,
            pooled_projection_dim=pooled,
            guidance_embeds=True,
            axes_dims_rope=(8, 12, 12) if quick else (16, 56, 56),
        )
        return module

    def inputs(n: int, device: torch.device, dtype: torch.dtype) -> Inputs:
        like = (device, dtype)
        return {
            "hidden_states": _normal(n, tokens, 64, like=like),
            "encoder_hidden_states": _normal(n, texts, joint, like=like),
            "pooled_projections": _normal(n, pooled, like=like),
            "timestep": torch.full((n,), 0.5, device=device, dtype=dtype),
            "guidance": torch.full((n,), 3.5, device=device, dtype=torch.float32),
            "img_ids": torch.zeros(tokens, 3, device=device, dtype=dtype),
            "txt_ids": torch.zeros(texts, 3, device=device, dtype=dtype),
        }

    told = (
        f"FLUX.1's transformer, {blocks} + {singles} blocks{' (narrow)' * quick}, {tokens} + {texts} tokens"
    )
    return Shape("flux", told, build, inputs, (1, 2) if quick else (1, 4))
