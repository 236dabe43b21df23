"""Part c: 2:4 kernels, by shape and for whole denoisers, beside dense ones with the same weights."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.on_gpu.bench import Bench, Figures
from benchmarks.on_gpu.networks import make, shapes
from raysense.errors import RaysenseError
from raysense.export.semi_structured import check_device, convert, follows, why_not
from raysense.pruning.layers import take_inventory
from raysense.pruning.masks import Masker
from raysense.pruning.patterns import Pattern, pattern_grid

PATTERN = Pattern(2, 4)
ERROR_BAR = 0.02
WIDTHS = {
    "sd2 and sdxl, 64x64, to_out": (4096, 640, 640),
    "sdxl, 32x32, feed-forward in": (1024, 1280, 10240),
    "sdxl, 32x32, feed-forward out": (1024, 5120, 1280),
    "flux, attention": (4608, 3072, 3072),
    "flux, feed-forward in": (4608, 3072, 12288),
    "flux, feed-forward out": (4608, 12288, 3072),
    "flux, single block out": (4608, 15360, 3072),
}
"""Where a linear map stands -> rows of one sample, inputs, outputs."""


def run(bench: Bench) -> None:
    """Every step of the part."""
    bench.step("2:4 linear maps bfloat16", partial(linear_maps, bench, torch.bfloat16), 40)
    bench.step("2:4 linear maps float16", partial(linear_maps, bench, torch.float16), 30)
    for name in ("sd2", "flux", "sdxl"):
        bench.step(f"2:4 {name}", partial(whole, bench, name), 45)


def linear_maps(bench: Bench, dtype: torch.dtype) -> Figures:
    """Time of a dense linear map over that of the 2:4 one, at one sample and at eight."""
    from torch.sparse import to_sparse_semi_structured

    kernels = _kernels(bench)
    rows = []
    for name, (tokens, inputs, outputs) in WIDTHS.items():
        inputs, outputs, tokens = (n // 16 if bench.quick else n for n in (inputs, outputs, tokens))
        linear = nn.Linear(inputs, outputs, bias=True, device=bench.device, dtype=dtype).requires_grad_(False)
        _prune(linear)
        refused = why_not(linear)
        row: dict[str, Any] = {"where": name, "weights": f"{outputs}x{inputs}", "refused": refused or kernels}
        rows.append(row)
        if refused or kernels:
            continue
        sparse = nn.Parameter(to_sparse_semi_structured(linear.weight.detach()), requires_grad=False)
        for batch in (1, 8):
            x = torch.randn(batch * tokens, inputs, device=bench.device, dtype=dtype)
            row |= _compared(bench, linear, sparse, x, f"batch {batch}")
    faster = [name for row in rows for name, value in row.items() if name.endswith("gain") and value > 1]
    close = all(row.get("relative error", 0) <= ERROR_BAR for row in rows)
    return {"holds": close, "faster": f"{len(faster)} of {2 * len(rows)}", "rows": rows}


@torch.inference_mode()
def _compared(bench: Bench, linear: nn.Linear, sparse: nn.Parameter, x: Tensor, name: str) -> dict[str, Any]:
    dense = nn.functional.linear(x, linear.weight, linear.bias)
    other = nn.functional.linear(x, sparse, linear.bias)
    error = float((other.float() - dense.float()).norm() / dense.float().norm())
    before = bench.median(lambda: nn.functional.linear(x, linear.weight, linear.bias), 3, 20, 0.2)
    after = bench.median(lambda: nn.functional.linear(x, sparse, linear.bias), 3, 20, 0.2)
    return {f"{name} dense ms": 1000 * before, f"{name} gain": before / after, "relative error": error}


def _prune(linear: nn.Linear) -> None:
    """Two of every four inputs become zero, by magnitude, as raysense does it."""
    modules = {"part": nn.Sequential(linear)}
    inventory = take_inventory(modules, select=["part"])
    grid = pattern_grid(inventory, PATTERN)
    Masker(modules, inventory, grid, pattern=PATTERN).apply(grid.uniform(1.0))
    if not follows(linear.weight):
        raise AssertionError("a pruned layer does not follow 2:4")


def _kernels(bench: Bench) -> str:
    """Why there are no 2:4 kernels here, or an empty text."""
    try:
        check_device(bench.device.type)
    except RaysenseError as error:
        return str(error)
    return ""


def whole(bench: Bench, name: str) -> Figures:
    """A denoiser with every layer at 2:4: its time with dense kernels over that with 2:4 ones."""
    shape = shapes(bench.quick, few=True)[name]
    module = make(shape, bench.device)
    modules = {name: module}
    inventory = take_inventory(modules, select=[name], kinds=["linear"])
    grid = pattern_grid(inventory, PATTERN)
    masker = Masker(modules, inventory, grid, pattern=PATTERN)
    masker.apply(grid.uniform(1.0))
    zeros = masker.count_zeros()
    del masker
    bench.clean()
    rows: list[dict[str, Any]] = []
    given = {n: shape.inputs(n, bench.device, torch.bfloat16) for n in shape.batches[:2]}
    with torch.inference_mode():
        before = {n: bench.median(lambda n=n: module(**given[n]), 1, 5, 1.0) for n in given}  # type: ignore[misc]
        expected = _output(module(**given[1]))
        if reason := _kernels(bench):
            return {"holds": None, "why": reason, "zeros": zeros, "dense_ms": 1000 * before[1]}
    holder: Any = SimpleNamespace(components=modules)
    conversion = convert(holder, [layer.address for layer in inventory.layers])
    with torch.inference_mode():
        found = _output(module(**given[1]))
        error = float((found - expected).norm() / expected.norm())
        for n, inputs in given.items():
            after = bench.median(lambda inputs=inputs: module(**inputs), 1, 5, 1.0)  # type: ignore[misc]
            rows.append(
                {"batch": n, "dense ms": 1000 * before[n], "2:4 ms": 1000 * after, "gain": before[n] / after}
            )
    told = conversion.in_words()
    return {"holds": error <= 0.1, "relative error": error, "layers": told, "zeros": zeros, "rows": rows}


def _output(output: Any) -> Tensor:
    first: Tensor = output[0]
    return first.float()
