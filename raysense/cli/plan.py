"""`raysense plan`: what a study will cost."""

from __future__ import annotations

import argparse

from raysense.cli.common import ready, study_arguments
from raysense.errors import RaysenseError

SUMMARY = "say what a study will cost before anything is spent"

EPILOG = """\
examples:
  raysense plan
      the quickstart study, calibrated on this machine
  raysense plan search/sd2_layers.yaml --evaluators 8 16 64 --price 0.75 --gpu-memory 24
      on a machine with the GPU in question (on a cluster: ray job submit --entrypoint-num-gpus 1 -- raysense plan …)
  raysense plan search/sd2_layers.yaml --nfe-per-second 20 --evaluators 8
      anywhere; only the pipeline's configuration is read, no weights
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Evaluations, images, evaluator-hours, wall time, memory and price of a study, by the main job's own "
        "arithmetic. Without --nfe-per-second a short calibration runs on this machine: some ten batches of images."
    )
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    study_arguments(parser)
    parser.add_argument(
        "--evaluators",
        type=int,
        nargs="+",
        metavar="N",
        help="how many (GPUs, if they have one each); default: the study's",
    )
    parser.add_argument(
        "--nfe-per-second",
        type=float,
        metavar="F",
        help="NFE a second of one evaluator, instead of a calibration",
    )
    parser.add_argument("--price", type=float, metavar="P", help="of an evaluator-hour, in any currency")
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GIB", help="say whether the study fits such a GPU"
    )
    parser.add_argument(
        "--spread",
        action="append",
        default=[],
        metavar="MEASURE=SD",
        help="standard deviation that a prompt adds to a bounded measure, e.g. kid_rise=0.02 (from an earlier run: an "
        "interval's half-width × √prompts / 2): says how many prompts its bound needs; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    study = ready(args, needs_weights=args.nfe_per_second is None)  # speed is measured on the pipeline itself
    for flag, value in (
        ("--nfe-per-second", args.nfe_per_second),
        ("--price", args.price),
        ("--gpu-memory", args.gpu_memory),
    ):
        if value is not None and value <= 0:
            raise RaysenseError(f"`{flag}` must be > 0, but got {value:g}")
    if any(count < 1 for count in args.evaluators or ()):
        raise RaysenseError(f"`--evaluators` must be ≥ 1, but got {min(args.evaluators)}")
    from rich.console import Console

    from raysense.strategies.noise import given_spreads

    spreads = given_spreads(study, args.spread)
    from raysense.search.plan import forecast

    forecast(
        study,
        evaluators=args.evaluators,
        nfe_per_second=args.nfe_per_second,
        price=args.price,
        gpu_memory=args.gpu_memory,
        spreads=spreads,
        console=Console(),
    )
    return 0
