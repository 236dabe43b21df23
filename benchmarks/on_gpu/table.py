"""What `benchmarks.gpu` found, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def markdown(found: Mapping[str, Any]) -> str:
    """A page: what was measured on, then a table a step; what failed says why."""
    about = found["about"]
    lines = [f"# {about.get('card', 'CPU')}", ""]
    lines += [", ".join(f"{name} {value}" for name, value in about.items() if name != "card") + ".", ""]
    for entry in found["steps"]:
        took = f", {entry['seconds']} s" if "seconds" in entry else ""
        lines += [f"## {entry['part']}: {entry['step']}{took}", ""]
        if "figures" not in entry:
            lines += [entry.get("error") or entry.get("skipped", ""), ""]
            lines += [f"    {place}" for place in entry.get("traceback", ())] + [""]
            continue
        lines += [*_figures(entry["figures"]), ""]
    return "\n".join(lines)


def _figures(figures: Mapping[str, Any]) -> Iterator[str]:
    plain = {name: value for name, value in figures.items() if not _is_rows(value)}
    if plain:
        yield from _table([{"figure": name, "value": value} for name, value in plain.items()])
    for name, value in figures.items():
        if _is_rows(value):
            yield from ("", f"{name}:", "", *_table(value))


def _is_rows(value: object) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(_cell(row.get(name, '')) for name in columns)} |"


def _cell(value: object) -> str:
    return (f"{value:.4g}" if isinstance(value, float) else str(value)).replace("|", "\\|")
