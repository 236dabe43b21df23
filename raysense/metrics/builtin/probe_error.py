"""The probe error: what the rung `probe` measures, without images."""

from __future__ import annotations

from raysense.metrics.spec import MetricSpec

PROBE_ERROR = "probe_error"

SPEC = MetricSpec(
    PROBE_ERROR, "probe error", "squared error of the denoiser's output", kind="probe", dense=0.0
)
