"""`raysense init`: a study to begin with."""

from __future__ import annotations

import argparse
from pathlib import Path

from raysense.cli.common import warn
from raysense.errors import RaysenseError
from raysense.study import Study
from raysense.study.remote import settle

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
    # Only the pipeline counts; a study cannot do without a bound.
    study = Study(
        pipeline=args.pipeline, revision=args.revision, constraints={"clip_score": {"max_drop": 0.01}}
    )
    warn([settle(study)])
    from raysense.search.template import study_for
    from raysense.store.disk import write_file

    text = study_for(study)
    if args.out is None:
        print(text, end="")
        return 0
    write_file(args.out, text.encode())
    print(args.out)
    return 0
