"""A study: one definition for YAML, flags and Python. Loads neither torch nor Ray: ``validate`` answers at once.

`schema` and `bounds` say what may stand in it, `load` reads it, `checks` says what can be known without weights.
"""

from raysense.study.bounds import Constraints, CustomBound
from raysense.study.explain import listed
from raysense.study.live_objects import GIVEN, LiveObjects
from raysense.study.load import examine, load, parse, revise
from raysense.study.reading import Examined
from raysense.study.schema import (
    EXTENSIONS,
    LOOKS,
    MAX_REPLICATE_SEEDS,
    MAX_SEED,
    PLACES,
    Budget,
    Calibration,
    Clip,
    Cluster,
    Features,
    ImageRung,
    LayerRung,
    Lora,
    Metrics,
    ProbeRung,
    Prune,
    Reference,
    Rungs,
    Sampling,
    SchedulerChoice,
    Search,
    Study,
    Track,
    ValidationRung,
    bundled_pipeline,
    bundled_scorer,
    quickstart,
)
from raysense.study.sweep import Cliffs, PointSet, Screen, Sweep

__all__ = [
    "EXTENSIONS",
    "GIVEN",
    "LOOKS",
    "MAX_REPLICATE_SEEDS",
    "MAX_SEED",
    "PLACES",
    "Budget",
    "Calibration",
    "Cliffs",
    "Clip",
    "Cluster",
    "Constraints",
    "CustomBound",
    "Examined",
    "Features",
    "ImageRung",
    "LayerRung",
    "LiveObjects",
    "Lora",
    "Metrics",
    "PointSet",
    "ProbeRung",
    "Prune",
    "Reference",
    "Rungs",
    "Sampling",
    "SchedulerChoice",
    "Screen",
    "Search",
    "Study",
    "Sweep",
    "Track",
    "ValidationRung",
    "bundled_pipeline",
    "bundled_scorer",
    "examine",
    "listed",
    "load",
    "parse",
    "quickstart",
    "revise",
]
