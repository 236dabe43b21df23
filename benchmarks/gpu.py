"""Does raysense hold on a GPU, and how fast is it there? One run of some minutes, without Ray, hub or network.

    python -m benchmarks.gpu --out DIR [--minutes 8] [--device cuda|cpu] [--only a,b] [--quick]

Parts, in order of worth: (a) the device against the CPU with the bundled pipeline; (b) denoisers in the shapes of
Stable Diffusion 2, XL and FLUX with random weights, and what the engine, masks and memory add to them; (d) a profile;
(c) 2:4 kernels. Each part stops at its share of the minutes, and what it leaves goes to the next; a step that fails is
recorded and the next goes on. ``gpu.json`` and ``gpu.md`` are written after every step. ``--quick`` is small enough for
a CPU in a minute: it shows that every line runs. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging

from benchmarks.on_gpu.bench import Bench, describe, measure_machine

PARTS = {"a": ("agreement", 0.24), "b": ("speed", 0.46), "d": ("profile", 0.14), "c": ("sparse", 0.16)}
"""Part -> its module and its share of the minutes, in order."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs and prints the result as JSON on the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--out", type=Path, help="folder of gpu.json and gpu.md; a temporary one if missing")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda if there is one")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, e.g. a,b")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    options = parser.parse_args(arguments)
    wanted = [part for part in PARTS if part in options.only.split(",")]
    if unknown := sorted(set(options.only.split(",")) - set(PARTS)):
        parser.error(f"--only: there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device: cuda, but torch sees no such device here; use --device cpu")
    out = options.out or Path(tempfile.mkdtemp(prefix="raysense-gpu-"))
    diffusers_logging.set_verbosity_error()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        about = describe(device, options.quick)
        bench = Bench(device, options.quick, out, began, began, about, Path(scratch))
        print(json.dumps(bench.about), flush=True)
        run_parts(bench, wanted, 60 * options.minutes)
        return conclude(bench)


def run_parts(bench: Bench, wanted: Sequence[str], seconds: float) -> None:
    """The parts, each until its share of the seconds is over."""
    shares = [PARTS[part][1] for part in wanted]
    for number, part in enumerate(wanted):
        bench.part = part
        bench.ends = bench.began + seconds * sum(shares[: number + 1]) / sum(shares)
        if number == 0:
            bench.step("machine", lambda: measure_machine(bench), 40)
        run_part(bench, part)


def run_part(bench: Bench, part: str) -> None:
    """One part; where its module cannot be imported, that is what was found."""
    name = PARTS[part][0]
    try:
        module = importlib.import_module(f"benchmarks.on_gpu.{name}")
    except ImportError as error:
        bench.steps.append({"part": part, "step": name, "error": f"{type(error).__name__}: {error}"})
        bench.write()
        print(f"part {part} left out: {error}", flush=True)
        return
    module.run(bench)


def conclude(bench: Bench) -> int:
    """Prints where the results are and the line that every benchmark ends with; the exit status."""
    bars = {
        f"{entry['part']} {entry['step']}": entry["figures"]["holds"]
        for entry in bench.steps
        if "holds" in entry.get("figures", {})
    }
    failed = [f"{entry['part']} {entry['step']}" for entry in bench.steps if "error" in entry]
    skipped = [f"{entry['part']} {entry['step']}" for entry in bench.steps if "skipped" in entry]
    figures = {
        "device": bench.about.get("card", bench.device.type),
        "seconds": round(time.monotonic() - bench.began, 1),
        "steps": len(bench.steps),
        "held": sum(held is True for held in bars.values()),
        "missed": [name for name, held in bars.items() if held is False],
        "failed": failed,
        "skipped": skipped,
    }
    holds = not failed and not figures["missed"] if bars else None
    print(f"{bench.out / 'gpu.md'}", flush=True)
    bar = "every step runs, and those with a bar hold it"
    print(json.dumps({"benchmark": "gpu", "figures": figures, "bar": bar, "holds": holds}))
    return 1 if holds is False else 0


if __name__ == "__main__":
    sys.exit(main())
