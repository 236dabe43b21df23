"""What every rung gives: measures, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from raysense.records import EvaluationRequest, Measure


@dataclass(frozen=True)
class Found:
    """What a rung found of one allocation.

    Attributes:
        measures: Metric -> measure.
        collapsed: Why the output is broken, or an empty string.
        samples: One row an image.
        nfe: NFE that were spent without calling the denoiser.
    """

    measures: Mapping[str, Measure] = field(default_factory=dict)
    collapsed: str = ""
    samples: Sequence[Mapping[str, Any]] = ()
    nfe: int = 0


class Rung(Protocol):
    """Measures allocations one way; what that costs, `raysense.evaluation.rungs.cost` says beforehand."""

    def measure(self, request: EvaluationRequest) -> Found:
        """Measure a request's allocation, at which the pipeline is left."""
        ...
