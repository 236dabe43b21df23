"""The command line. Nothing heavy is imported before a command that needs it runs."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from raysense import __version__, plugins
from raysense.errors import RaysenseError
from raysense.hub import settle
from raysense.study import Study, examine, listed, load
from raysense.terminal import accept_any_text

RUNS = Path("reports/runs")

logger = logging.getLogger(__name__)

_SEARCH_EPILOG = """\
examples:
  python -m raysense.search
      the quickstart study: the bundled pipeline, a local Ray, a few minutes on two CPU cores
  python -m raysense.search my_study.yaml --set constraints.clip_score.max_drop=0.02
      your own study with one value changed
  python -m raysense.search my_study.yaml --resume
      go on after Ctrl-C, a crash or a lost machine; what is stored is not measured again
  python -m raysense.search my_study.yaml --address auto
      on the Ray cluster this machine belongs to

A study is one YAML file; `raysense validate` checks one and prints it with every default.

exit status: 0 a winner passed on held-out prompts; 3 the study is complete, but nothing passed; 2 something is to be
mended first; 130 interrupted
"""

NOTHING_PASSED = 3
"""Exit status of a complete study without a winner."""

_PLAN_EPILOG = """\
examples:
  raysense plan
      the quickstart study, calibrated on this machine
  raysense plan search/sd2_layers.yaml --evaluators 8 16 64 --price 0.75 --gpu-memory 24
      on a machine with the GPU in question (on a cluster: ray job submit --entrypoint-num-gpus 1 -- raysense plan …)
  raysense plan search/sd2_layers.yaml --speed 20 --evaluators 8
      anywhere; only the pipeline's configuration is read, no weights
"""


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
        _drop(sys.stdout)
        return 1
    except OSError as error:
        logger.info("what failed:", exc_info=True)
        what = str(error)
        if error.filename is None and error.errno in _WRITING:  # what opens or renames a file names it
            _drop(sys.stdout)
            what = f"the output cannot be written: {error.strerror}; send it where there is room"
        _complain(what)
        return 2


_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def _complain(text: str) -> None:
    try:
        print(f"raysense: error: {' '.join(text.splitlines())}", file=sys.stderr, flush=True)
    except OSError:  # nobody can be told; the exit status says it
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Nobody takes this output any more, so that what is still buffered raises nothing at the interpreter's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _main(argv: Sequence[str] | None, command: str | None) -> int:
    accept_any_text()
    parser = _parser(command)
    args = parser.parse_args(argv)
    args.again = _again(sys.argv[1:] if argv is None else argv, command)
    if "study" in args:
        # A plug-in beside the study, or in the working folder, is found however raysense was started.
        plugins.make_importable([*([args.study.parent] if args.study else []), Path.cwd()])
    level = logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        return int(args.run(args))
    except RaysenseError as error:
        _complain(str(error))
        return error.status
    except KeyboardInterrupt:
        return 130


def _again(argv: Sequence[str], command: str | None) -> str:
    """The command line that goes on with a study, as a shell reads it."""
    program = ["python", "-m", f"raysense.{command}"] if command else ["raysense"]
    return shlex.join([*program, *argv, *(["--resume"] if "--resume" not in argv else [])])


def _parser(command: str | None) -> argparse.ArgumentParser:
    if command == "search":
        parser = argparse.ArgumentParser(prog="python -m raysense.search")
        _search_arguments(parser)
        return parser
    parser = argparse.ArgumentParser(
        prog="raysense",
        description="The sparsest layer-wise pruning of a text-to-image pipeline inside a quality budget.",
    )
    parser.add_argument("--version", action="version", version=f"raysense {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _search_arguments(commands.add_parser("search", help="run a study: the main job"))
    _resolve_arguments(
        commands.add_parser("resolve", help="answer a finished study for another budget, unmeasured")
    )
    check = commands.add_parser("validate", help="check a study and print it with every default")
    check.set_defaults(run=_validate)
    _study_arguments(check)
    _plan_arguments(commands.add_parser("plan", help="say what a study will cost before anything is spent"))
    ready = commands.add_parser(
        "prepare", help="fetch and check all that a study needs, once, so that workers start warm and offline"
    )
    ready.set_defaults(run=_prepare)
    _study_arguments(ready)
    ready.add_argument(
        "--out", metavar="DIR", help=f"the study's folder; default: {RUNS}/<name of the study>"
    )
    layers = commands.add_parser("layers", help="print a pipeline's prunable layers as a tree")
    layers.set_defaults(run=_layers)
    _study_arguments(layers)
    layers.add_argument(
        "--pipeline", help="a pipeline (`bundled`, a folder or a hub id) instead of the study's"
    )
    attempt = commands.add_parser(
        "try",
        help="prune to one sparsity and measure it, here and without Ray",
        description="Prune a study's layers to one sparsity by a closed form and measure that, here and without Ray.",
    )
    attempt.set_defaults(run=_try)
    _study_arguments(attempt)
    attempt.add_argument(
        "--sparsity",
        type=float,
        required=True,
        metavar="SHARE",
        help="zeros over the selected weights, 0 to 1",
    )
    attempt.add_argument("--strategy", default="uniform", help="who shares it out (default: %(default)s)")
    attempt.add_argument(
        "--rung", default="probe", choices=("layer", "probe", "preview", "score"), help="default: %(default)s"
    )
    attempt.add_argument(
        "--cache", metavar="DIR", help="keep dense references and statistics for the next time"
    )
    show = commands.add_parser("show", help="paint dense and pruned images of a finished study side by side")
    show.set_defaults(run=_show, verbose=False)
    show.add_argument(
        "run_folder", type=Path, metavar="RUN", help=f"a finished study, e.g. {RUNS}/quickstart"
    )
    show.add_argument("--out", type=Path, metavar="PNG", help="default: RUN/comparison.png")
    show.add_argument("--images", type=int, default=12, help="images a row (default: %(default)s)")
    _reading_commands(commands)
    return parser


def _resolve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Answer a study anew for other bounds, fewer components or a lower cap, from its stored evaluations: no image "
        "is made, so the answer is a prediction, and says so."
    )
    parser.set_defaults(run=_resolve, verbose=False)
    parser.add_argument(
        "run_folder", metavar="RUN", help=f"a study with measured curves, e.g. {RUNS}/quickstart"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="constraints.…, prune.components or prune.cap, e.g. constraints.clip_score.max_drop=0.005",
    )
    parser.add_argument("--json", action="store_true", help="print everything, the levels included, as JSON")


def _resolve(args: argparse.Namespace) -> int:
    from raysense.search.resolve import in_words, resolve

    answer = resolve(args.run_folder, args.set)
    print(json.dumps(answer, indent=2) if args.json else in_words(answer, args.run_folder))
    return 0


def _reading_commands(commands: Any) -> None:
    """The commands that read a study's folder."""
    report = commands.add_parser("report", help="write one self-contained HTML page about a study")
    report.set_defaults(run=_report, verbose=False)
    report.add_argument("run_folder", metavar="RUN", help=f"a study, finished or not, e.g. {RUNS}/quickstart")
    report.add_argument(
        "--out", type=Path, metavar="HTML", help="default: RUN/report.html, written anew each time"
    )
    report.add_argument(
        "--images", type=int, default=6, help="prompts in the pictures (default: %(default)s)"
    )
    report.add_argument("--force", action="store_true", help="replace a file that is there")
    export = commands.add_parser("export", help="write a pruned pipeline that diffusers loads unchanged")
    export.set_defaults(run=_export, verbose=False)
    export.add_argument("run_folder", metavar="RUN", help=f"a study, e.g. {RUNS}/quickstart")
    export.add_argument("--allocation", metavar="ID", help="a stored allocation; default: the winner")
    export.add_argument("--out", type=Path, metavar="DIR", required=True, help="the folder to write")
    export.add_argument(
        "--compressed",
        action="store_true",
        help="masks and values; load with raysense.export.load_compressed",
    )
    export.add_argument("--force", action="store_true", help="replace an older export")
    compare = commands.add_parser("compare", help="set two studies side by side")
    compare.set_defaults(run=_compare, verbose=False)
    compare.add_argument("a", metavar="A", help="a study's folder")
    compare.add_argument("b", metavar="B", help="another one")
    query = commands.add_parser("query", help="run a DuckDB query over a study's tables")
    query.set_defaults(run=_query, verbose=False)
    query.add_argument("run_folder", metavar="RUN", help=f"a study, e.g. {RUNS}/quickstart")
    query.add_argument(
        "sql", metavar="SQL", help="a .sql file such as reports/queries/pareto.sql, or a query"
    )
    query.add_argument("--csv", action="store_true", help="print CSV instead of a table")


def _study_arguments(parser: argparse.ArgumentParser) -> None:
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


def _search_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Find the sparsest layer-wise pruning inside the study's quality budget, measured by Ray Tune trials."
    )
    parser.epilog = _SEARCH_EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(run=_search)
    _study_arguments(parser)
    parser.add_argument(
        "--out", metavar="DIR", help=f"folder or s3:// address; default: {RUNS}/<name of the study>"
    )
    parser.add_argument("--address", help="a running Ray cluster, e.g. auto; default: Ray on this machine")
    parser.add_argument("--resume", action="store_true", help="go on with the study that DIR holds, if any")


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Evaluations, images, evaluator-hours, wall time, memory and price of a study, by the main job's own "
        "arithmetic. Without --speed a short calibration runs on this machine: some ten batches of images."
    )
    parser.epilog = _PLAN_EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(run=_plan)
    _study_arguments(parser)
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
        help="sample-forwards a second of one evaluator, instead of a calibration",
    )
    parser.add_argument("--price", type=float, metavar="P", help="of an evaluator-hour, in any currency")
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GIB", help="say whether the study fits such a GPU"
    )


def _plan(args: argparse.Namespace) -> int:
    study = _ready(args, needs_weights=args.speed is None)  # speed is measured on the pipeline itself
    for flag, value in (("--speed", args.speed), ("--price", args.price), ("--gpu-memory", args.gpu_memory)):
        if value is not None and value <= 0:
            raise RaysenseError(f"`{flag}` must be > 0, but got {value:g}")
    if any(count < 1 for count in args.evaluators or ()):
        raise RaysenseError(f"`--evaluators` must be ≥ 1, but got {min(args.evaluators)}")
    from rich.console import Console

    from raysense.search.plan import forecast

    forecast(
        study,
        evaluators=args.evaluators,
        forwards_per_second=args.speed,
        price=args.price,
        gpu_memory=args.gpu_memory,
        console=Console(),
    )
    return 0


def _search(args: argparse.Namespace) -> int:
    study = _ready(args)
    out = args.out or str(RUNS / study.name)
    from rich.console import Console

    from raysense.execution.interrupt import stop_signals
    from raysense.terminal import say

    console, stopping = Console(), f"Stopped; nothing stored is lost. Go on with: {args.again}"
    with stop_signals(stopping):
        try:
            from raysense.search.job import refuse_to_overwrite, run_study

            refuse_to_overwrite(out, args.resume)
            summary = run_study(study, out, address=args.address, resume=args.resume, console=console)
        except KeyboardInterrupt as stopped:
            with contextlib.suppress(OSError):  # the terminal may be what went away
                say(console, str(stopped) or stopping, whole=True)
            raise
    return 0 if summary["feasible"] else NOTHING_PASSED


def _validate(args: argparse.Namespace) -> int:
    study, doubts = _checked(args)
    _warn(doubts)
    print(study.to_yaml(), end="")
    return 0


def _prepare(args: argparse.Namespace) -> int:
    study, warnings = _checked(args)
    _warn([settle(study)])
    from raysense.search.prepare import prepare, without_token

    try:
        for found in prepare(study, args.out or str(RUNS / study.name)):
            print(f"{found.what:10} {found.text}", flush=True)
            if found.advice:
                warnings.append(f"{found.what}: {found.advice}")
    except RaysenseError as error:
        raise RaysenseError(without_token(str(error))) from None
    _warn(warnings)
    print(
        "Ready. Workers that share this hub cache need no network: HF_HUB_OFFLINE=1 keeps them from asking."
    )
    return 0


def _layers(args: argparse.Namespace) -> int:
    overrides = [*args.set, *([f"pipeline={args.pipeline}"] if args.pipeline else [])]
    study = load(args.study, overrides)
    _warn([settle(study)])
    from raysense.evaluation.evaluator import inventory_and_grid
    from raysense.pipelines.load import load_pipeline
    from raysense.pruning.layers import render_tree

    pipeline = load_pipeline(study.pipeline, revision=study.revision)
    print(render_tree(inventory_and_grid(study, pipeline.components)[0]))
    return 0


def _try(args: argparse.Namespace) -> int:
    if not 0 <= args.sparsity <= 1:
        raise RaysenseError(f"`--sparsity` must be between 0 and 1, but got {args.sparsity:g}")
    study = _ready(args)
    from raysense.search.try_once import try_once

    with tempfile.TemporaryDirectory(prefix="raysense-try-") as folder:
        print(try_once(study, args.strategy, args.sparsity, args.rung, args.cache or folder))
    return 0


def _show(args: argparse.Namespace) -> int:
    from raysense.results.pictures import paint_comparison

    out = args.out or args.run_folder / "comparison.png"
    paint_comparison(args.run_folder, out, args.images)
    print(out)
    return 0


def _report(args: argparse.Namespace) -> int:
    from raysense.results.page import NAME, build, refuse_to_replace, replaceable, write_page

    if args.out is None:
        own = Path(args.run_folder) / NAME
        refuse_to_replace(own, args.force or replaceable(own))
        print(write_page(args.run_folder, images=args.images))
        return 0
    from raysense.results.run import Run
    from raysense.store.disk import write_file

    refuse_to_replace(args.out, args.force)
    page = build(Run(args.run_folder), images=args.images)
    write_file(args.out, page.encode())
    print(args.out)
    return 0


def _export(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from raysense.export.write import export
    from raysense.terminal import say

    done = export(
        args.run_folder, args.out, allocation=args.allocation, compressed=args.compressed, force=args.force
    )
    table = Table("weight files", "bytes", "of dense")
    for form, size in done.sizes.items():
        table.add_row(form, f"{size:,}", f"{size / done.sizes['dense']:.1%}")
    console = Console()
    console.print(table)
    say(console, f"Allocation {done.allocation}: {done.zeros:,} zeros counted in what was written.")
    print(done.out)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from rich.console import Console

    from raysense.results.compare import compare, render
    from raysense.results.run import Run

    a, b = Run(args.a), Run(args.b)
    render(compare(a, b), a, b, Console())
    return 0


def _query(args: argparse.Namespace) -> int:
    from raysense.results.run import Run

    text = args.sql
    if text.endswith(".sql"):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RaysenseError(f"cannot read the query `{args.sql}`: {error}") from None
    found = Run(args.run_folder).sql(text)
    print(
        found.to_csv(index=False) if args.csv else found.to_string(index=False), end="" if args.csv else "\n"
    )
    return 0


def _checked(args: argparse.Namespace, *, needs_weights: bool = True) -> tuple[Study, list[str]]:
    """The study that a command is given, and what is doubtful about it.

    Raises:
        RaysenseError: All that is wrong with it and can be known without loading anything.
    """
    from raysense.study.checks import look

    found = examine(args.study, args.set)
    mistakes, doubts = look(found, needs_weights=needs_weights)
    if found.study is None or mistakes:
        raise RaysenseError(listed(mistakes))
    return found.study, doubts


def _ready(args: argparse.Namespace, *, needs_weights: bool = True) -> Study:
    """The study that a command is given, to be worked on now: doubts are said, and so is a hub that is out of reach."""
    study, doubts = _checked(args, needs_weights=needs_weights)
    _warn([*doubts, settle(study)])
    return study


def _warn(doubts: Sequence[str]) -> None:
    for doubt in filter(None, doubts):
        print(f"raysense: warning: {doubt}", file=sys.stderr)
