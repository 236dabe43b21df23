"""`raysense resolve`: a stored study answered for other bounds."""

from __future__ import annotations

import argparse
import json

from raysense.cli.common import run_argument

SUMMARY = "answer a finished study for another budget, unmeasured"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Answer a study anew for other bounds, fewer components or less per layer, from its stored evaluations: no "
        "image is made, so the answer is a prediction, and says so."
    )
    run_argument(parser, "a study with measured curves")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="constraints.…, prune.components or prune.max_layer_sparsity, e.g. constraints.clip_score.max_drop=0.005",
    )
    parser.add_argument("--json", action="store_true", help="print everything, the levels included, as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    from raysense.search.resolve import in_words, resolve

    answer = resolve(args.run_folder, args.set)
    print(json.dumps(answer, indent=2) if args.json else in_words(answer, args.run_folder))
    return 0
