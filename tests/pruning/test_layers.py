from __future__ import annotations

import pytest
import torch
from torch import nn

from raysense.errors import RaysenseError
from raysense.pruning.layers import all_finite, render_tree, take_inventory


def test_every_kind_is_found_and_nothing_else(components):
    inventory = take_inventory(components, select=["unet", "text_encoder"])
    kinds = {layer.path: layer.kind for layer in inventory.layers}
    assert kinds == {
        "conv_in": "conv2d",
        "blocks.0.conv": "conv2d",
        "blocks.1.conv": "conv2d",
        "mid_block.proj": "linear",
        "mid_block.seq": "conv1d",
        "mid_block.gpt": "transformers_conv1d",
        "volume": "conv3d",
        "tiny": "conv2d",
        "layers.0": "linear",
        "layers.1": "linear",
    }, "norms, the embedding and the head tied to it are left out"
    for layer in inventory.layers:
        assert layer.address == f"{layer.component}:{layer.path}"
        assert layer.n == components[layer.component].get_submodule(layer.path).weight.numel()


def test_the_denominators(components):
    inventory = take_inventory(components, select=["unet"], kinds=["linear"])
    unet = components["unet"]
    prunable = sum(layer.n for layer in take_inventory(components, select=["unet"]).layers)
    assert inventory.n_selected == 16 * 32
    assert inventory.n_prunable == prunable
    assert inventory.n_components == sum(p.numel() for p in unet.parameters())
    assert inventory.n_pipeline == inventory.n_components + (50 * 32 + 2 * 1056 + 64) + 16
    assert inventory.sparsities(256) == {
        "sparsity_selected": 0.5,
        "sparsity_prunable": 256 / prunable,
        "sparsity_components": 256 / inventory.n_components,
        "sparsity_pipeline": 256 / inventory.n_pipeline,
    }


def test_shared_weights_count_once_and_zeros_before_are_counted():
    shared = nn.Linear(8, 8, bias=False)
    tied = nn.Linear(8, 8, bias=False)
    tied.weight = shared.weight
    shared.weight.data.view(-1)[:5] = 0
    inventory = take_inventory(
        {"a": nn.Sequential(shared, tied), "b": nn.Sequential(shared)}, select=["a", "b"]
    )
    assert [layer.address for layer in inventory.layers] == ["a:0"]
    assert inventory.n_selected == inventory.n_prunable == inventory.n_pipeline == 64
    assert inventory.zeros_before == 5


def test_globs_and_kinds_select(components):
    def addresses(**options):
        return [
            layer.address
            for layer in take_inventory(components, select=["unet", "text_encoder"], **options).layers
        ]

    assert addresses(include=["text_encoder:*"]) == ["text_encoder:layers.0", "text_encoder:layers.1"]
    assert addresses(include=["layers.*", "conv_in"], exclude=["*.1"]) == [
        "unet:conv_in",
        "text_encoder:layers.0",
    ]
    assert addresses(kinds=["conv1d", "conv3d"]) == ["unet:mid_block.seq", "unet:volume"]


def test_groups(components):
    inventory = take_inventory(components, select=["unet", "text_encoder"])
    assert all(members == (group,) for group, members in inventory.groups("layer").items())
    blocks = inventory.groups("block")
    assert blocks["unet:mid_block"] == ("unet:mid_block.proj", "unet:mid_block.seq", "unet:mid_block.gpt")
    assert blocks["text_encoder:layers.1"] == ("text_encoder:layers.1",)
    assert list(inventory.groups("component")) == ["unet", "text_encoder"]
    with pytest.raises(RaysenseError, match="granularity: 'stage' is not one of layer, block, component"):
        inventory.groups("stage")  # type: ignore[arg-type]


def test_meta_device():
    with torch.device("meta"):
        inventory = take_inventory({"unet": nn.Linear(10_000, 10_000)}, select=["unet"])
    assert inventory.n_selected == 10**8
    assert inventory.zeros_before == 0


def test_the_tree_shows_layers_and_denominators(components):
    tree = render_tree(take_inventory(components, select=["unet", "text_encoder"]))
    assert "unet  6,456 weights in 8 layers" in tree
    assert "│  ├─ proj  linear 32×16  512" in tree
    assert "├─ conv_in  conv2d 16×4×3×3  576" in tree
    assert "the objective's denominator" in tree


@pytest.mark.parametrize(
    "options, message",
    [
        ({"select": ["transformer"]}, "components: 'transformer' is not a module.*unet, text_encoder, vae"),
        ({"select": ["tokenizer"]}, "components: 'tokenizer' is not a module"),
        ({"select": []}, "components: nothing prunable in an empty selection"),
        ({"select": ["unet"], "kinds": ["conv4d"]}, "kinds: 'conv4d' is unknown; choose from linear, conv1d"),
        ({"select": ["unet"], "include": ["*attn*"]}, r"include: '\*attn\*' matches none of the 8"),
        ({"select": ["unet"], "exclude": ["vae:*"]}, "exclude: 'vae:.*' matches none"),
        ({"select": ["text_encoder"], "kinds": ["conv2d"]}, r"leave none of the 2 .*kinds: linear"),
        ({"select": ["unet"], "exclude": ["*"]}, "leave none of the 8"),
    ],
)
def test_bad_input_names_what_there_is_instead(components, options, message: str):
    with pytest.raises(RaysenseError, match=message):
        take_inventory(components, **options)


def test_quantised_weights_are_refused():
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(
        RaysenseError, match=r"unet:0 holds torch\.int8 weights; load unet without quantisation"
    ):
        take_inventory({"unet": nn.Sequential(layer)}, select=["unet"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_finds_what_is_not_finite(dtype: torch.dtype):
    weight = torch.randn(7, 9).to(dtype)
    assert all_finite(weight)
    assert all_finite(weight[:0])
    for bad in (float("nan"), float("inf"), -float("inf")):
        broken = weight.clone()
        broken[3, 4] = bad
        assert not all_finite(broken)
