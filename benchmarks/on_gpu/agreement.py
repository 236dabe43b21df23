"""Part a: does the device give what the CPU gives? With the bundled pipeline; every check against the CPU's own result.

What has to agree to the bit: noise, masks, restored weights, a dense pipeline replayed. What may differ by rounding:
images, features, statistics; how far is said.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from benchmarks.on_gpu.bench import GIB, Bench, Figures
from raysense.allocation import Allocation, LevelGrid
from raysense.errors import RaysenseError
from raysense.names import BUNDLED
from raysense.pipelines.adapter import wrapped
from raysense.pipelines.load import denoiser_of, load_pipeline, modules_of
from raysense.pipelines.sample import call_pipeline
from raysense.prompts.sets import Prompt, load_prompts
from raysense.pruning.layers import Inventory, take_inventory, weight_of
from raysense.pruning.masks import Masker, Place
from raysense.study import Sampling, Study, load

COMPONENTS = ("text_encoder", "unet")
FEW = ("down_blocks.1.attentions*", "*layers.0.*")
"""Layers that `quick` prunes."""
IMAGE_BAR = 0.02
"""Mean absolute difference of two images of the same prompt and noise, in [0, 1]."""
SIXTEEN_BAR = 0.1
STATISTIC_BAR = 0.15
PROBE_BAR = 0.02


def run(bench: Bench) -> None:
    """Every step of the part."""
    bench.step("noise", partial(noise, bench), 30)
    for dtype in ("bfloat16", "float16", "float32"):
        bench.step(f"masks {dtype}", partial(masks, bench, dtype), 40)
    bench.step("images", partial(images, bench), 60)
    bench.step("evaluations", partial(evaluations, bench), 90)
    # Convolutions in float16 take minutes on a CPU.
    for dtype in ("float16", "bfloat16") if bench.on_gpu else ("bfloat16",):
        bench.step(f"16 bits {dtype}", partial(sixteen_bits, bench, dtype), 60)
    bench.step("statistics", partial(statistics_agree, bench), 60)
    bench.step("out of memory", partial(out_of_memory, bench), 60)


def prompts_and_sampling(bench: Bench, count: int = 16) -> tuple[Sequence[Prompt], Sampling]:
    """The first prompts of the bundle and a study's way to sample; few and short for `quick`."""
    count, steps = (2, 2) if bench.quick else (count, 12)
    return load_prompts(BUNDLED).search[:count], Sampling(steps=steps, batch=count)


def small_study(bench: Bench, *more: str, device: str | None = None) -> Study:
    """The quickstart study with small rungs, on the bench's device or another one."""
    gpus = int((device or bench.device.type) == "cuda")
    sizes = ["rungs.probe.prompts=4", "rungs.probe.timesteps=2", "rungs.preview.prompts=8"]
    counts = (8, 8, 2, 2) if bench.quick else (16, 8, 8, 8)
    sizes += [f"rungs.score.prompts={counts[0]}", f"rungs.validation.prompts={counts[1]}"]
    sizes += [f"sampling.steps={counts[2]}", f"prune.calibration.prompts={counts[3]}"]
    sizes += [f"prune.include=[{', '.join(map(repr, FEW))}]"] * bench.quick
    return load(overrides=[*sizes, f"cluster.gpus_per_evaluator={gpus}", *more])


# --- to the bit ---------------------------------------------------------------------------------------


def noise(bench: Bench) -> Figures:
    """The denoiser's first input: the same for an image alone and in a batch, on the CPU and on the device."""
    prompts, sampling = prompts_and_sampling(bench, 8)
    found = {}
    for device in ("cpu", bench.device.type):
        pipeline = load_pipeline(BUNDLED, device=device)
        whole = _first_input(pipeline, prompts, sampling)
        alone = torch.cat([_first_input(pipeline, [prompt], sampling) for prompt in prompts])
        found[device] = whole
        if not torch.equal(whole, alone):
            return {"holds": False, "why": f"{device}: noise of an image depends on its batch"}
    same = torch.equal(found["cpu"], found[bench.device.type])
    return {"holds": same, "images": len(prompts), "same_on_both": same}


def _first_input(pipeline: DiffusionPipeline, prompts: Sequence[Prompt], sampling: Sampling) -> Tensor:
    """What the denoiser is given first, one row an image."""
    seen: list[Tensor] = []

    def spy(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            seen.append(sample.detach().cpu())
            raise _SeenError

        return call

    with wrapped(denoiser_of(pipeline), "forward", spy), suppress(_SeenError):
        call_pipeline(pipeline, prompts, [0] * len(prompts), sampling)
    return seen[0][-len(prompts) :]  # guidance stacks two of each


class _SeenError(Exception):
    """Ends a sampling call."""


def masks(bench: Bench, dtype: str) -> Figures:
    """Levels, masks and zeros as on the CPU; restored to the bit, wherever the dense master lies."""
    reference = load_pipeline(BUNDLED, dtype=dtype)
    inventory, grid = _inventory(reference, bench.quick)
    expected = Masker(modules_of(reference), inventory, grid)
    low, high = grid.uniform(0.3), grid.uniform(0.7)
    some = Allocation({a: level for i, (a, level) in enumerate(high.items()) if i % 2})
    walk = (low, high, some, Allocation(), high)
    places: tuple[Place, ...] = ("device", "host", "mapped")
    for channels_last in (False, True):
        pipeline = load_pipeline(BUNDLED, dtype=dtype, device=bench.device.type, channels_last=channels_last)
        dense = _weights(pipeline, inventory)
        for place in places[:1] if channels_last else places:
            masker = Masker(modules_of(pipeline), inventory, grid, master=place)
            for allocation in walk:
                masker.apply(allocation)
                expected.apply(allocation)
                where = f"{place}, channels_last {channels_last}, {len(allocation)} layers"
                if not _equal(_weights(pipeline, inventory), _weights(reference, inventory)):
                    return {"holds": False, "why": f"other weights than the CPU's: {where}"}
                if masker.count_zeros() != expected.count_zeros():
                    return {"holds": False, "why": f"other zeros than the CPU's: {where}"}
            masker.restore()
            if not _equal(_weights(pipeline, inventory), dense):
                return {"holds": False, "why": f"not restored to the bit: {place}"}
    return {"holds": True, "layers": len(inventory.layers), "allocations": len(walk), "places": len(places)}


def _inventory(pipeline: DiffusionPipeline, few: bool) -> tuple[Inventory, LevelGrid]:
    inventory = take_inventory(pipeline.components, select=COMPONENTS, include=FEW if few else ("*",))
    return inventory, LevelGrid(inventory.sizes, 0.95)


def _weights(pipeline: DiffusionPipeline, inventory: Inventory) -> list[Tensor]:
    modules = modules_of(pipeline)
    return [weight_of(modules, layer).detach().cpu().clone() for layer in inventory.layers]


def _equal(one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    integer = {2: torch.int16, 4: torch.int32}

    def bits(tensor: Tensor) -> Tensor:
        return tensor.contiguous().view(integer[tensor.element_size()])

    return all(torch.equal(bits(a), bits(b)) for a, b in zip(one, two, strict=True))


# --- up to rounding -----------------------------------------------------------------------------------


def images(bench: Bench) -> Figures:
    """Images of the same prompts and noise on both, and alone and in a batch on the device."""
    prompts, sampling = prompts_and_sampling(bench)
    seeds = [0] * len(prompts)
    expected = call_pipeline(load_pipeline(BUNDLED), prompts, seeds, sampling)
    pipeline = load_pipeline(BUNDLED, device=bench.device.type)
    rows = []
    before = torch.backends.cudnn.allow_tf32
    try:
        for tf32 in (True, False):
            torch.backends.cudnn.allow_tf32 = tf32
            together = call_pipeline(pipeline, prompts, seeds, sampling)
            again = call_pipeline(pipeline, prompts, seeds, sampling)
            alone = torch.cat([call_pipeline(pipeline, [p], [0], sampling) for p in prompts[:4]])
            rows.append(
                {
                    "convolutions in TF32": tf32,
                    "mean |device - CPU|": float((together - expected).abs().mean()),
                    "max |device - CPU|": float((together - expected).abs().max()),
                    "max |alone - batch|": float((alone - together[:4]).abs().max()),
                    "same when sampled again": torch.equal(together, again),
                }
            )
    finally:
        torch.backends.cudnn.allow_tf32 = before
    holds = all(row["mean |device - CPU|"] <= IMAGE_BAR and row["same when sampled again"] for row in rows)
    return {
        "holds": holds,
        "bar_mean": IMAGE_BAR,
        "images": len(prompts),
        "default_tf32": before,
        "rows": rows,
    }


def evaluations(bench: Bench) -> Figures:
    """Probe, layer and score rungs by an `Evaluator` on both."""
    from raysense.evaluation.evaluator import Evaluator
    from raysense.records import EvaluationRequest

    rows: list[dict[str, Any]] = []
    devices = dict.fromkeys(("cpu", bench.device.type))
    for device in devices:
        with tempfile.TemporaryDirectory() as folder:
            evaluator = Evaluator(small_study(bench, device=device), folder)
            dense, pruned = Allocation(), evaluator.grid.uniform(0.3)
            row: dict[str, Any] = {"device": device}
            for rung, name in (("probe", "probe_error"), ("layer", "layer_error")):
                row[f"dense {name}"] = evaluator.evaluate(EvaluationRequest(dense, rung)).measures[name].value
                row[name] = evaluator.evaluate(EvaluationRequest(pruned, rung)).measures[name].value
            evaluator.evaluate(EvaluationRequest(dense, "score"))
            judged = evaluator.evaluate(EvaluationRequest(pruned, "score"))
            row |= {m: judged.measures[m].value for m in ("clip_score", "clip_score_drop", "frechet_rise")}
            row |= {"zeros": judged.zeros, "seconds": judged.seconds}
            again = evaluator.evaluate(EvaluationRequest(dense, "probe")).measures["probe_error"].value
            row["dense probe_error afterwards"] = again
            rows.append(row)
    exact = all(row[name] == 0 for row in rows for name in row if name.startswith("dense"))
    here, there = rows[0], rows[-1]
    apart = abs(there["probe_error"] / here["probe_error"] - 1)
    holds = exact and here["zeros"] == there["zeros"] and apart <= PROBE_BAR
    return {"holds": holds, "probe_error_apart": apart, "bar_probe": PROBE_BAR, "rows": rows}


def sixteen_bits(bench: Bench, dtype: str) -> Figures:
    """The 16-bit types on the device: images near those of 32 bits, the dense probe exact, methods that learn."""
    from raysense.evaluation.evaluator import Evaluator
    from raysense.records import EvaluationRequest

    prompts, sampling = prompts_and_sampling(bench)
    seeds = [0] * len(prompts)
    expected = call_pipeline(load_pipeline(BUNDLED), prompts, seeds, sampling)
    found: dict[str, Any] = {"holds": True}
    for channels_last in (False, True):
        pipeline = load_pipeline(BUNDLED, dtype=dtype, device=bench.device.type, channels_last=channels_last)
        sampled = call_pipeline(pipeline, prompts, seeds, sampling)
        apart = float((sampled - expected).abs().mean())
        found[f"mean |image - float32|, channels_last {channels_last}"] = apart
        found["holds"] &= bool(sampled.isfinite().all()) and apart <= SIXTEEN_BAR
    for method in ("wanda", "taylor"):
        with tempfile.TemporaryDirectory() as folder:
            study = small_study(bench, f"dtype={dtype}", f"prune.saliency={method}")
            evaluator = Evaluator(study, folder)
            error = evaluator.evaluate(EvaluationRequest(Allocation(), "probe")).measures["probe_error"].value
            found[f"dense probe_error, {method}"] = error
            after = (
                evaluator.evaluate(EvaluationRequest(evaluator.grid.uniform(0.3), "probe"))
                .measures["probe_error"]
                .value
            )
            found[f"probe_error at 0.3, {method}"] = after
            found["holds"] &= error == 0 and 0 < after < 1
    return found


def statistics_agree(bench: Bench) -> Figures:
    """Second moments of inputs and gradients, 16 bits on the device against 32 bits on the CPU; none overflows."""
    from raysense.pruning.activations import calibrate

    prompts, sampling = prompts_and_sampling(bench, 8)

    def collected(dtype: str, device: str, need: str) -> dict[str, Tensor]:
        pipeline = load_pipeline(BUNDLED, dtype=dtype, device=device)
        inventory, _ = _inventory(pipeline, bench.quick)
        known = calibrate(
            modules_of(pipeline),
            inventory,
            frozenset({need}),
            lambda: call_pipeline(pipeline, prompts, [0] * len(prompts), sampling),
            calls=2,
        )
        return {a: getattr(one, need).double().cpu() for a, one in known.items()}

    expected = {need: collected("float32", "cpu", need) for need in ("inputs", "gradients")}
    rows: list[dict[str, Any]] = []
    for dtype in ("float32", "bfloat16", *(("float16",) if bench.on_gpu else ())):
        for need in expected:
            row: dict[str, Any] = {"dtype": dtype, "statistic": need}
            rows.append(row)
            try:
                layers = collected(dtype, bench.device.type, need)
            except RaysenseError as error:  # gradients of float16 may overflow, which is said
                row["refused"] = str(error)
                continue
            means = {a: float(layers[a].mean() / expected[need][a].mean().clamp_min(1e-30)) for a in layers}
            row["worst layer"] = max(means, key=lambda a: abs(means[a] - 1))
            row["its mean apart"] = abs(means[row["worst layer"]] - 1)
    # Gradients of 16-bit layers differ by more than rounding of their squares: only inputs are held to a bar.
    inputs = [row for row in rows if row["statistic"] == "inputs"]
    holds = all("refused" not in row and row["its mean apart"] <= STATISTIC_BAR for row in inputs)
    return {"holds": holds, "bar_inputs": STATISTIC_BAR, "rows": rows}


def out_of_memory(bench: Bench) -> Figures:
    """An evaluator that runs out of memory halves its batch, says so, and gives what it gives with enough."""
    from raysense.evaluation.evaluator import Evaluator
    from raysense.records import EvaluationRequest

    count = 8 if bench.quick else 128
    sizes = [f"rungs.score.prompts={count}", "rungs.preview.prompts=8", f"sampling.batch={count}"]
    study = small_study(bench, *sizes, "rungs.probe.prompts=8", "sampling.steps=3")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        evaluator = Evaluator(study, folder)
        allocation = evaluator.grid.uniform(0.3)
        with bench.peak() as peak:
            expected = evaluator.evaluate(EvaluationRequest(allocation, "score"))
        evaluator = Evaluator(study, other)
        evaluator.stand_at(allocation)
        bench.clean()
        how = _short_of_memory(bench, evaluator, peak["bytes"])
        found = evaluator.evaluate(EvaluationRequest(allocation, "score"))
    halved = "out of memory: batch" in found.notes
    apart = abs(found.measures["clip_score"].value - expected.measures["clip_score"].value)
    return {
        "holds": halved and apart < 0.01 and found.zeros == expected.zeros,
        "provoked_by": how,
        "peak_with_enough_gib": round(peak["bytes"] / GIB, 3),
        "notes": found.notes,
        "clip_score_apart": apart,
    }


def _short_of_memory(bench: Bench, evaluator: Any, peak: float) -> str:
    """Leaves the process less memory than a whole batch takes; on a CPU the denoiser refuses large batches."""
    if bench.on_gpu:
        total = torch.cuda.get_device_properties(bench.device).total_memory
        fraction = (torch.cuda.memory_reserved() + 0.6 * peak) / total
        torch.cuda.set_per_process_memory_fraction(fraction)
        return f"a limit of {fraction * total / GIB:.3f} GiB"
    denoiser = denoiser_of(evaluator.pipeline)
    forward = denoiser.forward

    def refusing(sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(sample) > 8:
            raise torch.OutOfMemoryError("provoked: there is no such limit on a CPU")
        return forward(sample, *args, **kwargs)

    denoiser.forward = refusing
    return "a denoiser that refuses more than 8 samples"
