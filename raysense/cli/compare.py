"""`raysense compare`: two studies side by side."""

from __future__ import annotations

import argparse

SUMMARY = "set two studies side by side"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.set_defaults(verbose=False)
    parser.add_argument("a", metavar="A", help="a study's folder")
    parser.add_argument("b", metavar="B", help="another one")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    from rich.console import Console

    from raysense.results.compare import compare, render
    from raysense.results.run import Run

    a, b = Run(args.a), Run(args.b)
    render(compare(a, b), a, b, Console())
    return 0
