from __future__ import annotations

import copy
import gc
import weakref
from itertools import pairwise

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from raysense.allocation import Allocation, LevelGrid
from raysense.errors import RaysenseError
from raysense.pruning import masks
from raysense.pruning.layers import count_zeros, take_inventory, weight_of
from raysense.pruning.masks import Masker, mask_into, pruned
from raysense.pruning.patterns import Pattern, pattern_grid
from raysense.pruning.ranking import NEVER, prune_levels
from raysense.pruning.saliency import LayerStats

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BITS = {2: torch.int16, 4: torch.int32}


def build(components, cap: float = 1.0, **options):
    inventory = take_inventory(components, select=["unet", "text_encoder"])
    grid = LevelGrid(inventory.sizes, cap)
    return inventory, grid, Masker(components, inventory, grid, **options)


def bits(components) -> list[torch.Tensor]:
    parts = (components["unet"], components["text_encoder"])
    return [p.detach().view(BITS[p.element_size()]).clone() for part in parts for p in part.parameters()]


tensors = st.sampled_from(["normal", "ties", "constant", "sparse", "zero"])


def make(kind: str, n: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, generator=generator)
    if kind == "ties":
        weight = weight.mul(2).round() + 0.25
    if kind == "constant":
        weight = torch.full((n,), -0.5)
    if kind == "sparse":
        weight = weight * (torch.rand(n, generator=generator) > 0.5)
    return (torch.zeros(n) if kind == "zero" else weight).to(dtype)


@given(st.data(), st.integers(1, 300), tensors, st.sampled_from(DTYPES), st.integers(0, 99))
def test_exactly_k_weights_leave_for_any_k(data, n: int, kind: str, dtype: torch.dtype, seed: int):
    master = make(kind, n, dtype, seed)
    zeros_before = int((master == 0).sum())
    k = data.draw(st.integers(0, n))
    scores = master.float().abs().masked_fill(master == 0, -torch.inf)
    prune_level = prune_levels(scores, [k])
    live = torch.empty_like(master)
    mask_into(live, master, prune_level, 1)
    assert int((live == 0).sum()) == max(k, zeros_before)
    stay = prune_level == NEVER
    assert torch.equal(
        live[stay].view(BITS[live.element_size()]), master[stay].view(BITS[live.element_size()])
    )
    if 0 < k < n:
        assert scores[~stay].max() <= scores[stay].min()


@given(st.integers(1, 400), st.lists(st.integers(0, 400), min_size=1, max_size=255), st.integers(0, 99))
def test_a_higher_level_contains_a_lower_one(n: int, removed: list[int], seed: int):
    removed = sorted(min(r, n) for r in removed)
    prune_level = prune_levels(torch.rand(n, generator=torch.Generator().manual_seed(seed)), removed)
    gone = [set((prune_level < level).nonzero().flatten().tolist()) for level in range(1, len(removed) + 1)]
    assert [len(g) for g in gone] == removed
    assert all(low <= high for low, high in pairwise(gone))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("saliency", ["magnitude", "random"])
def test_requested_counted_and_restored(components, dtype: torch.dtype, saliency: str):
    for name in ("unet", "text_encoder"):
        components[name].to(dtype)
    before = bits(components)
    _, grid, masker = build(components, saliency=saliency, seed=3)
    pointers = [p.data_ptr() for p in components["unet"].parameters()]
    previous = None
    for sparsity in (0.0, 0.5, 0.25, 1.0, 0.9):
        allocation = grid.uniform(sparsity)
        masker.apply(allocation)
        assert masker.current == allocation
        assert masker.count_zeros() == grid.zeros(allocation)
        previous, now = bits(components), bits(components)
        masker.apply(allocation)
        assert all(map(torch.equal, bits(components), now)), "applying twice changes nothing"
    assert previous is not None
    masker.restore()
    assert all(map(torch.equal, bits(components), before))
    assert masker.current == Allocation()
    assert pointers == [p.data_ptr() for p in components["unet"].parameters()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", [None, "2:4"])
def test_a_layer_by_itself_is_the_same_to_the_bit(components, dtype: torch.dtype, text: str | None):
    components = {name: components[name].to(dtype) for name in ("unet", "text_encoder")}
    dense = copy.deepcopy(components)
    inventory = take_inventory(components, select=["unet", "text_encoder"])
    pattern = Pattern.parse(text) if text else None
    grid = pattern_grid(inventory, pattern) if pattern else LevelGrid(inventory.sizes, 1.0)
    allocation = Allocation({a: level for i, (a, level) in enumerate(grid.uniform(0.6).items()) if i % 3})
    Masker(components, inventory, grid, "random", seed=3, pattern=pattern).apply(allocation)
    for layer in inventory.layers:
        weight = weight_of(dense, layer).data
        if level := allocation[grid.leader(layer.address)]:
            stats = LayerStats(layer.address, layer.kind, seed=3)
            weight.copy_(pruned(layer, weight, level, grid, "random", stats, pattern))
    assert all(map(torch.equal, bits(dense), bits(components)))


@settings(max_examples=30)
@given(st.data())
def test_the_order_of_allocations_does_not_matter(data):
    torch.manual_seed(1)
    components = {
        "unet": nn.Sequential(nn.Conv2d(4, 40, 3), nn.Linear(50, 60)),
        "text_encoder": nn.Linear(20, 20),
    }
    _, grid, masker = build(components)
    draw = st.fixed_dictionaries({a: st.integers(0, grid.top(a)) for a in grid.addresses})
    last = Allocation(data.draw(draw))
    masker.apply(last)
    expected = bits(components)
    masker.apply(Allocation(data.draw(draw)))
    masker.apply(last)
    assert masker.count_zeros() == grid.zeros(last)
    assert all(map(torch.equal, bits(components), expected))


def test_only_layers_whose_level_changes_are_written(components, monkeypatch):
    _, grid, masker = build(components)
    written: list[str] = []
    write = masker._write
    monkeypatch.setattr(
        masker, "_write", lambda address, *rest: (written.append(address), write(address, *rest))
    )
    start = grid.uniform(0.5)
    masker.apply(start)
    assert set(written) == set(grid.layers)
    written.clear()
    masker.apply(Allocation({**start, "unet:conv_in": start["unet:conv_in"] + 1}))
    assert written == list(grid.members("unet:conv_in"))


def test_channels_last_weights_keep_their_layout(components):
    components["unet"].volume = nn.Identity()
    components["unet"].to(memory_format=torch.channels_last)
    weight = components["unet"].conv_in.weight
    dense, strides = weight.detach().clone(), weight.stride()
    _, grid, masker = build(components)
    allocation = grid.uniform(0.5)
    masker.apply(allocation)
    k = grid.removed("unet:conv_in", allocation[grid.leader("unet:conv_in")])
    threshold = dense.abs().flatten().sort().values[k]
    assert torch.equal(weight.detach(), dense * (dense.abs() >= threshold))
    assert weight.stride() == strides
    masker.restore()
    assert torch.equal(weight.detach(), dense)


@pytest.mark.parametrize("place", ["device", "host", "mapped"])
def test_the_master_may_lie_anywhere(components, place: str):
    before = bits(components)
    _, grid, masker = build(components, master=place)
    assert masker.place == place
    gc.collect()
    masker.apply(grid.uniform(0.7))
    assert masker.count_zeros() == grid.zeros(masker.current)
    masker.restore()
    assert all(map(torch.equal, bits(components), before))


@pytest.mark.parametrize(("free", "place"), [(10**12, "host"), (1_000, "mapped")])
def test_the_place_follows_from_the_free_memory(components, monkeypatch, free: int, place: str):
    monkeypatch.setattr(masks, "free_host_memory", lambda: free)
    _, _, masker = build(components)
    assert masker.place == place
    assert "dense master of 0.00 GB" in masker.described


def test_free_memory_is_what_the_system_says_or_less():
    assert 0 < masks.free_host_memory() <= psutil.virtual_memory().total


def test_as_torch_prune_where_that_is_right(components):
    dense = components["unet"].mid_block["proj"].weight.detach().clone()
    _, grid, masker = build(components)
    level = grid.level_for("unet:mid_block.proj", 0.4)
    masker.apply(Allocation({"unet:mid_block.proj": level}))
    reference = nn.Linear(16, 32)
    reference.weight.data.copy_(dense)
    prune.l1_unstructured(reference, "weight", amount=grid.removed("unet:mid_block.proj", level))
    assert torch.equal(components["unet"].mid_block["proj"].weight, reference.weight)


def test_a_masker_is_gone_with_its_last_name(components):
    """A method's statistics, and a master that is no longer used, are too large to wait for the next collection."""
    gc.disable()
    try:
        masker = build(components)[2]
        there = weakref.ref(masker)
        del masker
        assert there() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("text", ["2:4", "4:8", "1:4"])
def test_a_pattern_is_exact(components, text: str):
    pattern = Pattern.parse(text)
    inventory = take_inventory(components, select=["unet", "text_encoder"], exclude=["volume"])
    grid = pattern_grid(inventory, pattern)
    dense = components["unet"].conv_in.weight.detach().clone()
    masker = Masker(components, inventory, grid, pattern=pattern)
    masker.apply(grid.uniform(1.0))
    assert masker.count_zeros() == grid.zeros(masker.current) == grid.max_zeros
    linear = components["unet"].mid_block["proj"].weight
    kept = (linear.reshape(32, -1, pattern.of) != 0).sum(-1)
    assert (kept == pattern.keep).all()
    if pattern.of == 4:
        sets = dense.movedim(1, -1).reshape(-1, 4)
        expected = np.sort(np.abs(sets.numpy()), axis=1)[:, -pattern.keep :].sum()
        assert components["unet"].conv_in.weight.abs().sum().item() == pytest.approx(
            float(expected), rel=1e-5
        )
    masker.restore()
    assert torch.equal(components["unet"].conv_in.weight, dense)


def test_bad_input_is_named(components):
    with pytest.raises(RaysenseError, match="pattern: '4:2' must be n:m"):
        Pattern.parse("4:2")
    inventory, grid, masker = build(components)
    dense = bits(components)
    with pytest.raises(RaysenseError, match="out of range"):
        masker.apply(Allocation({"unet:conv_in": 9, "unet:mid_block.proj": 256}))
    assert all(map(torch.equal, bits(components), dense)), "nothing is changed by a refused allocation"
    components["unet"].mid_block["proj"].weight.data[3, 3] = float("nan")
    with pytest.raises(RaysenseError, match=r"unet:mid_block\.proj: its weights hold NaN"):
        Masker(components, inventory, grid)
    components["unet"].mid_block["proj"].weight.data = torch.zeros(32, 16, dtype=torch.float64)
    with pytest.raises(RaysenseError, match=r"unet:mid_block\.proj: weights of torch\.float64"):
        Masker(components, inventory, grid)


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_follow_weights_that_get_new_storage(components, dtype):
    """As diffusers does it with Stable Diffusion XL's VAE: to float32 for a decoding, and back."""
    components["unet"].to(dtype)
    inventory, grid, masker = build(components)
    before = bits(components)
    for sparsity in (0.3, 0.8, 0.1):
        masker.apply(grid.uniform(sparsity))
        components["unet"].to(torch.float32)
        assert masker.rewrite_changed() == []  # other storage, the same values
        components["unet"].to(dtype)
        assert masker.rewrite_changed() == []
        weights = [weight_of(components, layer) for layer in inventory.layers]
        assert masker.count_zeros() == sum(count_zeros(weight) for weight in weights)
        assert masker.count_zeros() == grid.zeros(grid.uniform(sparsity)) + inventory.zeros_before
    components["unet"].to(torch.float64 if dtype == torch.float32 else torch.float32)
    masker.apply(grid.uniform(0.5))  # while it is cast
    components["unet"].to(dtype)
    assert masker.rewrite_changed() == []
    masker.restore()
    assert all(torch.equal(a, b) for a, b in zip(before, bits(components), strict=True))


def test_weights_that_somebody_else_changed_are_found_and_written_anew(components):
    _, grid, masker = build(components)
    masker.apply(grid.uniform(0.5))
    want, zeros = bits(components), masker.count_zeros()
    assert masker.rewrite_changed() == []
    with torch.no_grad():
        components["unet"].conv_in.weight.add_(1)  # in place
        components["unet"].tiny.weight = nn.Parameter(torch.ones_like(components["unet"].tiny.weight))
    assert masker.count_zeros() < zeros  # what is live is counted
    assert masker.rewrite_changed() == ["unet:conv_in", "unet:tiny"]
    assert all(torch.equal(a, b) for a, b in zip(want, bits(components), strict=True))
    assert masker.count_zeros() == zeros
