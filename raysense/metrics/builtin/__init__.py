"""The metrics of raysense's own: each file of this folder is one, and all that is known of it.

A file holds ``SPEC`` and loads no torch until something is measured, so that a study can be checked at once. Study,
scoring, search, page and tables read `SPECS`: a new metric is a new file, and its test.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module

from raysense.metrics.spec import RELATIVE, MetricSpec, base_of


def _found() -> dict[str, MetricSpec]:
    modules = (import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    specs: list[MetricSpec] = [module.SPEC for module in modules]
    return {
        spec.name: spec for spec in sorted(specs, key=lambda s: (s.kind == "probe", not s.always, s.name))
    }


SPECS: Mapping[str, MetricSpec] = _found()
"""Name -> metric: those of every image rung first, the probes' errors last."""


def spec_of(measure: str, own: Mapping[str, MetricSpec] | None = None) -> MetricSpec:
    """What is known of a measure's metric.

    Args:
        measure: A metric, or its drop or rise.
        own: What a study says of metrics of its own (`Study.own_specs`); of other unknown names nothing is known but
            the name.
    """
    name = base_of(measure)
    return SPECS.get(name) or (own or {}).get(name) or MetricSpec(name, name.replace("_", " "))


def higher_is_better(measure: str, own: Mapping[str, MetricSpec] | None = None) -> bool:
    """Which way is good: drops and rises are losses. See `spec_of`."""
    return not measure.endswith(RELATIVE) and spec_of(measure, own).higher_is_better
