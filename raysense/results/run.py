"""A study's tables as data frames, and the few frames that every report is drawn from.

::

    from raysense.results.run import Run

    run = Run("reports/runs/quickstart")
    run.candidates()                                  # every allocation that was judged by images
    run.sensitivity()                                 # damage of each group at each of its levels
    run.sql("SELECT stage, sum(nfe) FROM evaluations GROUP BY stage")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

import duckdb
import pandas as pd

from raysense.allocation import Allocation, LevelGrid
from raysense.errors import RaysenseError
from raysense.metrics.builtin.probe_error import PROBE_ERROR
from raysense.records import Bound
from raysense.results.pareto import front
from raysense.store.disk import Disk, read_sealed
from raysense.store.schema import TABLES
from raysense.store.store import Store
from raysense.study import ImageRung, Study, parse

TOLERABLE = 0.05
"""Probe error beyond which a group alone counts as over its cliff: a twentieth of the denoiser's guided output."""


DENOMINATORS = ("selected", "prunable", "components", "pipeline")


@dataclass(frozen=True)
class Winner:
    """The sparsest allocation that passed on held-out prompts.

    Attributes:
        allocation: Content hash.
        strategy: What found it.
        zeros: Counted zeros among the selected weights.
        sparsity: Zeros over all parameters of the studied components.
        sparsities: Denominator -> zeros over it: ``selected``, ``prunable``, ``components``, ``pipeline``.
        metrics: Measure -> ``value``, ``ci_low``, ``ci_high``, ``n`` and ``extractor``, on held-out prompts.
    """

    allocation: str
    strategy: str
    zeros: int
    sparsity: float
    sparsities: Mapping[str, float]
    metrics: Mapping[str, Mapping[str, Any]]


class Run:
    """What a study has stored so far, read-only: finished or not.

    Args:
        uri: Its folder, or ``s3://`` address.

    Raises:
        RaysenseError: There is no study, or what is there is damaged or foreign.
    """

    def __init__(self, uri: str) -> None:
        self.uri = str(uri)
        self.disk = Disk(self.uri)
        self.store = Store.open(self.uri)
        record = self.store.study
        assert record is not None
        self.record = record
        self._tables: dict[str, pd.DataFrame] = {}

    @cached_property
    def study(self) -> Study:
        """The study's definition."""
        try:
            return parse(self.record["definition"])
        except RaysenseError as error:
            raise RaysenseError(
                f"`{self.uri}`: this raysense cannot read the study's definition ({error}); use the raysense that "
                f"wrote it ({self.record.get('raysense_version', 'unknown')})"
            ) from None

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """``summary.json``, or None while the study is unfinished."""
        remedy = "Delete it and run the study again with --resume; it is written anew."
        summary = read_sealed(self.disk, "summary.json", remedy)
        if summary is not None and summary.get("signature") != self.record["signature"]:
            path = self.disk.path("summary.json")
            raise RaysenseError(f"`{path}` belongs to another study than `study.json` beside it. {remedy}")
        return summary

    @property
    def finished(self) -> bool:
        """Whether the study came to its end, with a winner or without."""
        return self.summary is not None

    @property
    def winner(self) -> Winner | None:
        """The sparsest allocation that passed on held-out prompts; None if none did, or none yet."""
        summary = self.summary
        if summary is None or not summary["feasible"]:
            return None
        shares = {name: float(summary[f"sparsity_{name}"]) for name in DENOMINATORS}
        return Winner(
            summary["allocation"],
            summary["strategy"],
            summary["zeros"],
            shares["components"],
            shares,
            summary["metrics"],
        )

    @property
    def bounds(self) -> list[Bound]:
        """The quality budget."""
        return self.study.constraints.bounds()

    def table(self, name: str) -> pd.DataFrame:
        """One of the tables `studies`, `layers`, `allocations`, `evaluations`, `measures`, `samples`."""
        if name not in self._tables:
            self._tables[name] = self.store.table(name).to_pandas()
        return self._tables[name]

    def show(self, **tables: pd.DataFrame) -> None:
        """Let these stand for stored tables: those that are written when a sweep has ended."""
        self._tables.update(tables)

    def sql(self, query: str) -> pd.DataFrame:
        """What a DuckDB query over the tables (and the views `bounds`, `verdicts` and `curves`) gives.

        It reaches neither files nor the network.

        Raises:
            RaysenseError: DuckDB refuses the query.
        """
        return _asked(self.store, query)

    # --- frames ---------------------------------------------------------------------------------------

    @cached_property
    def grid(self) -> LevelGrid:
        """What a level of each layer stands for."""
        layers, prune = self.table("layers"), self.study.prune
        sizes = list(zip(layers["layer"], map(int, layers["weights"]), strict=True))
        if prune.pattern:
            removed = (layers["step"] * layers["levels"]).astype(int)
            return LevelGrid.fixed(sizes, dict(zip(layers["layer"], removed, strict=True)))
        if prune.updates:
            return LevelGrid(sizes, prune.max_layer_sparsity, prune.calibration.levels)
        return LevelGrid(sizes, prune.max_layer_sparsity)

    def allocation(self, key: str) -> Allocation:
        """The allocation with this content hash, or the one whose hash begins so; empty for the dense pipeline.

        Raises:
            RaysenseError: The study has none; names those that begin alike, or the winner.
        """
        if key == Allocation().key:
            return Allocation()
        rows = self.table("allocations")
        begin_so = sorted({name for name in rows["allocation"] if name.startswith(key)})
        of_key = rows[rows["allocation"] == (begin_so[0] if len(begin_so) == 1 and len(key) >= 4 else key)]
        if of_key.empty:
            known = sorted(set(rows["allocation"]))
            near = [name for name in known if name.startswith(key[:4])][:3] or known[:3]
            winner = (self.summary or {}).get("allocation")
            also = f"; the winner is {winner}" if winner else ""
            raise RaysenseError(
                f"`--allocation {key}`: the study `{self.uri}` has no such allocation; it has {len(known)}"
                + (f", such as {', '.join(near)}" if near else "")
                + also
            )
        return Allocation(dict(zip(of_key["layer"], map(int, of_key["level"]), strict=True)))

    def candidates(self) -> pd.DataFrame:
        """One row per allocation judged by images, dense included, least sparse first.

        Columns: those of `evaluations`, the four ``sparsity_*``, and for every measure ``<metric>``,
        ``<metric>_ci_low``, ``<metric>_ci_high``, ``<metric>_n``.
        """
        evaluations = self.table("evaluations")
        rungs = [name for name, rung in self.study.rungs if isinstance(rung, ImageRung)]
        rows = evaluations[evaluations["rung"].isin(rungs) & (evaluations["failed"] == "")]
        measures = self.table("measures")
        wide = measures[measures["key"].isin(rows["key"])].pivot(
            index="key", columns="metric", values=["value", "ci_low", "ci_high", "n"]
        )
        names: list[Any] = wide.columns.to_flat_index().tolist()  # pairs (part, metric)
        wide.columns = pd.Index([m if part == "value" else f"{m}_{part}" for part, m in names])
        # Aligned by hand: pandas cannot merge empty columns of Arrow texts.
        found = pd.concat(
            [rows.reset_index(drop=True), wide.reindex(rows["key"]).reset_index(drop=True)], axis=1
        )
        for name in DENOMINATORS:
            found[f"sparsity_{name}"] = found["zeros"] / found[f"n_{name}"]
        found["feasible"] = found["feasible"].eq(True).astype(bool)  # null in a store without a budget
        return found.sort_values(["zeros", "rung"]).reset_index(drop=True)

    def layers(self) -> pd.DataFrame:
        """The table `layers` in the order of first calls, from the input to the output; what never runs comes last.

        Without that order (`is_in_call_order` tells) the layers stand as the pipeline lists them.

        Columns: those of the table, and ``position`` in this order.
        """
        return self._layers.copy()

    @cached_property
    def _layers(self) -> pd.DataFrame:
        layers = self.table("layers")
        if self.is_in_call_order:
            layers = layers.sort_values("order", na_position="last", kind="stable", ignore_index=True)
        return layers.reset_index(names="position")

    @property
    def is_in_call_order(self) -> bool:
        """Whether it is known in which order the layers run."""
        layers = self.table("layers")
        return "order" in layers and bool(layers["order"].notna().any())

    def sensitivity(self) -> pd.DataFrame:
        """The view `curves` with the groups' places and sizes: one row per group, level and metric, in network order.

        Columns: ``group``, ``position`` (of its first layer), ``component``, ``layers``, ``weights``, ``zeros``,
        ``sparsity`` (of the group's own weights), ``metric``, ``value``, ``ci_low``, ``ci_high``, ``n``, ``key``.
        """
        return self._sensitivity.copy()

    @cached_property
    def _sensitivity(self) -> pd.DataFrame:
        layers = self.layers()
        own = set(self.grid.addresses)
        layers["governed"] = [self.grid.weights(a) if a in own else 0 for a in layers["layer"]]
        groups = layers.groupby("group").agg(
            position=("position", "min"), layers=("layer", "size"), weights=("governed", "sum")
        )
        # The view knows a group's own layers only; the grid also knows which layers elsewhere move with them.
        curves = self.sql("SELECT * EXCLUDE (weights, sparsity) FROM curves")
        found = curves.rename(columns={"damage": "value"}).join(groups, on="group")
        found["sparsity"] = found["zeros"] / found["weights"]
        return found.sort_values(["position", "zeros", "metric"]).reset_index(drop=True)

    def damage_metric(self) -> str | None:
        """The measure that sensitivity is told by: the probe error, or else what most of its rows carry."""
        counts = self.sensitivity()["metric"].value_counts()
        if counts.empty:
            return None
        return PROBE_ERROR if PROBE_ERROR in counts.index else str(counts.index[0])

    def cliffs(self, tolerable: float = TOLERABLE) -> pd.DataFrame:
        """One row per group, most sensitive first: between which measured sparsities its damage becomes too much.

        Ordered by the share of the group's weights in the middle between the two; what never has too much damage comes
        last, whatever share the grid let it reach, the least worst damage at the very end.

        Columns: ``group``, ``component``, ``layers``, ``weights``, ``safe`` (the largest measured sparsity below every
        one whose interval is not wholly at most `tolerable`), ``over`` (the smallest measured sparsity that is
        not; missing if none), ``worst`` (the largest damage).
        """
        curves = self.sensitivity()
        return cliffs_of(curves[curves["metric"] == self.damage_metric()], tolerable)

    def layer_sparsity(self, allocation: Allocation) -> pd.DataFrame:
        """One row per layer in network order with the ``zeros`` and the ``sparsity`` that an allocation gives it."""
        layers = self.layers()
        zeros = [self.grid.removed(layer, allocation[self.grid.leader(layer)]) for layer in layers["layer"]]
        layers["zeros"] = zeros
        layers["sparsity"] = layers["zeros"] / layers["weights"]
        return layers

    def costs(self) -> pd.DataFrame:
        """One row per stage, in order.

        Columns: ``stage``, ``evaluations``, ``taken`` (from an earlier run, at no cost), ``images``, ``nfe``,
        ``seconds``, ``failed``, ``collapsed``.
        """
        return _costs(self.table("evaluations"))

    def front(self, metric: str, rung: str = "score") -> pd.DataFrame:
        """The candidates of a rung that no other beats in both sparsity and `metric`, least sparse first."""
        rows = self.candidates()
        rows = rows[(rows["rung"] == rung) & rows["zeros"].notna()]
        if metric not in rows or rows[metric].dropna().empty:
            return rows.iloc[:0]
        judged = rows.dropna(subset=[metric])
        sign = -1 if self.study.higher_is_better(metric) else 1
        best = front(list(zip(judged["zeros"], sign * judged[metric], strict=True)))
        return judged.iloc[best].reset_index(drop=True)


def _asked(store: Store, query: str) -> pd.DataFrame:
    """See `Run.sql`: tables, nothing else. No files, no network, no extensions, no variables of this process."""
    with duckdb.connect(config={"python_enable_replacements": False}) as connection:
        for name in TABLES:
            connection.register(name, store.table(name))
        try:
            connection.execute(views())
            connection.execute("SET enable_external_access = false; SET lock_configuration = true")
            return connection.execute(query).df()
        except duckdb.Error as error:
            raise RaysenseError(f"query: {error}") from None


def views() -> str:
    """SQL of the views that the queries share."""
    return (files("raysense.results") / "views.sql").read_text(encoding="utf-8")


def cliffs_of(curves: pd.DataFrame, tolerable: float) -> pd.DataFrame:
    """See `Run.cliffs`; of curves of one metric."""
    found = []
    for group, curve in curves.groupby("group", sort=False):
        beyond = curve[curve["ci_high"] > tolerable]["sparsity"]
        over = float(beyond.min()) if len(beyond) else None
        below = curve[curve["sparsity"] < over]["sparsity"] if over is not None else curve["sparsity"]
        head = curve.iloc[0]
        found.append(
            {
                "group": group,
                "component": head["component"],
                "layers": int(head["layers"]),
                "weights": int(head["weights"]),
                "safe": float(below.max()) if len(below) else 0.0,
                "over": over,
                "worst": float(curve["value"].max()),
            }
        )
    columns = ["group", "component", "layers", "weights", "safe", "over", "worst"]
    frame = pd.DataFrame(found, columns=columns)
    frame["over"] = frame["over"].astype(float)
    # To whole percents: what is beyond them is where the grid has its steps.
    frame["edge"] = ((frame["safe"] + frame["over"]) / 2).round(2)
    ordered = frame.sort_values(["edge", "worst", "group"], ascending=[True, False, True], na_position="last")
    return ordered.drop(columns="edge").reset_index(drop=True)


def _costs(evaluations: pd.DataFrame) -> pd.DataFrame:
    """What stages took; nothing is charged for rows that an earlier run measured."""
    rows = evaluations.assign(taken=evaluations["taken_from"] != "")
    rows.loc[rows["taken"], ["images", "nfe", "seconds"]] = 0
    grouped = rows.groupby("stage").agg(
        evaluations=("key", "size"),
        taken=("taken", "sum"),
        images=("images", "sum"),
        nfe=("nfe", "sum"),
        seconds=("seconds", "sum"),
        failed=("failed", lambda texts: int((texts != "").sum())),
        collapsed=("collapsed", lambda texts: int((texts != "").sum())),
    )
    order = ["baseline", "sensitivity", "search", "validation"]
    known = [stage for stage in order if stage in grouped.index]
    others = [stage for stage in grouped.index if stage not in order]
    return grouped.loc[[*known, *others]].reset_index()
