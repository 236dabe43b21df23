"""What every query gives on a study, as one page of Markdown.

``python -m raysense.results.query_answers reports/reference reports/queries > reports/queries/README.md`` writes the
page that stands beside the queries.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from raysense.results.run import Run

ROWS = 8
"""Rows of each answer that are shown."""

_NUMBERS = {3: "Three", 10: "Ten"}


def answers(
    run: Run, queries: Path, rows: int = ROWS, place: str = "reference", folder: str = "queries"
) -> str:
    """Every query below a folder with its question and the first rows of its answer.

    Args:
        run: The study that is asked.
        queries: Folder of ``*.sql`` files, each of which begins with its question as a comment.
        rows: How many rows of an answer are shown.
        place: Of the study, below ``reports``.
        folder: Of the queries, below ``reports``.
    """
    paths = sorted(queries.glob("*.sql"))
    parts = [
        f"# {_NUMBERS.get(len(paths), len(paths))} questions, and what the study `{run.study.name}` answers\n\n"
        "Written by "
        f"`python -m raysense.results.query_answers reports/{place} reports/{folder} > reports/{folder}/README.md`; "
        f"a test keeps it true. On another study: `raysense query RUN reports/{folder}/NAME.sql`.\n"
    ]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        comment = [line.removeprefix("--").strip() for line in lines[: _first_code(lines)]]
        parts.append(
            f"## {path.name}\n\n{' '.join(comment)}\n\n```text\n{_table(run.sql(text), rows)}\n```\n"
        )
    return "\n".join(parts)


def _first_code(lines: list[str]) -> int:
    return next(number for number, line in enumerate(lines) if not line.startswith("--"))


def _table(frame: pd.DataFrame, rows: int) -> str:
    shown = frame.head(rows).to_string(index=False, line_width=None, na_rep="")
    left = len(frame) - rows
    lines = [line.rstrip() for line in shown.splitlines()]
    return "\n".join([*lines, f"… {left} more rows"] if left > 0 else lines)


if __name__ == "__main__":
    places = [str(Path(name)).removeprefix("reports/") for name in sys.argv[1:3]]
    print(answers(Run(sys.argv[1]), Path(sys.argv[2]), ROWS, *places), end="")
