"""Compacted evaluations, found by key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from raysense.records import Evaluation
from raysense.store import rows
from raysense.store.schema import TABLES


class Compacted:
    """The compacted evaluations of one manifest, found by key, made into objects only when asked for.

    Sorted keys rather than dictionaries: a million rows are indexed in a fraction of a second.
    """

    def __init__(self, generation: int, evaluations: pa.Table, measures: pa.Table) -> None:
        self.generation = generation
        self._evaluations = evaluations
        self._measures = measures
        keys = _plain(evaluations["key"])
        self._order = np.argsort(keys, kind="stable")  # of equal keys the first row counts
        self._sorted = keys[self._order]
        # A compaction writes the measures of one evaluation side by side: runs of one key, one after another.
        of = _plain(measures["key"])
        starts = np.flatnonzero(np.append(True, of[1:] != of[:-1])) if len(of) else np.empty(0, np.int64)
        ends = np.append(starts[1:], len(of))
        at = np.minimum(np.searchsorted(self._sorted, of[starts]), max(len(keys) - 1, 0))
        if len(keys) and len(starts):
            known = self._sorted[at] == of[starts]
            at, starts, ends = at[known], starts[known], ends[known]
        self._spans = np.zeros((len(keys), 2), np.int64)  # by sorted position: rows of `measures`
        if len(keys):
            self._spans[at[::-1], 0], self._spans[at[::-1], 1] = starts[::-1], ends[::-1]

    @staticmethod
    def nothing() -> Compacted:
        """Of a store without rows."""
        return Compacted(0, TABLES["evaluations"].empty_table(), TABLES["measures"].empty_table())

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._position(key) is not None

    def __len__(self) -> int:
        return len(self._sorted)

    def keys(self) -> Iterator[str]:
        """All keys."""
        return (key.decode() for key in self._sorted.tolist())

    def get(self, key: str) -> Evaluation | None:
        """The evaluation with this key, or None."""
        position = self._position(key)
        if position is None:
            return None
        start, end = self._spans[position].tolist()
        row = self._evaluations.slice(int(self._order[position]), 1).to_pylist()[0]
        return rows.from_row(row, self._measures.slice(start, end - start).to_pylist())

    def all(self) -> list[Evaluation]:
        """In the order they were taken in."""
        evaluations, measures = self._evaluations.to_pylist(), self._measures.to_pylist()
        spans = self._spans[np.argsort(self._order)].tolist()
        return [
            rows.from_row(row, measures[start:end])
            for row, (start, end) in zip(evaluations, spans, strict=True)
        ]

    def _position(self, key: str) -> int | None:
        """Of the key among the sorted ones."""
        wanted = key.encode()
        position = int(np.searchsorted(self._sorted, np.array(wanted)))
        found = position < len(self._sorted) and self._sorted[position] == wanted
        return position if found else None


def _plain(column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.bytes_]]:
    """A column of keys as one array of bytes."""
    if not len(column):
        return np.empty(0, "S16")
    keys: np.ndarray[Any, Any] = column.combine_chunks().cast(pa.binary()).to_numpy(zero_copy_only=False)
    return keys.astype(np.bytes_)


class StoredEvaluations(Mapping[str, Evaluation]):
    """Compacted evaluations and objects as one mapping."""

    def __init__(self, compacted: Compacted, objects: dict[str, Evaluation]) -> None:
        self._compacted = compacted
        self._objects = objects

    def __getitem__(self, key: str) -> Evaluation:
        evaluation = self._objects.get(key) or self._compacted.get(key)
        if evaluation is None:
            raise KeyError(key)
        return evaluation

    def __contains__(self, key: object) -> bool:
        return key in self._objects or key in self._compacted

    def __iter__(self) -> Iterator[str]:
        yield from self._compacted.keys()
        yield from self._objects

    def __len__(self) -> int:
        return len(self._compacted) + len(self._objects)
