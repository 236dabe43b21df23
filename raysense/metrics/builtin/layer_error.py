"""The layer error: what the rung `layer` measures, without images."""

from __future__ import annotations

from raysense.metrics.spec import MetricSpec

LAYER_ERROR = "layer_error"

SPEC = MetricSpec(LAYER_ERROR, "layer error", "squared error of the layers' outputs", kind="probe", dense=0.0)
