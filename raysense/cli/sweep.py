"""`raysense sweep`: measure the points that a study lists."""

from __future__ import annotations

import argparse

from raysense.cli.common import RUNS, measuring_arguments, ready, resumable, study_arguments

SUMMARY = "measure how quality answers to sparsity: components, blocks, layers, methods"

EPILOG = """\
examples:
  raysense sweep search/sweep.yaml
      components and blocks of the bundled pipeline, with their cliffs, some minutes on two CPU cores
  raysense plan search/sd2_paper.yaml --sweep --speed 20 --evaluators 8
      what a sweep will cost
  raysense sweep my_study.yaml --resume
      go on after Ctrl-C, or measure points that were added since; what is stored is not measured again
  raysense sweep my_study.yaml --from reports/runs/my-study --out reports/runs/my-study-points
      in a folder of its own; what an earlier run measured is taken over
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
    measuring_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    study = ready(args)
    out = args.out or str(RUNS / study.name)
    from rich.console import Console

    from raysense.terminal import patient

    console = Console()
    with resumable(console, args.again):
        with patient(console, "Loading …"):
            from raysense.search.sweep import run_sweep

        run_sweep(
            study,
            out,
            address=args.address,
            resume=args.resume,
            console=console,
            source=args.source,
            page=not args.no_page,
        )
    return 0
