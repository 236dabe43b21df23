"""The text error: what the rung `probe` measures, without images."""

from __future__ import annotations

from raysense.metrics.spec import MetricSpec

TEXT_ERROR = "text_error"

SPEC = MetricSpec(TEXT_ERROR, "text error", "squared error of the text embeddings", kind="probe", dense=0.0)
