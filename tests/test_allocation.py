from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysense.allocation import MAX_LEVELS, Allocation, LevelGrid, block_of
from raysense.errors import RaysenseError

sizes = st.lists(st.integers(1, 3_000_000), min_size=1, max_size=12)
caps = st.floats(0.05, 1.0)


def grid_of(numbers: list[int], cap: float, max_levels: int = MAX_LEVELS) -> LevelGrid:
    return LevelGrid([(f"unet:blocks.{i // 3}.layer_{i}", n) for i, n in enumerate(numbers)], cap, max_levels)


def test_allocation_is_an_immutable_mapping_that_leaves_out_level_zero():
    a = Allocation({"unet:b": 3, "unet:a": 0})
    assert a == Allocation({"unet:b": 3})
    assert hash(a) == hash(Allocation({"unet:b": 3}))
    assert list(a) == ["unet:b"]
    assert a["unet:a"] == 0
    assert "unet:a" not in a
    assert a.key != Allocation({"unet:b": 4}).key
    with pytest.raises(TypeError):
        a["unet:b"] = 1  # type: ignore[index]


def test_importing_it_loads_no_torch():
    code = "import sys, raysense.allocation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "address, block",
    [
        (
            "unet:down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
            "unet:down_blocks.0.attentions.1",
        ),
        ("unet:mid_block.resnets.1.conv1", "unet:mid_block.resnets.1"),
        ("unet:conv_in", "unet:conv_in"),
        ("unet:time_embedding.linear_1", "unet:time_embedding"),
        ("text_encoder:text_model.encoder.layers.3.mlp.fc1", "text_encoder:text_model.encoder.layers.3"),
        ("text_encoder_3:encoder.block.7.layer.0.SelfAttention.q", "text_encoder_3:encoder.block.7"),
        ("transformer:transformer_blocks.5.ff.net.0.proj", "transformer:transformer_blocks.5"),
    ],
)
def test_block_of(address: str, block: str):
    assert block_of(address) == block


@given(sizes, caps, st.integers(1, 255))
def test_levels_fit_a_byte_and_the_cap(numbers: list[int], cap: float, max_levels: int):
    grid = grid_of(numbers, cap, max_levels)
    for address in grid.addresses:
        step, power = grid.step(address), grid.step(address) // grid.base
        assert step == grid.base * power
        assert power & (power - 1) == 0
        assert grid.top(address) <= max_levels
    for address, n in zip(grid.layers, numbers, strict=True):
        assert grid.limit(address) <= cap * n + 1e-6


@given(sizes, caps, st.data())
def test_every_total_is_met_within_one_base_step(numbers: list[int], cap: float, data: st.DataObject):
    grid = grid_of(numbers, cap)
    total = data.draw(st.integers(0, grid.max_zeros))
    wish = {a: data.draw(st.floats(0, 1.2)) * n for a, n in zip(grid.layers, numbers, strict=True)}
    allocation = grid.nearest(wish, total)
    assert 0 <= total - grid.zeros(allocation) < grid.base
    grid.validate(allocation)


@given(sizes, caps, st.data())
def test_what_a_level_removes_is_shared_out_exactly_and_grows(
    numbers: list[int], cap: float, data: st.DataObject
):
    grid = grid_of(numbers, cap)
    address = data.draw(st.sampled_from(grid.addresses))
    before = dict.fromkeys(grid.members(address), 0)
    for level in range(1, grid.top(address) + 1):
        now = {a: grid.removed(a, level) for a in grid.members(address)}
        assert sum(now.values()) == grid.zeros_at(address, level)
        assert all(before[a] <= now[a] for a in now)
        before = now


@given(sizes, caps, st.data())
def test_a_switch_keeps_the_total(numbers: list[int], cap: float, data: st.DataObject):
    grid = grid_of(numbers, cap)
    start = grid.uniform(data.draw(st.floats(0, 1)))
    up, down = (data.draw(st.sampled_from(grid.addresses)) for _ in range(2))
    switched = grid.switch(start, up, down, times=data.draw(st.integers(1, 3)))
    if switched is not None:
        assert grid.zeros(switched) == grid.zeros(start)
        assert switched[up] > start[up]
        assert switched[down] < start[down]


def test_a_switch_trades_small_steps_against_a_large_one():
    grid = LevelGrid([("unet:small", 10_000), ("unet:large", 200_000)], 1.0)
    ratio = grid.step("unet:large") // grid.step("unet:small")
    assert ratio > 1
    switched = grid.switch(grid.uniform(0.5), "unet:large", "unet:small")
    assert switched is not None
    assert switched["unet:small"] == grid.uniform(0.5)["unet:small"] - ratio
    assert grid.switch(Allocation(), "unet:large", "unet:small") is None


def test_a_layer_with_few_steps_moves_with_the_largest_layer_of_its_block():
    grid = LevelGrid([("unet:b.0.x", 5_000), ("unet:b.0.y", 9_000), ("unet:b.0.tiny", 9), ("vae:q", 4)], 1.0)
    assert grid.leader("unet:b.0.tiny") == "unet:b.0.y"
    assert grid.members("unet:b.0.y") == ("unet:b.0.y", "unet:b.0.tiny")
    assert grid.top("unet:b.0.tiny") == 0
    top = grid.top("unet:b.0.y")
    assert grid.removed("unet:b.0.tiny", top) == 9 * grid.zeros_at("unet:b.0.y", top) // 9009
    assert grid.leader("vae:q") == "vae:q", "its component has no other layer"
    with pytest.raises(RaysenseError, match=r"unet:b\.0\.tiny.*moves with unet:b\.0\.y"):
        grid.validate({"unet:b.0.tiny": 1})


@settings(max_examples=20)
@given(caps)
def test_level_for_is_the_nearest_level(cap: float):
    grid = grid_of([100_000, 31_337, 640], cap)
    for address, n in zip(grid.layers, [100_000, 31_337, 640], strict=True):
        for sparsity in (0.0, 0.1, 0.3337, 0.9, 1.0):
            level = grid.level_for(address, sparsity)
            best = min(
                range(grid.top(address) + 1), key=lambda v: abs(grid.zeros_at(address, v) - sparsity * n)
            )
            error = abs(grid.zeros_at(address, level) - sparsity * n)
            assert error <= abs(grid.zeros_at(address, best) - sparsity * n) + 1e-6


def test_the_signature_changes_with_what_a_level_means():
    layers = [("unet:a", 10_000), ("unet:b", 20_000)]
    signatures = {
        LevelGrid(layers, 0.9).signature(),
        LevelGrid(layers, 0.8).signature(),
        LevelGrid(layers, 0.9, 16).signature(),
        LevelGrid(layers[:1], 0.9).signature(),
    }
    assert len(signatures) == 4
    assert LevelGrid(layers, 0.9).signature() in signatures


def test_bad_input_names_the_value_and_what_there_is():
    grid = LevelGrid([("unet:a", 10_000), ("unet:b", 10_000)], 0.5)
    with pytest.raises(RaysenseError, match=r"level 999 of unet:a.*0 to \d+"):
        grid.zeros({"unet:a": 999})
    with pytest.raises(RaysenseError, match=r"level -1 of unet:a"):
        grid.zeros({"unet:a": -1})
    with pytest.raises(RaysenseError, match=r"'unet:c' is not a selected layer.*unet:b"):
        grid.step("unet:c")
    with pytest.raises(RaysenseError, match=r"zeros: 15,000 cannot be removed; with max_layer_sparsity 0\.5"):
        grid.nearest({}, 15_000)
    with pytest.raises(RaysenseError, match="max_layer_sparsity: must be above 0"):
        LevelGrid([("unet:a", 1)], 0)
    with pytest.raises(RaysenseError, match="max_levels: must be 1 to 255"):
        LevelGrid([("unet:a", 1)], 1.0, 300)
    with pytest.raises(RaysenseError, match="layers: none"):
        LevelGrid([], 1.0)
