"""What several commands share: the study that they are given, its folder, warnings."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from raysense import plugins
from raysense.study import Study, examine
from raysense.study.remote import settle

if TYPE_CHECKING:
    from rich.console import Console

RUNS = Path("reports/runs")
"""Where a study's folder is made unless `--out` says otherwise."""


def study_arguments(parser: argparse.ArgumentParser) -> None:
    """The study, `--set` and `--verbose`."""
    parser.add_argument(
        "study", nargs="?", type=Path, metavar="STUDY.yaml", help="default: the quickstart study"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value, e.g. rungs.score.prompts=64",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens")


def measuring_arguments(parser: argparse.ArgumentParser) -> None:
    """Where what is measured is stored, where it is measured, what is written, and whether to go on."""
    parser.add_argument(
        "--out", metavar="DIR", help=f"folder or s3:// address; default: {RUNS}/<name of the study>"
    )
    parser.add_argument("--address", help="a running Ray cluster, e.g. auto; default: Ray on this machine")
    parser.add_argument("--no-page", action="store_true", help="write tables and summary only")
    parser.add_argument("--resume", action="store_true", help="go on with the study that DIR holds, if any")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="RUN",
        help="an earlier run of a study that differs in points of a sweep, bounds, budget or strategies only: what it "
        "measured is not measured again",
    )


@contextmanager
def resumable(console: Console, again: str) -> Iterator[None]:
    """While this is open, Ctrl-C and signals end the command with the line that goes on.

    Args:
        console: Where it is said.
        again: The command that goes on.
    """
    from raysense.execution.interrupt import stop_signals
    from raysense.terminal import say

    stopping = f"Stopped; nothing stored is lost. Go on with: {again}"
    with stop_signals(stopping):
        try:
            yield
        except KeyboardInterrupt as stopped:
            with suppress(OSError):  # the terminal may be what went away
                say(console, str(stopped) or stopping, whole=True)
            raise


def run_argument(parser: argparse.ArgumentParser, text: str) -> None:
    """The folder of a study that was run."""
    parser.set_defaults(verbose=False)
    parser.add_argument("run_folder", metavar="RUN", help=f"{text}, e.g. {RUNS}/quickstart")


def checked(args: argparse.Namespace, *, needs_weights: bool = True) -> tuple[Study, list[str]]:
    """The study that a command is given, and what is doubtful about it.

    Raises:
        RaysenseError: All that is wrong with it and can be known without loading anything.
    """
    from raysense.study import checks

    return checks.checked(examine(args.study, args.set), needs_weights=needs_weights)


def ready(args: argparse.Namespace, *, needs_weights: bool = True) -> Study:
    """The study that a command is given, to be worked on now.

    Doubts are said, and so are a hub that is out of reach and whose code will run.
    """
    study, doubts = checked(args, needs_weights=needs_weights)
    warn([*doubts, settle(study), named_code(study)])
    return study


def named_code(study: Study) -> str:
    """What is said before a study's own code runs, or an empty text."""
    code = plugins.code_of(study)
    return f"this runs code that the study names: {', '.join(code)}" if code else ""


def warn(doubts: Sequence[str]) -> None:
    """Say what is doubtful, a line each; empty texts say nothing."""
    for doubt in filter(None, doubts):
        print(f"raysense: warning: {doubt}", file=sys.stderr)
