"""`raysense schema`: every key of a study file."""

from __future__ import annotations

import argparse

SUMMARY = "print the JSON schema of a study file, which editors use to complete and check keys"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.set_defaults(verbose=False)
    parser.add_argument("--markdown", action="store_true", help="a page with every key instead")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    from raysense.study.describe import json_schema, markdown

    print(markdown() if args.markdown else json_schema(), end="")
    return 0
