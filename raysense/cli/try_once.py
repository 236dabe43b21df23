"""`raysense try`: one pruning, measured here."""

from __future__ import annotations

import argparse
import tempfile

from raysense.cli.common import ready, study_arguments
from raysense.errors import RaysenseError

SUMMARY = "prune to one sparsity and measure it, here and without Ray"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Prune a study's layers to one sparsity by an allocation rule and measure that, here and without Ray."
    )
    study_arguments(parser)
    parser.add_argument(
        "--sparsity",
        type=float,
        required=True,
        metavar="SHARE",
        help="zeros over the selected weights, 0 to 1",
    )
    parser.add_argument("--strategy", default="uniform", help="who shares it out (default: %(default)s)")
    parser.add_argument(
        "--rung", default="probe", choices=("layer", "probe", "preview", "score"), help="default: %(default)s"
    )
    parser.add_argument(
        "--cache", metavar="DIR", help="keep dense references and statistics for the next time"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    if not 0 <= args.sparsity <= 1:
        raise RaysenseError(f"`--sparsity` must be between 0 and 1, but got {args.sparsity:g}")
    study = ready(args)
    from raysense.search.try_once import try_once

    with tempfile.TemporaryDirectory(prefix="raysense-try-") as folder:
        print(try_once(study, args.strategy, args.sparsity, args.rung, args.cache or folder))
    return 0
