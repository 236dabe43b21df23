"""`raysense layers`: a pipeline's prunable layers."""

from __future__ import annotations

import argparse

from raysense.cli.common import study_arguments, warn
from raysense.study import load
from raysense.study.remote import settle

SUMMARY = "print a pipeline's prunable layers as a tree"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    study_arguments(parser)
    parser.add_argument(
        "--pipeline", help="a pipeline (`bundled`, a folder or a hub id) instead of the study's"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    overrides = [*args.set, *([f"pipeline={args.pipeline}"] if args.pipeline else [])]
    study = load(args.study, overrides)
    warn([settle(study)])
    from raysense.evaluation.identity import inventory_and_grid
    from raysense.pipelines.load import empty_components, refuse_foreign
    from raysense.pipelines.origin import Origin
    from raysense.pruning.layers import render_tree

    # Shapes are all that is printed: the configuration says them, and nothing large is read or downloaded.
    empty = empty_components(Origin.of(study))
    refuse_foreign(study.pipeline, {name: type(module) for name, module in empty.items()})
    print(render_tree(inventory_and_grid(study, empty)[0]))
    return 0
