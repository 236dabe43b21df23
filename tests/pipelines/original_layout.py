"""A small Stable Diffusion pipeline as the single file that its first authors' code would have written."""

from __future__ import annotations

import re
from pathlib import Path

from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

_UNET_INNER = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_original(pipeline: StableDiffusionPipeline, file: Path) -> str:
    """Write the pipeline's weights under the keys of the CompVis code."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in pipeline.unet.state_dict().items():
        tensors[f"model.diffusion_model.{_unet(name, pipeline.unet.config.layers_per_block)}"] = tensor
    blocks = len(pipeline.vae.config.block_out_channels)
    for name, tensor in pipeline.vae.state_dict().items():
        tensors[f"first_stage_model.{_vae(name, blocks)}"] = tensor
    for name, tensor in pipeline.text_encoder.state_dict().items():
        path = name.removeprefix("text_model.")
        tensors[f"cond_stage_model.transformer.text_model.{path}"] = tensor
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return str(file)


def _renamed(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def _unet(name: str, layers: int) -> str:
    def inner(rest: str) -> str:
        return _renamed(rest, _UNET_INNER)

    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
        way, block, kind, number, rest = match.groups()
        first = int(block) * (layers + 1)
        place = first + int(number) + (1 if way == "down" else 0)
        side = "input" if way == "down" else "output"
        return (
            f"{side}_blocks.{place}.0.{inner(rest)}"
            if kind == "resnets"
            else f"{side}_blocks.{place}.1.{rest}"
        )
    if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", name):
        return f"input_blocks.{(int(match[1]) + 1) * (layers + 1)}.0.op.{match[2]}"
    if match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.*)", name):
        return f"output_blocks.{(int(match[1]) + 1) * (layers + 1) - 1}.2.conv.{match[2]}"
    if match := re.fullmatch(r"(mid_block\.resnets\.\d)\.(.*)", name):
        return f"{_UNET_OUTER[match[1]]}.{inner(match[2])}"
    return _renamed(name, _UNET_OUTER)


def _vae(name: str, blocks: int) -> str:
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    if match := re.fullmatch(r"encoder\.down_blocks\.(\d+)\.(resnets|downsamplers)\.(\d+)\.(.*)", name):
        block, kind, number, rest = match.groups()
        return f"encoder.down.{block}." + (
            f"block.{number}.{rest}" if kind == "resnets" else f"downsample.{rest}"
        )
    if match := re.fullmatch(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.(.*)", name):
        block, kind, number, rest = match.groups()
        place = blocks - 1 - int(block)
        return f"decoder.up.{place}." + (
            f"block.{number}.{rest}" if kind == "resnets" else f"upsample.{rest}"
        )
    if match := re.fullmatch(r"(encoder|decoder)\.mid_block\.resnets\.(\d)\.(.*)", name):
        return f"{match[1]}.mid.block_{int(match[2]) + 1}.{match[3]}"
    if match := re.fullmatch(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.*)", name):
        return f"{match[1]}.mid.attn_1.{_renamed(match[2], _VAE_ATTENTION)}"
    return name
