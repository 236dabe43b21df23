"""What `raysense plan` foretells beside what the studies then cost: the same machine, one after the other.

    python -m benchmarks.plan            # the bundled study, a block-wise one and one that only bisects
    python -m benchmarks.plan --quick    # a small one

Every study runs as a user runs it: the command line, a Ray of its own. Run it on an idle machine: a calibration
foretells the machine as it was during the calibration. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from raysense.search.plan import forecast
from raysense.study import load

BAR = 0.25

SMALL = ["search.rounds=1", "search.offspring=4", "search.bisections=3", "rungs.score.prompts=48"]
SMALL += ["rungs.validation.prompts=48"]
STUDIES = {
    "bundled": [],
    "blocks": ["name=blocks", "search.granularity=block", "search.rounds=1"],
    "bisections": ["name=bisections", "search.strategies=[uniform, linear_uniform, lamp]", "search.rounds=0"],
}
QUICK = {"few-steps": ["name=few-steps", "search.granularity=block", "sampling.steps=6", *SMALL]}


def measure(changes: Sequence[str]) -> dict[str, Any]:
    """One study, foretold and run."""
    study = load(None, changes)
    began = time.monotonic()
    (foretold,) = forecast(
        study, evaluators=None, nfe_per_second=None, price=None, gpu_memory=None, console=Console()
    )
    calibrated = time.monotonic() - began
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        settings = [part for change in changes for part in ("--set", change)]
        command = [sys.executable, "-m", "raysense.cli", "search", *settings, "--out", str(out)]
        began = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall = time.monotonic() - began
        summary: Mapping[str, Any] = json.loads((out / "summary.json").read_text())
    return {
        "evaluators": foretold.evaluators,
        "calibration_s": round(calibrated, 1),
        "evaluations": {"plan": foretold.evaluations, "actual": summary["evaluations"]},
        "nfe": {"plan": foretold.cost, "actual": summary["nfe"]},
        "wall_s": {"plan": round(foretold.wall, 1), "actual": round(wall, 1)},
        "wall_ratio": round(foretold.wall / wall, 3),
        "nfe_ratio": round(foretold.cost / summary["nfe"], 3),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the studies and prints the result as JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one small study")
    studies = QUICK if parser.parse_args(arguments).quick else STUDIES
    figures = {name: measure(changes) for name, changes in studies.items()}
    for name, found in figures.items():
        print(json.dumps({name: found}))
    # The quick study spends a third of its time on starting; the full ones are what the promise is about.
    holds = all(abs(found["wall_ratio"] - 1) <= BAR for found in figures.values())
    print(json.dumps({"benchmark": "plan", "figures": figures, "bar": {"wall_within": BAR}, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
