"""The tables' field-by-field description, written from the schema itself: ``reports/README.md``."""

from __future__ import annotations

from raysense.store.schema import SCHEMA_VERSION, TABLES

_HEAD = f"""# Reports

What is done with a study's results. A study writes into its folder (`reports/runs/<study>/`, or wherever `--out`
points):

| | |
|---|---|
| `report.html` | one self-contained page for people, written by the study itself and by `raysense report RUN` |
| `summary.json` | the answer |
| `tables/<name>/*.parquet` | every row, described below |

In this folder:

| | |
|---|---|
| `queries/*.sql` | ten questions users ask, as DuckDB queries, with [their answers](queries/README.md) |
| `analysis.ipynb` | the tables as data frames (`raysense.results.run.Run`), with output |
| `reference/`, `reference.yaml` | a small finished study that all output shown here comes from; `make reference` |
| `benchmarks/search-cpu/` | all strategies at one validated quality, with the table: `python -m benchmarks.search` |
| `benchmarks/proxies/` | 126 allocations on every rung: `python -m benchmarks.proxies` |
| `benchmarks/methods/` | methods × sparsity, rows: `python -m benchmarks.methods` |

The queries stand on the tables below and on three views, `bounds`, `verdicts` and `curves`
(`raysense/results/views.sql`). In any other DuckDB: create a view for each table, `CREATE VIEW evaluations AS FROM
read_parquet('RUN/tables/evaluations/*.parquet', hive_partitioning = false)`, then read `views.sql`. pandas, polars and
Spark read the same files: `pandas.read_parquet("RUN/tables/measures", partitioning=None)`,
`polars.read_parquet("RUN/tables/measures/*.parquet", hive_partitioning=False)`. Without these switches a folder above
called, say, `metric=clip` is read as a column in place of the stored one. `raysense compare A B` sets two studies side
by side; `raysense export RUN --out DIR` writes the winner as a pipeline that diffusers loads.

# The tables

Schema version {SCHEMA_VERSION}; the same descriptions stand in each Parquet field's metadata. Tables join on `key` (an
evaluation) and on `allocation`. This page is written by `python -m raysense.results.dictionary > reports/README.md`; a
test keeps it true.
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
