"""`raysense show`: dense and pruned images."""

from __future__ import annotations

import argparse
from pathlib import Path

from raysense.cli.common import RUNS

SUMMARY = "paint dense and pruned images of a finished study side by side"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.set_defaults(verbose=False)
    parser.add_argument(
        "run_folder", type=Path, metavar="RUN", help=f"a finished study, e.g. {RUNS}/quickstart"
    )
    parser.add_argument("--out", type=Path, metavar="PNG", help="default: RUN/comparison.png")
    parser.add_argument("--images", type=int, default=12, help="images a row (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    from raysense.results.pictures import paint_comparison

    out = args.out or args.run_folder / "comparison.png"
    paint_comparison(args.run_folder, out, args.images)
    print(out)
    return 0
