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


def answers(run: Run, queries: Path, rows: int = ROWS) -> str:
    """Every query below a folder with its question and the first rows of its answer.

    Args:
        run: The study that is asked.
        queries: Folder of ``*.sql`` files, each of which begins with its question as a comment.
        rows: How many rows of an answer are shown.
    """
    parts = [
        f"# Ten questions, and what the study `{run.study.name}` answers\n\n"
        "Written by "
        "`python -m raysense.results.query_answers reports/reference reports/queries > reports/queries/README.md`; "
        "a test keeps it true. On another study: `raysense query RUN reports/queries/NAME.sql`.\n"
    ]
    for path in sorted(queries.glob("*.sql")):
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
    print(answers(Run(sys.argv[1]), Path(sys.argv[2])), end="")
