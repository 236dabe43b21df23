"""What all parts of `benchmarks.gpu` share: steps that are guarded and stop in time, clocks, and what was found."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks.on_gpu.table import markdown

GIB = 2**30
PACKAGES = ("torch", "triton", "diffusers", "transformers", "open_clip_torch", "torch-fidelity", "numpy")
Figures = Mapping[str, Any]


class OutOfTimeError(Exception):
    """A step took longer than its limit."""


@dataclass
class Bench:
    """One run: where it measures, until when, and what was found.

    Attributes:
        device: ``cuda`` or ``cpu``.
        quick: Small sizes, to see that every line runs.
        out: The folder of ``gpu.json`` and ``gpu.md``.
        began: When the run began, `time.monotonic`.
        ends: When the present part has to be over.
        about: Card, driver and versions.
        scratch: A folder that lasts as long as the run.
        steps: What was found, step by step.
        part: The present part.
        machine: What the card can do: bytes a second copied, floating-point operations a second.
    """

    device: torch.device
    quick: bool
    out: Path
    began: float
    ends: float
    about: dict[str, Any]
    scratch: Path
    steps: list[dict[str, Any]] = field(default_factory=list)
    part: str = ""
    machine: dict[str, float] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def judges_time(self) -> bool:
        """Whether bars on times mean anything: not for small sizes, nor where all is on a CPU."""
        return self.on_gpu and not self.quick

    @property
    def left(self) -> float:
        """Seconds that the present part still has."""
        return self.ends - time.monotonic()

    def step(self, name: str, work: Callable[[], Figures], limit: float) -> Figures:
        """Measures one thing; a failure or a lack of time is recorded, and the next step goes on.

        Args:
            name: Of the step.
            work: Gives the figures; ``holds`` among them says whether its bar holds.
            limit: Seconds after which it is broken off.
        """
        entry: dict[str, Any] = {"part": self.part, "step": name}
        if self.left < min(5.0, limit / 4):
            entry["skipped"] = f"no time left in part {self.part}"
        else:
            began = time.monotonic()
            try:
                with _broken_off(min(limit, self.left + 5.0)):
                    entry["figures"] = dict(work())
            except Exception as error:
                entry["error"] = f"{type(error).__name__}: {str(error)[:600]}"
                entry["traceback"] = _places(error)
            entry["seconds"] = round(time.monotonic() - began, 2)
        self.steps.append(entry)
        self.clean()
        self.write()
        told = entry.get("error") or entry.get("skipped") or json.dumps(entry.get("figures"), default=str)
        print(f"[{time.monotonic() - self.began:5.0f} s] {self.part} {name}: {told[:900]}", flush=True)
        figures: Figures = entry.get("figures", {})
        return figures

    def clean(self) -> None:
        """Gives back what a step left on the device."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()

    def write(self) -> None:
        """Writes what was found so far."""
        found = {"about": self.about, "machine": self.machine, "steps": self.steps}
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "gpu.json").write_text(json.dumps(found, indent=1, default=str) + "\n")
        (self.out / "gpu.md").write_text(markdown(found))

    def settle(self) -> None:
        """Waits for the device."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def wall(self, work: Callable[[], object], repeats: int = 1) -> list[float]:
        """Seconds of each repetition, launches and the device's queue included."""
        found = []
        for _ in range(repeats):
            self.settle()
            began = time.perf_counter()
            work()
            self.settle()
            found.append(time.perf_counter() - began)
        return found

    def median(self, work: Callable[[], object], warm: int = 1, repeats: int = 5, most: float = 2.0) -> float:
        """Median seconds of repetitions, as many as fit into `most` seconds but one at least."""
        self.wall(work, warm)
        found = self.wall(work)
        while len(found) < repeats and sum(found) < most:
            found += self.wall(work)
        return statistics.median(found)

    @contextmanager
    def peak(self) -> Iterator[dict[str, float]]:
        """Fills in the bytes at the peak beyond those that were there before; 0 on a CPU."""
        found = {"bytes": 0.0}
        if not self.on_gpu:
            yield found
            return
        self.settle()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield found
        self.settle()
        found["bytes"] = float(torch.cuda.max_memory_allocated() - before)


def measure_machine(bench: Bench) -> Figures:
    """The two ceilings: a large copy and a large product of matrices."""
    n = (1 << 22) if bench.quick else (1 << 30)
    copied = _bytes_copied(bench, n)
    side = 256 if bench.quick else 8192
    a = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
    b = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
    multiplied = 2 * side**3 / bench.median(lambda: a @ b, 3, 10)
    bench.machine = {"bytes_per_s": copied, "flops_per_s": multiplied}
    return {"copy_gb_per_s": round(copied / 1e9), "bf16_tflops": round(multiplied / 1e12, 2)}


def _bytes_copied(bench: Bench, n: int) -> float:
    """Bytes read and written a second, copying n values of 16 bits."""
    source = torch.randn(n // 8, device=bench.device).repeat(8).to(torch.bfloat16)
    target = torch.empty_like(source)
    return 2 * source.nbytes / bench.median(lambda: target.copy_(source), 2)


def describe(device: torch.device, quick: bool) -> dict[str, Any]:
    """Card, driver and versions."""
    about: dict[str, Any] = {"device": device.type, "quick": quick, "python": platform.python_version()}
    about["cpus"] = os.cpu_count()
    for name in PACKAGES:
        try:
            about[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            about[name] = "missing"
    about["torch"] = torch.__version__
    if device.type == "cuda":
        properties: Any = torch.cuda.get_device_properties(device)
        about |= {
            "card": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / GIB, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "driver": "unknown",
        }
        with suppress(OSError, subprocess.SubprocessError):
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            about["driver"] = subprocess.run(
                query, capture_output=True, text=True, check=True, timeout=20
            ).stdout.strip()
    return about


@contextmanager
def _broken_off(seconds: float) -> Iterator[None]:
    def ring(_number: int, _frame: FrameType | None) -> None:
        raise OutOfTimeError(f"broken off after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _places(error: BaseException) -> list[str]:
    """Where it happened, innermost last, without this machine's folders."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{'/'.join(Path(f.filename).parts[-2:])}:{f.lineno} {f.name}: {f.line}" for f in frames]
