"""`raysense init`: a study to begin with."""

from __future__ import annotations

import argparse
from pathlib import Path

from raysense.errors import RaysenseError
from raysense.names import BUNDLED_PIPELINES

SUMMARY = "write a commented study for a pipeline"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.set_defaults(verbose=False)
    parser.add_argument("pipeline", metavar="PIPELINE", help="a folder, a hub id, or bundled")
    parser.add_argument("--revision", help="of a hub id")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write it there instead of printing it")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    if args.out is not None and args.out.exists():
        raise RaysenseError(f"`--out {args.out}` is there already; give another file")
    from raysense.hub import settle_hub
    from raysense.search.template import study_for

    local = args.pipeline in BUNDLED_PIPELINES or Path(args.pipeline).expanduser().exists()
    if not local:
        settle_hub()
    place = str(Path(args.pipeline).expanduser()) if local else args.pipeline
    text = study_for(place, args.revision)
    if args.out is None:
        print(text, end="")
        return 0
    try:
        args.out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RaysenseError(f"`--out {args.out}` cannot be written: {error.strerror}") from None
    print(args.out)
    return 0
