"""`raysense validate`: check a study."""

from __future__ import annotations

import argparse

from raysense.cli.common import checked, study_arguments, warn

SUMMARY = "check a study and print it with every default"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    study_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    study, doubts = checked(args)
    from raysense.strategies.noise import foretold_short

    warn([*doubts, *foretold_short(study)])
    print(study.to_yaml(), end="")
    return 0
