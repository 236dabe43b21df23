"""The rung that learns instead of measuring: statistics, solved weights, the selection between methods."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raysense.allocation import Allocation
from raysense.evaluation.cache import TensorMemory
from raysense.evaluation.identity import Identity
from raysense.evaluation.live_pipeline import LivePipeline
from raysense.evaluation.method_selection import (
    as_measures,
    best_methods,
    compare_methods,
    components_of,
    selection_key,
)
from raysense.evaluation.rungs.base import Found
from raysense.evaluation.rungs.probe import ProbeRung
from raysense.metrics.builtin.probe_error import PROBE_ERROR
from raysense.names import OUTLIERS
from raysense.records import EvaluationRequest, Measure


class CalibrationRung:
    """Has the study's methods learn; where several compete, the probe decides between them.

    Args:
        live: The pipeline.
        probe: Measures the competing methods.
        keys: The study's.
        memory: Keeps how the methods fared.
    """

    def __init__(self, live: LivePipeline, probe: ProbeRung, keys: Identity, memory: TensorMemory) -> None:
        self._live, self._probe, self._keys, self._memory = live, probe, keys, memory

    def measure(self, request: EvaluationRequest) -> Found:
        """Learn what the study's method needs; gives the outlier ratios where the study allocates by them."""
        live = self._live
        live.stand_at(Allocation())
        with live.watchable():
            live.calibration.learn()
        names, measures = live.by.prune.methods, dict[str, Measure]()
        if len(names) > 1:
            live.methods = self.methods()
            measures = as_measures(names, live.grid, self._method_errors())
        live.notes += live.calibration.notes
        n = len(live.prompts.search[: live.study.prune.calibration.prompts])
        for rule in [name for name in OUTLIERS if name in live.by.search.strategies]:
            measures |= {
                OUTLIERS[rule] + address: Measure(ratio, ratio, ratio, n, "inputs of the dense layer")
                for address, ratio in live.calibration.outliers(rule).items()
            }
        live.sampled = live.calibration.images
        return Found(measures)

    def methods(self) -> dict[str, str]:
        """Component -> the method that prunes it."""
        return self._live.methods or best_methods(self._live.study.prune.methods, self._method_errors())

    def _method_errors(self) -> dict[str, Tensor]:
        """How the study's methods fare: from the cache, or measured now; the pipeline is dense afterwards."""
        live = self._live

        def hold() -> dict[str, Tensor]:
            try:
                # Text embeddings are remembered by allocation, and here several methods share one.
                with torch.inference_mode(), live.texts.bypassed():
                    return compare_methods(live.study.prune.methods, live.grid, self._prune_by)
            finally:
                live.give_up_masks()

        return self._memory.remembered(selection_key(self._keys.signature), hold)

    def _prune_by(self, method: str) -> Callable[[Allocation], Measure]:
        """Let one method prune everything; gives what measures its allocations."""
        self._live.prune_with(dict.fromkeys(components_of(self._live.grid), method))
        return lambda allocation: self._probe.errors(allocation)[PROBE_ERROR]
