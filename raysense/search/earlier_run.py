"""`--from RUN`: an earlier run's rows for a study that differs in bounds, budget, strategies or points only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysense.allocation import Allocation, LevelGrid
from raysense.errors import RaysenseError
from raysense.execution.reused_rows import ReusedRows
from raysense.feasibility import IMAGE_RUNGS
from raysense.names import OUTLIERS
from raysense.plugins import named_by
from raysense.records import CALIBRATION, Evaluation, EvaluationRequest, TrialSpec
from raysense.store.differences import contents_differ, definitions_differ
from raysense.store.disk import Disk
from raysense.store.rows import levels_of
from raysense.store.store import Store
from raysense.strategies.swept_curves import Points, of_curves, probed, swept_points
from raysense.study import Study, parse

FREE = ("constraints", "search", "metrics.also")
"""Parts of a study that no row depends on: what is bounded and how it is searched. What is measured is looked at."""


@dataclass(frozen=True)
class EarlierRun:
    """An earlier run whose rows can answer a new study. Make one with `EarlierRun.of`.

    Attributes:
        uri: Where it is.
        study: Its definition.
    """

    uri: str
    study: Study

    @classmethod
    def of(cls, uri: str, study: Study, out: str) -> EarlierRun:
        """The run at an address, if its definition differs from the new one's in nothing that decides rows.

        Args:
            uri: The earlier run.
            study: The new study, complete.
            out: Where the new one is stored.

        Raises:
            RaysenseError: There is no run, it is the new one itself, or a difference decides rows; names each.
        """
        if os.path.realpath(uri) == os.path.realpath(out) or uri.rstrip("/") == out.rstrip("/"):
            raise RaysenseError(f"`--from {uri}` is the folder of the new study; give --out another one")
        record = Store.open(uri).study
        assert record is not None
        earlier = parse(record["definition"])
        _refuse(uri, definitions_differ(earlier.identity(), study.identity(), FREE, ("there", "here")))
        return cls(uri, earlier)

    def rows(self, study: Study, store: Store, signature: str, inputs: Mapping[str, Any]) -> ReusedRows:
        """Its rows, to be taken over when they are asked for; what its evaluators made once is there for the new ones.

        Args:
            study: The new study.
            store: The new study's store.
            signature: The new study's.
            inputs: What the new study is measured on, by content.

        Raises:
            RaysenseError: The earlier run was measured on something else; names it.
        """
        source = Store.open(self.uri)
        assert source.study is not None
        theirs = _deciding(source.study["inputs"], self.study)
        _refuse(self.uri, contents_differ(theirs, _deciding(inputs, study)))
        share_cache(Disk(self.uri), Disk(store.uri))
        all_measured = set(study.measured()) <= set(self.study.measured())
        needed = tuple(OUTLIERS[name] for name in study.search.strategies if name in OUTLIERS)

        def fits(row: Evaluation) -> bool:
            if row.rung == CALIBRATION and needed:
                return all(any(name.startswith(one) for name in row.measures) for one in needed)
            return all_measured or row.rung not in IMAGE_RUNGS

        return ReusedRows(source, store, signature, fits, frozenset(study.measured()))

    def swept(self, study: Study, grid: LevelGrid) -> Points:
        """What a sweep in it has probed, see `swept_in`."""
        return swept_in(Store.open(self.uri), study, grid)

    def take_sweep(self, study: Study, store: Store, rows: ReusedRows) -> None:
        """Take over its sweep's points that begin curves, unless the new store has points: it has the curves then.

        Args:
            study: The new study.
            store: Its store.
            rows: What `rows` gave.
        """
        if store.table("points").num_rows:
            return
        source = Store.open(self.uri)
        levels, taken = levels_of(source.table("allocations")), []
        for point, found in of_curves(source.table("points").to_pylist(), source.known(), study, "probe"):
            request = EvaluationRequest(Allocation(levels.get(found.allocation, {})), found.rung)
            own = rows.take(TrialSpec(found.trial, found.stage, (request,)), request)
            if own is not None:
                taken.append({**point, "key": own.key})
        if taken:
            store.write_table("points", pa.Table.from_pylist(taken))


def swept_in(store: Store, study: Study, grid: LevelGrid) -> Points:
    """What a sweep has probed in a store whose rows fit the study: group -> zeros -> probe error."""
    if not (points := store.table("points").to_pylist()):
        return {}
    return swept_points(
        points, store.known(), levels_of(store.table("allocations")), grid, study, "probe", probed
    )


def share_cache(source: Disk, into: Disk) -> None:
    """Dense images, references, statistics and solved weights, all named by content: linked, or else copied."""
    there = {name for name, _ in into.names("cache")}
    for name, _ in source.names("cache"):
        if name in there:
            continue
        file = f"cache/{name}"
        if source.local and into.local:
            target = Path(into.path(file))
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # another file system
                os.link(source.path(file), target)
                continue
        content = source.read(file)
        if content is not None:
            into.write(file, content)


def _deciding(inputs: Mapping[str, Any], study: Study) -> dict[str, Any]:
    """Contents without the code of strategies and allocation rules: no row depends on who proposed it."""
    free = set(named_by(study)) & set(study.search.strategies) - set(study.prune.methods)
    own = inputs.get("plugins", {})
    return {**inputs, "plugins": {name: own[name] for name in own if name not in free}}


def _refuse(uri: str, differing: list[str]) -> None:
    if differing:
        shown = "\n".join(differing)
        raise RaysenseError(
            f"`--from {uri}`: its rows do not fit this study, which may differ in constraints, search, sweep, "
            f"budget, cluster and track only. What differs:\n{shown}\nSet it back, or leave --from out."
        )
