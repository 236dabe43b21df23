"""How fast does a worker change masks, and what does it hold for that?

Random bfloat16 weights in the layers of Stable Diffusion 2 (U-Net and text encoder, 1.2 billion parameters;
``--quick``: the same networks, narrower, 120 million). Every figure but one is a ratio of two things measured in
turn in this run: making all masks, switching every layer to another level, copying the same weights, switching one
layer, and pruning every layer with ``torch.nn.utils.prune``. LAMP's histograms are told in CPU seconds (a bar only at
full size). The last line printed is one JSON object.

    python -m benchmarks.masks [--quick]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn.utils import prune
from transformers import CLIPTextConfig, CLIPTextModel

from raysense.allocation import Allocation, LevelGrid
from raysense.pruning.allocation_rules import lamp
from raysense.pruning.layers import Inventory, take_inventory, weight_of
from raysense.pruning.masks import Masker

BYTES_A_WEIGHT = 1.2
ALL_TO_COPY = {"cpu": 3.0, "cuda": 2.0}
PRUNE_TO_ALL = 10.0
ONE_TO_SHARE = 2.0
MADE_TO_COPY = {"cpu": 60.0, "cuda": 10.0}
LAMP_CPU_SECONDS = 20.0


def networks(quick: bool, device: torch.device) -> dict[str, nn.Module]:
    """The two networks with random weights, built without ever holding them in 32 bits."""
    widths, text = ((96, 192, 384, 384), (512, 12)) if quick else ((320, 640, 1280, 1280), (1024, 23))
    build: Any = UNet2DConditionModel  # diffusers leaves its constructors untyped
    with torch.device("meta"):
        unet = build(
            block_out_channels=widths,
            cross_attention_dim=text[0],
            attention_head_dim=8,
            use_linear_projection=True,
        )
        encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=text[0],
                intermediate_size=4 * text[0],
                num_hidden_layers=text[1],
                num_attention_heads=8,
            )
        )
    torch.manual_seed(0)
    modules: dict[str, Any] = {"unet": unet, "text_encoder": encoder}
    for module in modules.values():
        module.to(torch.bfloat16).to_empty(device=device)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.02)
    return modules


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Wall time of an action, the device's own queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def memory(device: torch.device) -> int:
    """Bytes that this process holds on the device (freed ones that the allocator keeps are given back)."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def prune_everything(modules: dict[str, nn.Module], inventory: Inventory, share: float) -> None:
    """The same change of level, done with torch's own pruning."""
    for layer in inventory.layers:
        module = modules[layer.component].get_submodule(layer.path)
        prune.l1_unstructured(module, "weight", amount=share)  # type: ignore[no-untyped-call]
        prune.remove(module, "weight")  # type: ignore[no-untyped-call]


def main() -> None:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="120 million weights instead of 1.2 billion")
    parser.add_argument("--repeats", type=int, default=5, help="the best of so many counts")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    modules = networks(options.quick, device)
    inventory = take_inventory(modules, select=list(modules))
    grid = LevelGrid(inventory.sizes, 0.95)
    weights = [weight_of(modules, layer).data for layer in inventory.layers]
    size = sum(weight.nbytes for weight in weights)

    before = memory(device)
    made: list[Masker] = []
    making = seconds(lambda: made.append(Masker(modules, inventory, grid, master="device")), device)
    masker = made[0]
    print(f"{inventory.n_selected:,} weights ranked in {making:.1f} s on {device}", flush=True)
    beyond = (memory(device) - before - size) / inventory.n_selected

    started = time.process_time()
    lamp(inventory, grid, modules)(inventory.n_selected // 2)
    lamp_seconds = time.process_time() - started

    low, high = grid.uniform(0.3), grid.uniform(0.6)
    largest = max(inventory.layers, key=lambda layer: layer.n)
    one = Allocation({**low, largest.address: high[largest.address]})
    copies = [torch.empty_like(weight) for weight in weights]
    times: dict[str, list[float]] = {"copy": [], "all": [], "one": []}
    for _ in range(options.repeats):
        times["copy"].append(
            seconds(lambda: [c.copy_(w) for c, w in zip(copies, weights, strict=True)], device)
        )
        masker.apply(high)
        times["all"].append(seconds(lambda: masker.apply(low), device))
        times["one"].append(seconds(lambda: masker.apply(one), device))
        if masker.count_zeros() != grid.zeros(one):
            raise SystemExit("counted zeros differ from the requested ones")
    masker.restore()
    best = {name: min(values) for name, values in times.items()}
    torch_prune = seconds(lambda: prune_everything(modules, inventory, 0.3), device)

    share = largest.n / inventory.n_selected
    figures = {
        "made_to_copy": making / best["copy"],
        "lamp_cpu_seconds": lamp_seconds,
        "all_to_copy": best["all"] / best["copy"],
        "one_to_its_share_of_all": best["one"] / (share * best["all"]),
        "torch_prune_to_all": torch_prune / best["all"],
        "bytes_a_weight_beyond_master": beyond,
    }
    measured = {
        "weights": inventory.n_selected,
        "layers": len(inventory.layers),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "copy_seconds": best["copy"],
        "making_seconds": making,
        "switch_all_seconds": best["all"],
        "switch_one_seconds": best["one"],
        "torch_prune_seconds": torch_prune,
    }
    bar = {
        "made_to_copy": f"<= {MADE_TO_COPY[device.type]}",
        "lamp_cpu_seconds": f"<= {LAMP_CPU_SECONDS}",
        "all_to_copy": f"<= {ALL_TO_COPY[device.type]}",
        "one_to_its_share_of_all": f"<= {ONE_TO_SHARE}",
        "torch_prune_to_all": f">= {PRUNE_TO_ALL}",
        "bytes_a_weight_beyond_master": f"<= {BYTES_A_WEIGHT}",
    }
    holds = (
        figures["made_to_copy"] <= MADE_TO_COPY[device.type]
        and figures["lamp_cpu_seconds"] <= LAMP_CPU_SECONDS
        and figures["all_to_copy"] <= ALL_TO_COPY[device.type]
        and figures["one_to_its_share_of_all"] <= ONE_TO_SHARE
        and figures["torch_prune_to_all"] >= PRUNE_TO_ALL
        and figures["bytes_a_weight_beyond_master"] <= BYTES_A_WEIGHT
    )
    print(json.dumps({"benchmark": "masks", "figures": figures | measured, "bar": bar, "holds": holds}))


if __name__ == "__main__":
    main()
