"""Part d: where the time of sampling goes: kernels, gaps, and waits of the host for the device."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.on_gpu.bench import Bench, Figures
from benchmarks.on_gpu.networks import make, shapes
from benchmarks.on_gpu.speed import flops_of, shaped_pipeline, shaped_study

TOP = 15
STEPS = 4
"""Steps that are profiled: each is some thousands of kernels, and every one an event to be sorted."""
WAITS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "aten::item",
    "aten::nonzero",
)
FAMILIES = {
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "convolution": ("conv", "implicit", "wgrad", "dgrad", "fprop"),
    "product of matrices": ("gemm", "cutlass", "cublas", "nvjet", "splitk"),
    "norm": ("norm", "welford", "moments"),
    "copy": ("copy", "memcpy", "memset", "cat"),
    "elementwise": ("elementwise", "vectorized", "reduce", "unrolled"),
}


def run(bench: Bench) -> None:
    """Every step of the part."""
    bench.step("sampling", partial(sampling, bench), 60)
    for name in ("sd2", "flux"):
        bench.step(f"one call of {name}", partial(one_call, bench, name), 40)


def sampling(bench: Bench) -> Figures:
    """A batch sampled by an evaluator's pipeline, judging included: busy share, kernels, waits by source line."""
    from raysense.evaluation.evaluator import Evaluator

    with tempfile.TemporaryDirectory() as store:
        study = shaped_study(bench, shaped_pipeline(bench), STEPS)
        evaluator = Evaluator(study, store)
        prompts = evaluator.prompts.of("score", study.sampling.batch)
        allocation = evaluator.grid.uniform(0.3)

        def work() -> None:
            with torch.inference_mode():
                images = evaluator.sample(allocation, prompts, [0] * len(prompts))
                evaluator.scorer.score(images, prompts, None)

        work()
        found = profiled(bench, work)
        waits = waiting_lines(bench, work)
    steps = study.sampling.steps
    lines = [
        {"line": line, "waits": count, "a step": count / steps} for line, count in waits.most_common(TOP)
    ]
    return {**found, "steps": steps, "images": len(prompts), "waits by source line": lines or "none seen"}


def one_call(bench: Bench, name: str) -> Figures:
    """One call of a denoiser, and how far each family of kernels is from what the card can do."""
    shape = shapes(bench.quick, few=True)[name]
    module = make(shape, bench.device)
    batch = shape.batches[1]
    inputs = shape.inputs(batch, bench.device, torch.bfloat16)
    flops = flops_of(module, shape, bench) * batch
    bytes_ = sum(p.nbytes for p in module.parameters())

    def work() -> None:
        with torch.inference_mode():
            module(**inputs)

    work()
    seconds = bench.median(work, 1, 5, 1.0)
    found: dict[str, Any] = {"what": f"{shape.told}, {batch} samples", "seconds": seconds}
    if bench.machine:
        found["arithmetic floor s"] = flops / bench.machine["flops_per_s"]
        found["weights read s"] = bytes_ / bench.machine["bytes_per_s"]
        found["times the arithmetic floor"] = seconds / found["arithmetic floor s"]
    return {**found, **profiled(bench, work)}


def profiled(bench: Bench, work: Callable[[], object]) -> dict[str, Any]:
    """A profile of one repetition: the device's busy share, its kernels, the host's waits."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_gpu else [])]
    bench.settle()
    with profile(activities=activities) as seen:
        wall = bench.wall(work)[0]
    events: list[Any] = list(seen.events() or [])
    device = [e for e in events if "CUDA" in str(e.device_type)]
    kernels: dict[str, list[float]] = defaultdict(list)
    for event in device or [e for e in events if e.name.startswith("aten::")]:
        took = event.time_range.elapsed_us() if device else event.self_cpu_time_total
        kernels[event.name].append(took)
    total = sum(map(sum, kernels.values())) or 1.0
    top = sorted(kernels.items(), key=lambda item: -sum(item[1]))[:TOP]
    families: dict[str, float] = defaultdict(float)
    for name, times in kernels.items():
        families[family(name)] += sum(times) / total
    host = Counter(e.name for e in events if "CUDA" not in str(e.device_type))
    return {
        "wall ms": 1000 * wall,
        "busy share": _union((e.time_range.start, e.time_range.end) for e in device) / (wall * 1e6),
        "kernels": len(device),
        "families": [{"family": f, "share": s} for f, s in sorted(families.items(), key=lambda i: -i[1])],
        "waits": {name: host[name] for name in WAITS if host[name]},
        "top": [{"kernel": n[:110], "calls": len(t), "share": sum(t) / total} for n, t in top],
    }


def family(kernel: str) -> str:
    """What a kernel does, by its name."""
    low = kernel.lower()
    return next((name for name, signs in FAMILIES.items() if any(sign in low for sign in signs)), "other")


def waiting_lines(bench: Bench, work: Callable[[], object]) -> Counter[str]:
    """Source lines at which torch says that the host waits for the device, and how often."""
    found: Counter[str] = Counter()
    if not bench.on_gpu:
        work()
        return found
    before = warnings.showwarning

    def count(_message: Any, _category: Any, filename: str, lineno: int, *_: Any) -> None:
        found[f"{'/'.join(Path(filename).parts[-2:])}:{lineno}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = count  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
            warnings.showwarning = before
    return found


def _union(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
