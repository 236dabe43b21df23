"""`raysense sweep`: measure the points that a study lists."""

from __future__ import annotations

import argparse
import contextlib

from raysense.cli.common import RUNS, ready, study_arguments

SUMMARY = "measure how quality answers to sparsity: components, blocks, layers, methods"

EPILOG = """\
examples:
  raysense sweep search/sweep.yaml
      components and blocks of the bundled pipeline, with their cliffs, some minutes on two CPU cores
  raysense plan search/sd2_paper.yaml --sweep --speed 20 --evaluators 8
      what a sweep will cost
  raysense sweep my_study.yaml --resume
      go on after Ctrl-C, or measure points that were added since; what is stored is not measured again
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Measure the points of the study's section `sweep`, and where each curve has its cliff; no search. The same "
        "evaluators, metrics and tables as a search, which goes on from what a sweep has stored."
    )
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    study_arguments(parser)
    parser.add_argument(
        "--out", metavar="DIR", help=f"folder or s3:// address; default: {RUNS}/<name of the study>"
    )
    parser.add_argument("--address", help="a running Ray cluster, e.g. auto; default: Ray on this machine")
    parser.add_argument("--no-page", action="store_true", help="write tables and summary only")
    parser.add_argument("--resume", action="store_true", help="go on with the study that DIR holds, if any")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    study = ready(args)
    out = args.out or str(RUNS / study.name)
    from rich.console import Console

    from raysense.execution.interrupt import stop_signals
    from raysense.terminal import patient, say

    console, stopping = Console(), f"Stopped; nothing stored is lost. Go on with: {args.again}"
    with stop_signals(stopping):
        try:
            with patient(console, "Loading …"):
                from raysense.search.sweep import run_sweep

            run_sweep(
                study,
                out,
                address=args.address,
                resume=args.resume,
                console=console,
                page=not args.no_page,
            )
        except KeyboardInterrupt as stopped:
            with contextlib.suppress(OSError):  # the terminal may be what went away
                say(console, str(stopped) or stopping, whole=True)
            raise
    return 0
