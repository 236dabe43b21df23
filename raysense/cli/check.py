"""`raysense check`: is everything of a study what it was written as?"""

from __future__ import annotations

import argparse

from raysense.cli.common import run_argument

SUMMARY = "verify every file of a study; mend what is broken"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    run_argument(parser, "a study, finished or not")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="make whole what can be; what is lost is measured again by --resume",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status: 1 if something is broken and was not mended."""
    from raysense.search.check import check, repair

    broken = check(args.run_folder)
    for entry in broken:
        print(
            f"{entry.file}: {entry.why} {'' if args.repair and entry.mendable else f'Repair: {entry.remedy}.'}"
        )
    left = [entry for entry in broken if not entry.mendable]
    if broken and not left and args.repair:
        for line in repair(args.run_folder, broken):
            print(f"mended: {line}")
        broken = check(args.run_folder)
    print("everything is whole" if not broken else f"{len(broken)} broken")
    return 1 if broken else 0
