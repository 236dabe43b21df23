"""The full-size architectures on the meta device: nothing is loaded, everything is counted."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from raysense.allocation import LevelGrid
from raysense.pruning import allocation_rules
from raysense.pruning.layers import Inventory, take_inventory


def stable_diffusion_2() -> dict[str, object]:
    unet = UNet2DConditionModel(
        sample_size=96,
        cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=23,
            num_attention_heads=16,
            vocab_size=49408,
            projection_dim=512,
        )
    )
    return {"unet": unet, "text_encoder": text_encoder}


def sdxl() -> dict[str, object]:
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=2048,
        attention_head_dim=(5, 10, 20),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    return {"unet": unet}


def flux() -> dict[str, object]:
    return {"transformer": FluxTransformer2DModel(guidance_embeds=True)}


def inventory_of(build, *select: str) -> Inventory:
    with torch.device("meta"):
        return take_inventory(build(), select=select)


def linear(inventory: Inventory) -> int:
    return sum(layer.n for layer in inventory.layers if layer.kind == "linear")


def test_stable_diffusion_2():
    unet = inventory_of(stable_diffusion_2, "unet")
    assert unet.n_components == 865_910_724
    assert len(unet.layers) == 282
    assert linear(unet) == 301_219_840
    assert linear(unet) / unet.n_components == pytest.approx(0.348, abs=5e-4)
    text = inventory_of(stable_diffusion_2, "text_encoder")
    assert text.n_components == 340_387_840
    assert linear(text) == text.n_prunable == 289_406_976
    assert unet.n_pipeline == text.n_pipeline == 865_910_724 + 340_387_840


def test_sdxl():
    unet = inventory_of(sdxl, "unet")
    assert unet.n_components == 2_567_463_684
    assert len(unet.layers) == 794


def test_flux():
    transformer = inventory_of(flux, "transformer")
    assert transformer.n_components == 11_901_408_320
    assert len(transformer.layers) == 504
    assert transformer.n_prunable == linear(transformer)


@pytest.mark.parametrize(
    "build, select",
    [(stable_diffusion_2, ["unet", "text_encoder"]), (sdxl, ["unet"]), (flux, ["transformer"])],
)
def test_every_layer_has_useful_levels_and_totals_are_exact(build, select: list[str]):
    inventory = inventory_of(build, *select)
    grid = LevelGrid(inventory.sizes, 0.95)
    assert grid.addresses == tuple(layer.address for layer in inventory.layers), "no layer rides with another"
    assert all(grid.top(address) >= 100 for address in grid.addresses)
    for share in (0.123, 0.5, 0.9):
        zeros = round(share * inventory.n_selected)
        allocation = allocation_rules.uniform(inventory, grid, zeros)
        assert 0 <= zeros - grid.zeros(allocation) < grid.base
        off = [
            abs(grid.zeros_at(layer.address, allocation[layer.address]) / layer.n - share)
            for layer in inventory.layers
        ]
        assert sum(off) / len(off) < 0.005
    assert 5 < len(inventory.groups("block")) < len(inventory.layers) / 3
