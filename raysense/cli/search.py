"""`raysense search`: the main job."""

from __future__ import annotations

import argparse

from raysense.cli.common import RUNS, measuring_arguments, ready, resumable, study_arguments

SUMMARY = "run a study: the main job"

EPILOG = """\
examples:
  python -m raysense.search
      the quickstart study: the bundled pipeline, a local Ray, a few minutes on two CPU cores
  python -m raysense.search my_study.yaml --set constraints.clip_score.max_drop=0.02
      your own study with one value changed
  python -m raysense.search my_study.yaml --resume
      go on after Ctrl-C, a crash or a lost machine; what is stored is not measured again
  python -m raysense.search my_study.yaml --set constraints.clip_score.max_drop=0.01 --from reports/runs/my-study \
          --out reports/runs/my-study-tighter
      another bound, budget or strategy: the rows of an earlier run are taken over, only what is missing is measured
  python -m raysense.search my_study.yaml --address auto
      on the Ray cluster this machine belongs to

A study is one YAML file; `raysense validate` checks one and prints it with every default.

exit status: 0 a winner passed on held-out prompts; 3 the study is complete, but nothing passed; 2 something is to be
mended first; 130 interrupted
"""

NOTHING_PASSED = 3
"""Exit status of a complete study without a winner."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Find the sparsest layer-wise pruning inside the study's quality budget, measured by Ray Tune trials."
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
            from raysense.search.job import run_study

        summary = run_study(
            study,
            out,
            address=args.address,
            resume=args.resume,
            console=console,
            source=args.source,
            page=not args.no_page,
        )
    return 0 if summary["feasible"] else NOTHING_PASSED
