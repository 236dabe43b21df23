"""Part b: denoisers in the shapes of published ones, and what the engine, its masks and its memory add to them."""

from __future__ import annotations

import statistics
import tempfile
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.on_gpu.bench import GIB, Bench, Figures
from benchmarks.on_gpu.networks import Shape, make, sd2_pipeline, shapes
from raysense.allocation import Allocation, LevelGrid
from raysense.pruning.layers import take_inventory, weight_of
from raysense.pruning.masks import Masker
from raysense.study import Study, load

OVERHEAD_BAR = 1.03
SWITCH_BAR = 2.0
MAKING_BAR = 10.0
MEMORY_BAR = 0.10


def run(bench: Bench) -> None:
    """Every step of the part; the largest network last."""
    every = shapes(bench.quick)
    bench.step("engine", partial(engine, bench), 90)
    for name, limit in (("sd2", 40), ("sdxl", 45), ("flux", 60)):
        bench.step(f"{name} masks", partial(masks, bench, every[name]), limit)
        bench.step(f"{name} evaluations", partial(forwards, bench, every[name]), limit)
    bench.step("compiled blocks", partial(compiled, bench, shapes(bench.quick, few=True)["flux"]), 75)


def forwards(bench: Bench, shape: Shape) -> Figures:
    """Denoiser evaluations a second by batch, beside the floors of arithmetic and of reading the weights."""
    module = make(shape, bench.device)
    bytes_ = sum(p.nbytes for p in module.parameters())
    flops = flops_of(module, shape, bench)
    rows: list[dict[str, Any]] = []
    layouts = (False, True) if isinstance(next(_convolutions(module), None), nn.Conv2d) else (False,)
    for channels_last in layouts:
        if channels_last:
            module.to(memory_format=torch.channels_last)
        for batch in shape.batches:
            if bench.left < 5:
                break
            row = _forward_row(bench, module, shape, batch, flops, bytes_)
            rows.append({"batch": batch, "channels_last": channels_last, **row})
    return {
        "what": shape.told,
        "parameters": sum(p.numel() for p in module.parameters()),
        "gflop_a_sample": round(flops / 1e9, 1),
        "rows": rows,
    }


def _convolutions(module: nn.Module) -> Any:
    return (part for part in module.modules() if isinstance(part, nn.Conv2d) and part.kernel_size != (1, 1))


def flops_of(module: nn.Module, shape: Shape, bench: Bench) -> int:
    """Floating-point operations of one sample, counted."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(**shape.inputs(1, bench.device, torch.bfloat16))
    return int(counter.get_total_flops())


def _forward_row(
    bench: Bench, module: nn.Module, shape: Shape, batch: int, flops: int, bytes_: int
) -> dict[str, Any]:
    inputs = shape.inputs(batch, bench.device, torch.bfloat16)

    @torch.inference_mode()
    def call() -> None:
        module(**inputs)

    try:
        with bench.peak() as peak:
            call()
        seconds = bench.median(call, 1, 5, 1.5)
    except torch.OutOfMemoryError:
        return {"evaluations/s": "out of memory"}
    row: dict[str, Any] = {"evaluations/s": batch / seconds, "ms": 1000 * seconds}
    if bench.machine:
        floor = max(
            batch * flops / bench.machine["flops_per_s"], 2 * bytes_ / bench.machine["bytes_per_s"] / 2
        )
        row |= {"TFLOP/s": batch * flops / seconds / 1e12, "times the floor": seconds / floor}
    return row | {"activations GiB": peak["bytes"] / GIB}


# --- masks --------------------------------------------------------------------------------------------


def masks(bench: Bench, shape: Shape) -> Figures:
    """Making all masks, switching all of them and one, in copies of the weights; restored to the bit."""
    modules = {shape.name: make(shape, bench.device)}
    inventory = take_inventory(modules, select=list(modules))
    grid = LevelGrid(inventory.sizes, 0.95)
    weights = [weight_of(modules, layer).data for layer in inventory.layers]
    size = sum(weight.nbytes for weight in weights)
    before = [_fingerprint(weight) for weight in weights]
    copied = _copying(bench, weights)
    bench.clean()
    held = torch.cuda.memory_allocated() if bench.on_gpu else 0
    made: list[Masker] = []
    making = bench.wall(lambda: made.append(Masker(modules, inventory, grid)))[0]
    masker = made[0]
    beyond = torch.cuda.memory_allocated() - held if bench.on_gpu else 0
    low, high = grid.uniform(0.3), grid.uniform(0.6)
    masker.apply(high)
    switching, counting = [], []
    for allocation in (low, high, low, high):
        switching += bench.wall(lambda allocation=allocation: masker.apply(allocation))  # type: ignore[misc]
        counting += bench.wall(masker.count_zeros)
    exact = masker.count_zeros() == grid.zeros(high)
    masker.restore()
    restored = before == [_fingerprint(weight) for weight in weights]
    switched = min(switching)
    quick_enough = switched <= SWITCH_BAR * copied and making <= MAKING_BAR * copied
    return {
        "holds": exact and restored and (quick_enough or not bench.judges_time),
        "weights": inventory.n_selected,
        "layers": len(inventory.layers),
        "master": masker.described,
        "exact_zeros": exact,
        "restored": restored,
        "copy_ms": 1000 * copied,
        "copy_gb_per_s": 2 * size / copied / 1e9,
        "making_s": making,
        "making_in_copies": making / copied,
        "switch_all_ms": 1000 * switched,
        "switch_all_in_copies": switched / copied,
        "count_zeros_ms": 1000 * min(counting),
        "bytes_a_weight_beyond_master": (beyond - size) / inventory.n_selected if bench.on_gpu else None,
    }


def _copying(bench: Bench, weights: list[Tensor]) -> float:
    """Seconds of one copy of all weights."""
    copies = [torch.empty_like(weight) for weight in weights]

    def copy() -> None:
        for target, source in zip(copies, weights, strict=True):
            target.copy_(source)

    return min(bench.wall(copy, 6)[1:])


def _fingerprint(weight: Tensor) -> tuple[int, int]:
    """Two sums of a weight's bits, the second with each place counted: equal for equal bits."""
    bits = weight.flatten().view(torch.int16).long()
    return int(bits.sum()), int((bits * (torch.arange(len(bits), device=bits.device) % 8191)).sum())


# --- the engine ---------------------------------------------------------------------------------------


def shaped_pipeline(bench: Bench) -> str:
    """Stable Diffusion 2's U-Net and text encoder with random weights around the bundle's VAE, saved once a run."""
    folder = bench.scratch / "sd2"
    if folder.is_dir():
        return str(folder)
    pipeline = sd2_pipeline(bench.quick, 16 if bench.quick else 64, bench.device)
    pipeline.save_pretrained(folder)
    return str(folder)


def shaped_study(bench: Bench, source: str, steps: int = 20) -> Study:
    """A study of `shaped_pipeline`: 32 images."""
    preview, score, batch, steps = (8, 8, 8, 2) if bench.quick else (16, 32, 16, steps)
    return load(
        overrides=[
            f"pipeline={source}",
            "dtype=bfloat16",
            f"cluster.gpus_per_evaluator={int(bench.on_gpu)}",
            f"sampling.batch={batch}",
            f"sampling.steps={steps}",
            "rungs.probe.prompts=8",
            f"rungs.preview.prompts={preview}",
            f"rungs.score.prompts={score}",
            f"rungs.validation.prompts={preview}",
        ]
    )


def engine(bench: Bench) -> Figures:
    """An evaluator's start, its peak of memory, and an evaluation beside the bare loop of diffusers."""
    from raysense.evaluation.evaluator import Evaluator
    from raysense.records import EvaluationRequest
    from raysense.search.gpu_memory import BYTES, GIB

    with tempfile.TemporaryDirectory() as store:
        study = shaped_study(bench, shaped_pipeline(bench))
        bench.clean()
        before = torch.cuda.memory_allocated() if bench.on_gpu else 0
        seconds: dict[str, float] = {}
        began = time.perf_counter()
        evaluator = Evaluator(study, store)
        seconds["loading"] = time.perf_counter() - began
        allocations = [evaluator.grid.uniform(0.05 * number) for number in range(2, 14)]
        seconds["masks"] = bench.wall(lambda: evaluator.stand_at(allocations[0]))[0]
        held = torch.cuda.memory_allocated() - before if bench.on_gpu else 0
        seconds["contents hashed"] = bench.wall(lambda: evaluator.inputs)[0]
        with bench.peak() as dense_peak:
            seconds["dense images"] = evaluator.evaluate(EvaluationRequest(Allocation(), "score")).seconds
        seconds["first probe"] = evaluator.evaluate(EvaluationRequest(allocations[0], "probe")).seconds
        seconds["probe"] = evaluator.evaluate(EvaluationRequest(allocations[1], "probe")).seconds
        ratios = side_by_side(bench, evaluator, study, allocations)
    inventory, width = evaluator.inventory, BYTES[study.dtype]
    planned = inventory.n_pipeline * width + inventory.n_selected * (width + 1)  # weights, master, levels
    overhead = statistics.median(ratios)
    found: dict[str, Any] = {
        "overhead": overhead,
        "bar_overhead": OVERHEAD_BAR,
        "ratios": [round(ratio, 3) for ratio in ratios],
        **{f"seconds, {name}": value for name, value in seconds.items()},
        "planned_gib": planned / GIB,
        "held_gib": held / GIB,
        "held_to_planned": held / planned,
        "peak_gib": (held + dense_peak["bytes"]) / GIB,
        "peak_to_planned": (held + dense_peak["bytes"]) / planned,
    }
    fits = abs(found["held_to_planned"] - 1) <= MEMORY_BAR and overhead <= OVERHEAD_BAR
    return {"holds": fits if bench.judges_time else None, **found}


def side_by_side(bench: Bench, evaluator: Any, study: Study, allocations: list[Allocation]) -> list[float]:
    """An evaluation's time over that of the same images and features without the engine, pair by pair."""
    from benchmarks.engine import bare
    from raysense.records import EvaluationRequest

    run_bare = bare(study, evaluator)
    run_bare()
    ratios = []
    for number in range(2 if bench.quick else 4):
        times = {}
        for who in ("engine", "bare") if number % 2 else ("bare", "engine"):
            if who == "bare":
                times[who] = bench.wall(run_bare)[0]
            else:
                request = EvaluationRequest(allocations[number + 2], "score")
                times[who] = bench.wall(lambda request=request: evaluator.evaluate(request))[0]  # type: ignore[misc]
        ratios.append(times["engine"] / times["bare"])
        if bench.left < 5:
            break
    return ratios


# --- compiled -----------------------------------------------------------------------------------------


def compiled(bench: Bench, shape: Shape) -> Figures:
    """The repeated blocks compiled, each kind once: time, gain, and whether new masks compile anything anew."""
    module: Any = make(shape, bench.device)
    inventory = take_inventory({shape.name: module}, select=[shape.name], include=["*blocks.0.*"])
    grid = LevelGrid(inventory.sizes, 0.95)
    inputs = shape.inputs(1, bench.device, torch.bfloat16)

    @torch.inference_mode()
    def call() -> None:
        module(**inputs)

    plain = bench.median(call, 1, 5, 1.5)
    module.compile_repeated_blocks(backend="inductor" if bench.on_gpu else "eager")
    first = bench.wall(call)[0]
    fast = bench.median(call, 1, 5, 1.5)
    masker = Masker({shape.name: module}, inventory, grid)
    masker.apply(grid.uniform(0.3))
    masked = bench.wall(call)[0]
    return {
        "what": shape.told,
        "holds": masked < max(3 * fast, first / 3) if bench.judges_time else None,
        "compiling_s": first,
        "eager_ms": 1000 * plain,
        "compiled_ms": 1000 * fast,
        "gain": plain / fast,
        "first_after_masking_ms": 1000 * masked,
    }
