"""The command line: one file a command. Nothing heavy is imported before a command that needs it runs."""

from __future__ import annotations

import argparse
import errno
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from raysense import __version__, plugins, secrets
from raysense.cli import (
    check,
    compare,
    doctor,
    export,
    init,
    layers,
    plan,
    prepare,
    query,
    report,
    resolve,
    schema,
    search,
    show,
    sweep,
    try_once,
    validate,
)
from raysense.errors import RaysenseError
from raysense.terminal import accept_any_text, complain, drop

logger = logging.getLogger(__name__)


class Command(Protocol):
    """What a command's module has."""

    SUMMARY: str

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Say what the command takes."""

    def run(self, args: argparse.Namespace) -> int:
        """Run it; heavy imports happen here."""


COMMANDS: Mapping[str, Command] = {
    "init": init,
    "search": search,
    "sweep": sweep,
    "resolve": resolve,
    "validate": validate,
    "plan": plan,
    "prepare": prepare,
    "layers": layers,
    "doctor": doctor,
    "try": try_once,
    "show": show,
    "report": report,
    "export": export,
    "compare": compare,
    "query": query,
    "check": check,
    "schema": schema,
}


def main(argv: Sequence[str] | None = None, command: str | None = None) -> int:
    """Run a command; returns the exit status.

    0 done, 1 nothing could be measured, 2 bad input, 3 nothing passed, 130 interrupted.

    Args:
        argv: Arguments; None for the process's own.
        command: Run this command, `argv` being its arguments.
    """
    try:
        try:
            return _main(argv, command)
        finally:
            sys.stdout.flush()  # not left to the interpreter's end, where nobody can answer for it
    except BrokenPipeError:
        drop(sys.stdout)
        return 1
    except OSError as error:
        logger.info("what failed:", exc_info=True)
        what = str(error)
        if error.filename is None and error.errno in _WRITING:  # what opens or renames a file names it
            drop(sys.stdout)
            what = f"the output cannot be written: {error.strerror}; send it where there is room"
        complain(what)
        return 2


_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def _main(argv: Sequence[str] | None, command: str | None) -> int:
    accept_any_text()
    sys.excepthook = secrets.show_exception
    if where := secrets.in_arguments(sys.argv[1:] if argv is None else argv):  # before anything repeats it
        complain(secrets.refused(where))
        return 2
    parser = _parser(command)
    args = parser.parse_args(argv)
    args.again = _again(sys.argv[1:] if argv is None else argv, command)
    if "study" in args:
        # A plug-in beside the study, or in the working folder, is found however raysense was started.
        plugins.make_importable([*([args.study.parent] if args.study else []), Path.cwd()])
    level = logging.INFO if args.verbose else logging.WARNING
    handler = logging.StreamHandler()
    handler.setFormatter(secrets.Masked("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    try:
        return int(args.run(args))
    except RaysenseError as error:
        complain(str(error))
        return error.status
    except KeyboardInterrupt:
        return 130


def _again(argv: Sequence[str], command: str | None) -> str:
    """The command line that goes on with a study, as a shell reads it."""
    program = ["python", "-m", f"raysense.{command}"] if command else ["raysense"]
    return shlex.join([*program, *argv, *(["--resume"] if "--resume" not in argv else [])])


def _parser(command: str | None) -> argparse.ArgumentParser:
    if command is not None:
        parser = argparse.ArgumentParser(prog=f"python -m raysense.{command}")
        _fill(parser, COMMANDS[command])
        return parser
    parser = argparse.ArgumentParser(
        prog="raysense",
        description="The sparsest layer-wise pruning of a text-to-image pipeline inside a quality budget.",
    )
    parser.add_argument("--version", action="version", version=f"raysense {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, one in COMMANDS.items():
        _fill(commands.add_parser(name, help=one.SUMMARY), one)
    return parser


def _fill(parser: argparse.ArgumentParser, command: Command) -> None:
    parser.set_defaults(run=command.run)
    command.arguments(parser)
