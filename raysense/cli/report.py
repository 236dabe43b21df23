"""`raysense report`: write a page about a study."""

from __future__ import annotations

import argparse
from pathlib import Path

from raysense.cli.common import run_argument

SUMMARY = "write one self-contained HTML page about a study"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    run_argument(parser, "a study, finished or not, or a sweep")
    parser.add_argument("--sweep", action="store_true", help="of its sweep: RUN/sweep.html")
    parser.add_argument(
        "--out", type=Path, metavar="HTML", help="default: RUN/report.html, written anew each time"
    )
    parser.add_argument(
        "--images", type=int, default=6, help="prompts in the pictures (default: %(default)s)"
    )
    parser.add_argument(
        "--run-code",
        action="store_true",
        help="paint pictures even if that runs code that the study names: plug-ins, pickled weights",
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is there")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    from raysense.results import page as of_search
    from raysense.results import sweep_page as of_sweep
    from raysense.results.page import refuse_to_replace, replaceable

    name = of_sweep.NAME if args.sweep else of_search.NAME
    build = of_sweep.build if args.sweep else of_search.build
    write = of_sweep.write_sweep_page if args.sweep else of_search.write_page
    if args.out is None:
        own = Path(args.run_folder) / name
        refuse_to_replace(own, args.force or replaceable(own))
        print(write(args.run_folder, images=args.images, code=args.run_code))
        return 0
    from raysense.results.run import Run
    from raysense.store.disk import write_file

    refuse_to_replace(args.out, args.force)
    page = build(Run(args.run_folder), images=args.images, code=args.run_code)
    write_file(args.out, page.encode())
    print(args.out)
    return 0
