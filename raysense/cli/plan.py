"""`raysense plan`: what a study will cost."""

from __future__ import annotations

import argparse
import re

from raysense.cli.common import RUNS, ready, study_arguments
from raysense.errors import RaysenseError

SUMMARY = "say what a study will cost before anything is spent"

EPILOG = """\
examples:
  raysense plan
      the quickstart study, calibrated on this machine
  raysense plan search/sd2_layers.yaml --evaluators 8 16 64 --price 0.75 --gpu-memory 24GB
      on a machine with the GPU in question (on a cluster: ray job submit --entrypoint-num-gpus 1 -- raysense plan …)
  raysense plan search/sd2_layers.yaml --speed 20 --evaluators 8
      anywhere; only the pipeline's configuration is read, no weights
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Evaluations, images, evaluator-hours, wall time, memory and price of a study, by the main job's own "
        "arithmetic. Without --speed a short calibration runs on this machine: some ten batches of images."
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
        "--speed",
        type=float,
        metavar="F",
        help="NFE a second of one evaluator, instead of a calibration",
    )
    parser.add_argument("--sweep", action="store_true", help="of the study's sweep, not of its search")
    parser.add_argument("--price", type=float, metavar="P", help="of an evaluator-hour, in any currency")
    parser.add_argument(
        "--gpu-memory",
        metavar="SIZE",
        help="say what fits such a GPU, such as 24GB, for each `offload`, and the largest batch",
    )
    parser.add_argument(
        "--spread",
        action="append",
        default=[],
        metavar="MEASURE=SD",
        help="standard deviation that a prompt adds to a bounded measure, e.g. kid_rise=0.02 (from an earlier run: an "
        "interval's half-width × √prompts / 2): says how many prompts its bound needs; may be repeated",
    )


def bytes_of(text: str) -> int:
    """Bytes that ``24``, ``24GiB`` (both 24 * 2^30) or ``24GB`` (24 * 10^9) mean.

    Raises:
        RaysenseError: It means none.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(gib|gb|g|)\s*", text.casefold())
    size = float(match[1]) * (10**9 if match and match[2] == "gb" else 2**30) if match else 0.0
    if size <= 0:
        raise RaysenseError(f"`--gpu-memory` must be a size above 0, such as 24GB or 24GiB, but got {text!r}")
    return int(size)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    study = ready(args, needs_weights=args.speed is None)  # speed is measured on the pipeline itself
    for flag, value in (("--speed", args.speed), ("--price", args.price)):
        if value is not None and value <= 0:
            raise RaysenseError(f"`{flag}` must be > 0, but got {value:g}")
    if any(count < 1 for count in args.evaluators or ()):
        raise RaysenseError(f"`--evaluators` must be ≥ 1, but got {min(args.evaluators)}")
    gpu_memory = None if args.gpu_memory is None else bytes_of(args.gpu_memory)
    from rich.console import Console

    from raysense.strategies.noise import given_spreads
    from raysense.terminal import say

    spreads = given_spreads(study, args.spread)
    from raysense.search.looks import in_words, with_looks
    from raysense.search.plan import forecast

    out = RUNS / study.name
    counted, looks = with_looks(study, str(out))
    console = Console()
    forecast(
        counted,
        evaluators=args.evaluators,
        nfe_per_second=args.speed,
        price=args.price,
        gpu_memory=gpu_memory,
        spreads=spreads,
        store=str(out) if out.is_dir() else None,
        console=console,
        sweep=args.sweep,
    )
    for line in in_words(counted, looks):
        say(console, line)
    return 0
