"""`raysense export`: a pruned pipeline on disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from raysense.cli.common import run_argument

SUMMARY = "write a pruned pipeline that diffusers loads unchanged"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    run_argument(parser, "a study")
    parser.add_argument("--allocation", metavar="ID", help="a stored allocation; default: the winner")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="the folder to write")
    parser.add_argument(
        "--compressed",
        action="store_true",
        help="masks and values; load with raysense.export.load_compressed",
    )
    parser.add_argument("--force", action="store_true", help="replace an older export")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    from rich.console import Console
    from rich.table import Table

    from raysense.execution.interrupt import stop_signals
    from raysense.export.write import export
    from raysense.terminal import patient, say

    with stop_signals("Stopped; nothing was written."), patient(Console(stderr=True), "Exporting …"):
        done = export(
            args.run_folder,
            args.out,
            allocation=args.allocation,
            compressed=args.compressed,
            force=args.force,
        )
    table = Table("weight files", "bytes", "of dense")
    for form, size in done.sizes.items():
        table.add_row(form, f"{size:,}", f"{size / done.sizes['dense']:.1%}")
    console = Console()
    console.print(table)
    say(console, f"Allocation {done.allocation}: {done.zeros:,} zeros counted in what was written.")
    print(done.out)
    return 0
