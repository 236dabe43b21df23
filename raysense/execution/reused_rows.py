"""Rows of an earlier study that answer a new one's trials: taken over when they are asked, instead of measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysense.metrics.builtin import SPECS
from raysense.metrics.spec import base_of
from raysense.records import Evaluation, EvaluationRequest, TrialSpec
from raysense.store.rows import without_samples
from raysense.store.store import Store


class ReusedRows:
    """What an earlier study measured, looked up by request.

    Args:
        source: Its store.
        into: The new study's store, where what is taken over is put.
        signature: The new study's.
        fits: Whether a row has all that the new study measures on its rung.
        wanted: Metrics of raysense's own that the new study measures; what the earlier one measured beside them stays
            there. None for all.
    """

    def __init__(
        self,
        source: Store,
        into: Store,
        signature: str,
        fits: Callable[[Evaluation], bool],
        wanted: frozenset[str],
    ) -> None:
        self._source, self._into, self._signature, self._fits = source, into, signature, fits
        self._wanted = wanted
        assert source.study is not None  # `Store.open` says so
        self._known: Mapping[str, Evaluation] = source.known()
        self._theirs: str = source.study["signature"]
        self._place = source.uri
        self._samples: dict[str, pa.Table] | None = None

    def has(self, request: EvaluationRequest) -> bool:
        """Whether the earlier study measured this, all of it that is wanted now."""
        found = self._known.get(request.key(self._theirs))
        if found is None or found.failed or not self._fits(found):
            return False
        # A shard's images lie in the earlier study's cache; they are of use only as the evaluation that they led to.
        return request.shard is None or self.has(replace(request, rung=request.shard.rung, shard=None))

    def take(self, spec: TrialSpec, request: EvaluationRequest) -> Evaluation | None:
        """The request's evaluation as the new study's own row, stored; None if the earlier study has none."""
        if not self.has(request):
            return None
        found = self._known[request.key(self._theirs)]
        taken = replace(
            found,
            key=request.key(self._signature),
            trial=spec.name,
            stage=spec.stage,
            measures={name: measure for name, measure in found.measures.items() if self._is_wanted(name)},
            samples=self._samples_of(found.key),
            taken_from=found.taken_from or self._place,
        )
        self._into.put(taken, request.allocation)
        return without_samples(taken)

    def _is_wanted(self, measure: str) -> bool:
        spec = SPECS.get(base_of(measure))
        return spec is None or spec.kind == "probe" or spec.name in self._wanted

    def _samples_of(self, key: str) -> tuple[dict[str, Any], ...]:
        """Per-image values, an image each."""
        if self._samples is None:
            self._samples = _by_key(self._source.table("samples"))
        images: dict[tuple[str, int], dict[str, Any]] = {}
        for row in self._samples[key].to_pylist() if key in self._samples else []:
            image = {name: row[name] for name in ("prompt_id", "prompt", "seed")}
            values = images.setdefault((row["prompt_id"], row["seed"]), image)
            if self._is_wanted(row["metric"]):
                values[row["metric"]] = row["value"]
        return tuple(images.values())


def _by_key(samples: pa.Table) -> dict[str, pa.Table]:
    """An evaluation's key -> its rows, in their order; the table is looked through once."""
    ordered, found, start = samples.sort_by("key"), dict[str, pa.Table](), 0
    for run in pc.value_counts(ordered["key"]).to_pylist():
        found[run["values"]] = ordered.slice(start, run["counts"])
        start += run["counts"]
    return found
