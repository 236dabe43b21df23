"""`raysense prepare`: fetch what a study needs."""

from __future__ import annotations

import argparse

from raysense.cli.common import RUNS, checked, named_code, study_arguments, warn
from raysense.study.remote import settle

SUMMARY = "fetch and check all that a study needs, once, so that workers start warm and offline"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    study_arguments(parser)
    parser.add_argument(
        "--out", metavar="DIR", help=f"the study's folder; default: {RUNS}/<name of the study>"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    study, warnings = checked(args)
    warn([settle(study), named_code(study)])
    from raysense.search.prepare import prepare

    for found in prepare(study, args.out or str(RUNS / study.name)):
        print(f"{found.what:10} {found.text}", flush=True)
        if found.advice:
            warnings.append(f"{found.what}: {found.advice}")
    warn(warnings)
    print(
        "Ready. Workers that share this hub cache need no network: HF_HUB_OFFLINE=1 keeps them from asking."
    )
    return 0
