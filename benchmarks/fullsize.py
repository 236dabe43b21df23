"""A whole small study at full size: how long it takes, what every process holds, and whether it ever falls silent.

    python -m benchmarks.fullsize            # Stable Diffusion 2's U-Net and text encoder, 1.2 billion weights
    python -m benchmarks.fullsize --evaluator  # only one evaluator: builds, switches masks, ends; half a minute
    python -m benchmarks.fullsize --quick    # the same networks, narrow

Random bfloat16 weights around the bundle's VAE (a random one paints one colour, which no metric can judge). The study
runs as a user runs it, under a Ray of its own at 127.0.0.1: whole components as groups; uniform, LAMP and the solver;
64 pixels, 1 step, 8 images. Then the winner, or else its sparsest allocation, is exported. Peaks are of resident
memory, sampled twice a second, process by process. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.on_gpu.networks import sd2_pipeline
from benchmarks.parts import part
from raysense.pruning.layers import take_inventory

SECONDS_BAR = 240.0
SILENT_BAR = 10.0
DRIVER_BAR = 1.5e9
EVALUATOR_SLACK = 1.15
EXPORT_BAR = 2e9
EXPORT_SLACK = 1e9

STUDY = (
    "name=fullsize",
    "dtype=bfloat16",
    "sampling.steps=1",
    "sampling.height=64",
    "sampling.width=64",
    "sampling.batch=8",
    "rungs.probe.prompts=2",
    "rungs.probe.timesteps=1",
    "rungs.preview.prompts=8",
    "rungs.score.prompts=8",
    "rungs.validation.prompts=8",
    "search.granularity=component",
    "search.strategies=[uniform, lamp, solver]",
    "search.bisections=3",
    "search.rounds=0",
    "search.finalists=1",
    "search.beyond=0",
    "cluster.evaluators=1",
    f"cluster.cpus_per_evaluator={min(2, os.cpu_count() or 1)}",
    # Images of random weights say nothing: the study has to run, not to find.
    "constraints.clip_score.max_drop=1",
    "constraints.kid.max_rise=1000000",
)


def shaped(folder: Path, quick: bool) -> tuple[str, dict[str, int]]:
    """The pipeline, saved; and bytes of its weights, of the selected ones, and their number."""
    pipeline = sd2_pipeline(quick, side=16)
    pipeline.to(torch.bfloat16)
    inventory = take_inventory(pipeline.components, select=("text_encoder", "unet"))
    pipeline.save_pretrained(folder)
    sizes = {"weights": 2 * inventory.n_pipeline, "selected": inventory.n_selected}
    return str(folder), sizes


class Peaks(threading.Thread):
    """The largest resident memory of a process and its descendants, by what they are; a context manager."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self._process, self._over = process, threading.Event()
        self.peaks: dict[str, int] = {}

    def __enter__(self) -> Peaks:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.5):
            with contextlib.suppress(psutil.Error):
                for process in (self._process, *self._process.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        self._see(process)

    def _see(self, process: psutil.Process) -> None:
        command = " ".join(process.cmdline())
        kind = "driver" if process == self._process else part(command)
        if "raysense.evaluation.weights" in command or "raysense.results.page_with_pictures" in command:
            kind = "helper"
        self.peaks[kind] = max(self.peaks.get(kind, 0), process.memory_info().rss)


def watched(command: Sequence[str]) -> dict[str, Any]:
    """Runs a command; seconds, peaks, the longest silence and the line before it."""
    began = last = time.monotonic()
    longest, before = 0.0, ""
    line = "the start"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        with Peaks(psutil.Process(process.pid)) as seen:
            for text in process.stdout:
                now = time.monotonic()
                print(f"[{now - began:5.0f} s] {text.rstrip()[:180]}", flush=True)
                if now - last > longest:
                    longest, before = now - last, line
                last, line = now, text.strip()[:120]
    seconds = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ended with status {process.returncode}: {line}")
    gigabytes = {kind: round(size / 1e9, 2) for kind, size in sorted(seen.peaks.items())}
    return {
        "seconds": round(seconds, 1),
        "silent": round(longest, 1),
        "before": before,
        "peaks_gb": gigabytes,
    }


def measure(quick: bool) -> dict[str, Any]:
    """The study and the export."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, sizes = shaped(Path(scratch, "pipeline"), quick)
        run, exported = Path(scratch, "run"), Path(scratch, "exported")
        settings = [word for setting in (f"pipeline={folder}", *STUDY) for word in ("--set", setting)]
        raysense = [sys.executable, "-m", "raysense.cli"]
        study = watched([*raysense, "search", *settings, "--out", str(run)])
        summary = json.loads((run / "summary.json").read_text())
        chosen = summary["allocation"] or _sparsest(run)
        export = watched([*raysense, "export", str(run), "--allocation", chosen, "--out", str(exported)])
    limit = _evaluator_limit(sizes)
    return {**sizes, "evaluator_limit_gb": round(limit / 1e9, 2), "study": study, "export": export}


def one_evaluator(quick: bool) -> dict[str, Any]:
    """What one evaluator holds at its peak: twice built in a process of its own, the second time from what is kept."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, sizes = shaped(Path(scratch, "pipeline"), quick)
        settings = [f"pipeline={folder}", *STUDY]
        order = json.dumps({"settings": settings, "directory": str(Path(scratch, "run"))})
        environment = {**os.environ, "RAYSENSE_LEVELS": str(Path(scratch, "levels"))}
        lives = []
        for _ in range(2):
            command = [sys.executable, "-m", "benchmarks.fullsize", "--live", order]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            lives.append(json.loads(done.stdout.splitlines()[-1]))
    return {**sizes, "evaluator_limit_gb": round(_evaluator_limit(sizes) / 1e9, 2), "lives": lives}


def live(order: str) -> None:
    """Builds an evaluator, switches all masks three times, says seconds and peaks of its own process."""
    given = json.loads(order)
    from raysense.evaluation.evaluator import Evaluator
    from raysense.study import Study

    seen = {"imports": _peak()}
    began = time.monotonic()
    evaluator = Evaluator(Study.load(None, given["settings"]), given["directory"], 1)
    seen["loaded"] = _peak()
    for name, share in (("first masks", 0.5), ("second masks", 0.8), ("third masks", 0.3)):
        evaluator.stand_at(evaluator.grid.uniform(share))
        seen[name] = _peak()
        seen.setdefault("seconds", round(time.monotonic() - began, 1))
    print(json.dumps(seen))


def _peak() -> float:
    """The most resident memory so far, GB."""
    status = Path("/proc/self/status").read_text()  # `getrusage` hands down what the parent held
    return round(1024 * int(status.split("VmHWM:")[1].split()[0]) / 1e9, 2)


def _evaluator_limit(sizes: dict[str, int]) -> float:
    """Live weights, one dense master, a byte a selected weight, and slack."""
    return EVALUATOR_SLACK * (sizes["weights"] + 2 * sizes["selected"] + sizes["selected"])


def _sparsest(run: Path) -> str:
    from raysense.results.run import Run

    found: str = Run(str(run)).candidates().sort_values("zeros")["allocation"].iloc[-1]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs and prints the result as JSON on the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the same networks, narrow")
    parser.add_argument("--evaluator", action="store_true", help="only the memory of one evaluator")
    parser.add_argument("--live", metavar="ORDER", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    quick = args.quick
    if args.live:
        live(args.live)
        return 0
    if args.evaluator:
        figures = one_evaluator(quick)
        peak = max(one["third masks"] for one in figures["lives"])
        fits = quick or peak <= figures["evaluator_limit_gb"]
        print(json.dumps({"benchmark": "fullsize evaluator", "figures": figures, "holds": fits}))
        return 0 if fits else 1
    figures = measure(quick)
    study, export = figures["study"], figures["export"]
    bar = {
        "seconds": SECONDS_BAR,
        "silent": SILENT_BAR,
        "driver_gb": DRIVER_BAR / 1e9,
        "evaluator_gb": figures["evaluator_limit_gb"],
        "export_gb": EXPORT_BAR / 1e9,
    }
    holds = (
        study["seconds"] <= SECONDS_BAR
        and study["silent"] <= SILENT_BAR
        and study["peaks_gb"]["driver"] <= bar["driver_gb"]
        and (quick or study["peaks_gb"]["evaluators"] <= figures["evaluator_limit_gb"])
        and max(export["peaks_gb"].values()) <= bar["export_gb"]
    )
    print(json.dumps({"benchmark": "fullsize", "figures": figures, "bar": bar, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
