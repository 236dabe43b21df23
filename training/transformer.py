"""The second bed's shape: a small Stable Diffusion 3, a multi-modal transformer with two CLIP text encoders.

Everything is diffusers' and transformers' own class. There is no T5 encoder, so `StableDiffusion3Pipeline` puts
``max_sequence_length`` zero embeddings (256 unless told) behind the two encoders' tokens. These are alike, and
stay alike from block to block; training carries one of them, whose key counts for as many as there would be.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from . import models
from .world import RESOLUTION

MAX_TOKENS = 17
WIDTH = 160
TEXT_WIDTHS = (96, 64)


def tokenizer() -> CLIPTokenizer:
    """As the first bed's, with a vocabulary that holds every word whole: at most 17 tokens a caption."""
    return models.tokenizer(vocabulary_size=1200, max_tokens=MAX_TOKENS)


def text_encoder(words: CLIPTokenizer, width: int) -> CLIPTextModelWithProjection:
    """Three layers: Stable Diffusion 3 takes the tokens after the last but one, the pooled text after the last."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=3 * width,
            projection_dim=width,
            num_hidden_layers=3,
            num_attention_heads=width // 32,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )


def transformer() -> SD3Transformer2DModel:
    """Four joint blocks of width 160 on 16 patches of 2×2 latents."""
    model = SD3Transformer2DModel(
        sample_size=RESOLUTION // 4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=WIDTH // 32,
        joint_attention_dim=sum(TEXT_WIDTHS),
        caption_projection_dim=WIDTH,
        pooled_projection_dim=sum(TEXT_WIDTHS),
        pos_embed_max_size=RESOLUTION // 8,
        qk_norm="rms_norm",
    )
    _start(model)
    return model


def _start(model: SD3Transformer2DModel) -> None:
    """Begin as DiT does (Peebles and Xie 2023): every block is the identity, the output zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(model.pos_embed.proj.weight.view(WIDTH, -1))
    nn.init.zeros_(model.pos_embed.proj.bias)
    for part in (model.time_text_embed.timestep_embedder, model.time_text_embed.text_embedder):
        for layer in (part.linear_1, part.linear_2):
            nn.init.normal_(layer.weight, std=0.02)
    for name, module in model.named_modules():
        if name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear")) or name == "proj_out":
            nn.init.zeros_(module.weight)


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Straight paths between noise and latents, Euler's method."""
    return FlowMatchEulerDiscreteScheduler()


def embed(encoders: list[nn.Module], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What `StableDiffusion3Pipeline.encode_prompt` makes of captions, with one zero embedding.

    Returns:
        (n, 17 + 1, 160) embeddings and (n, 160) pooled ones.
    """
    said = [encoder(tokens, output_hidden_states=True) for encoder in encoders]
    states = torch.cat([output.hidden_states[-2] for output in said], dim=-1)
    states = torch.cat([states, torch.zeros_like(states[:, :1])], dim=1)
    return states, torch.cat([output.text_embeds for output in said], dim=-1)


class CountingProcessor:
    """Joint attention in which the last text token counts for `exp(log_count)` alike ones."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        *,
        log_count: Tensor,
    ) -> tuple[Tensor, Tensor]:
        split = hidden_states.shape[1]

        def heads(x: Tensor, norm: Any = None) -> Tensor:
            x = x.view(*x.shape[:2], attn.heads, -1).transpose(1, 2)
            return x if norm is None else norm(x)

        query, key, value = (
            torch.cat([image, text], dim=2)
            for image, text in (
                (
                    heads(attn.to_q(hidden_states), attn.norm_q),
                    heads(attn.add_q_proj(encoder_hidden_states), attn.norm_added_q),
                ),
                (
                    heads(attn.to_k(hidden_states), attn.norm_k),
                    heads(attn.add_k_proj(encoder_hidden_states), attn.norm_added_k),
                ),
                (heads(attn.to_v(hidden_states)), heads(attn.add_v_proj(encoder_hidden_states))),
            )
        )
        logits = query @ key.transpose(-1, -2) * (1 / math.sqrt(query.shape[-1]))
        bias = torch.nn.functional.pad(log_count[:, None, None, None], (logits.shape[-1] - 1, 0))
        mixed = ((logits + bias).softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
        image, text = mixed[:, :split], mixed[:, split:]
        if not attn.context_pre_only:
            text = attn.to_add_out(text)
        return attn.to_out[0](image), text
