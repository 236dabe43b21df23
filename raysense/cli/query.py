"""`raysense query`: a query over a study's tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from raysense.cli.common import run_argument
from raysense.errors import RaysenseError

SUMMARY = "run a DuckDB query over a study's tables"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    run_argument(parser, "a study")
    parser.add_argument(
        "sql", metavar="SQL", help="a .sql file such as reports/queries/pareto.sql, or a query"
    )
    parser.add_argument("--csv", action="store_true", help="print CSV instead of a table")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
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
