"""Does every benchmark still run? Each one's `--quick`, one after the other, and what its last line says.

    python -m benchmarks                # all
    python -m benchmarks verdicts plan  # some

A benchmark is a module or package here that can be run. It has to take `--quick` and end with one line of JSON:
benchmark, figures, bar, holds. Quick figures show that it runs; whether the bar holds is said, and decides nothing, as
few trials say little. The exit status is 1 if one does not end like that.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PARTS = ("benchmark", "figures", "bar", "holds")
LIMIT_SECONDS = 900


def names() -> list[str]:
    """All benchmarks."""
    here = Path(__file__)
    modules = [path for path in here.parent.glob("*.py") if path != here]
    found = [path.stem for path in modules if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]
    return sorted(found + [path.parent.name for path in here.parent.glob("*/__main__.py")])


def fault(name: str, status: int, output: str) -> str:
    """What is wrong with how a benchmark ended, or an empty text."""
    last = output.strip().rpartition("\n")[2]
    try:
        found = json.loads(last)
    except ValueError:
        return f"exit status {status}, and its last line is no JSON: {last[:200]!r}"
    if not isinstance(found, dict) or [part for part in PARTS if part not in found]:
        return f"its last line lacks one of {', '.join(PARTS)}: {last[:200]}"
    if found["benchmark"] != name:
        return f"its last line says that it is {found['benchmark']!r}"
    if status not in (0, 1) or (status == 1 and found["holds"]):
        return f"exit status {status}, but its bar holds: {found['holds']}"
    return ""


def run(name: str) -> str:
    """Runs one; what is wrong, or an empty text."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", "--quick"],
            capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT_SECONDS} s"
    wrong = fault(name, done.returncode, done.stdout)
    if wrong:
        return f"{wrong}\n{done.stderr[-3000:]}"
    holds = json.loads(done.stdout.strip().rpartition("\n")[2])["holds"]
    print(f"{name:<16} {time.monotonic() - began:6.0f} s  bar holds: {holds}", flush=True)
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all, or those named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(names())}")
    wanted = parser.parse_args(arguments).names or names()
    if unknown := sorted(set(wanted) - set(names())):
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(names())}")
    began, wrong = time.monotonic(), {name: run(name) for name in wanted}
    failed = {name: text for name, text in wrong.items() if text}
    for name, text in failed.items():
        print(f"{name}: {text}", file=sys.stderr)
    print(f"{len(wanted) - len(failed)} of {len(wanted)} ran in {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
