"""How long a store of a million rows takes to open, to look up a key in, and to read one table from.

    python -m benchmarks.store            # a million evaluations, about two minutes and 3 GB of memory
    python -m benchmarks.store --quick    # fifty thousand

The rows are those that compactions write; only their making is short-cut, a file of many rows instead of a file a
thousand evaluations. Opening is what a resumed study does first: it must know every key that is stored, and
answer from any of them. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raysense.store import TABLES, Store

METRICS = ("clip_score_drop", "frechet_rise", "kid_rise")
BAR_OPEN_S, BAR_LOOKUP_MS, BAR_TABLE_S = 10.0, 5.0, 5.0


def filled(uri: str, evaluations: int) -> list[str]:
    """Makes a store of so many evaluations; their keys."""
    rng = np.random.default_rng(0)
    keys = [f"{number:016x}" for number in rng.permutation(evaluations).tolist()]
    store = Store.open(uri, create=True)
    store.begin({"name": "million"}, signature="store")
    constant: dict[str, Any] = dict.fromkeys(TABLES["evaluations"].names, "")
    constant |= {
        "stage": "search",
        "rung": "score",
        "allocation": "0" * 16,
        "ray_trial": "abc",
        "evaluator": "host-1",
    }
    numbers = {f.name: f.type for f in TABLES["evaluations"] if not pa.types.is_string(f.type)}
    columns = [
        pa.array(keys)
        if name == "key"
        else pa.array(rng.integers(0, 10**6, evaluations)).cast(numbers[name])
        if name in numbers
        else pa.repeat(pa.scalar(constant[name]), evaluations)
        for name in TABLES["evaluations"].names
    ]
    measures = len(METRICS) * evaluations
    values = rng.normal(size=measures)
    of = {
        "key": pa.array(np.repeat(np.array(keys, dtype=object), len(METRICS))),
        "metric": pa.array(list(METRICS) * evaluations),
        "value": pa.array(values),
        "ci_low": pa.array(values - 1),
        "ci_high": pa.array(values + 1),
        "n": pa.repeat(pa.scalar(96, pa.int64()), measures),
        "extractor": pa.repeat(pa.scalar("efficientnet-lite0"), measures),
    }
    tables = {
        "evaluations": pa.table(columns, schema=TABLES["evaluations"]),
        "measures": pa.table([of[name] for name in TABLES["measures"].names], schema=TABLES["measures"]),
    }
    with store.lock() as lock:
        files = {name: [store._files.write(name, table)] for name, table in tables.items()}
        store._files.switch(files, store._files.manifest(), lock)
    return keys


def measure(evaluations: int) -> dict[str, Any]:
    """Makes, opens, looks up; the figures."""
    with tempfile.TemporaryDirectory() as folder:
        keys = filled(folder, evaluations)
        began = time.perf_counter()
        known = Store.open(folder).known()
        assert len(known) == evaluations
        opened = time.perf_counter()
        for key in keys[:1000]:
            assert len(known[key].measures) == len(METRICS)
        looked_up = time.perf_counter()
        assert Store.open(folder).table("evaluations").num_rows == evaluations
        read = time.perf_counter()
    return {
        "evaluations": evaluations,
        "measures": evaluations * len(METRICS),
        "open_s": round(opened - began, 2),
        "lookup_ms": round(looked_up - opened, 3),  # a thousand of them
        "table_s": round(read - looked_up, 2),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs and prints the result as JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="fifty thousand evaluations")
    found = measure(50_000 if parser.parse_args(arguments).quick else 1_000_000)
    bar = {"open_s": BAR_OPEN_S, "lookup_ms": BAR_LOOKUP_MS, "table_s": BAR_TABLE_S}
    holds = all(found[name] <= limit for name, limit in bar.items())
    print(json.dumps({"benchmark": "store", "figures": found, "bar": bar, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
