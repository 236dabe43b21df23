"""The tables' field-by-field description, written from the schema itself: ``docs/reference/tables.md``."""

from __future__ import annotations

from raysense.store.schema import SCHEMA_VERSION, TABLES

_HEAD = f"""# The tables

Schema version {SCHEMA_VERSION}; the same descriptions stand in each Parquet field's metadata. Tables join on `key` (an
evaluation) and on `allocation`. This page is written by `python -m raysense.results.dictionary`; a test keeps it true.
[Reading results](../guides/reading-results.md) says how the tables are read.
"""


def dictionary() -> str:
    """The page, as Markdown."""
    parts = [_HEAD]
    for name, schema in TABLES.items():
        about = schema.metadata[b"description"].decode()
        rows = [f"| `{f.name}` | {f.type} | {f.metadata[b'description'].decode()} |" for f in schema]
        parts += [f"## {name}\n", f"{about}\n", "| field | type | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(parts)


if __name__ == "__main__":
    print(dictionary(), end="")
