"""The two bundled pipelines as test beds: their studies, and the parts that methods are compared on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raysense.pipelines.adapter import denoisers_of
from raysense.pipelines.load import load_for, modules_of
from raysense.pruning.layers import take_inventory
from raysense.study import Study, load

_STUDIES = Path(__file__).parents[1] / "search"
STUDIES = {"bundled": _STUDIES / "quickstart.yaml", "bundled-transformer": _STUDIES / "transformer.yaml"}
"""Pipeline -> the study that says what is pruned of it and how it samples."""

ROOM_FOR_CONVOLUTIONS = 0.01
"""Share of a denoiser's weights below which its convolutions are no scope of their own: one patch embedding is."""


@dataclass(frozen=True)
class Scope:
    """Layers that are pruned by one ratio.

    Attributes:
        name: Of the scope, the same on every bed.
        components: Of the pipeline.
        linear: Whether its `Linear` layers alone are meant.
        text: Whether its components are text encoders.
    """

    name: str
    components: tuple[str, ...]
    linear: bool
    text: bool

    @property
    def overrides(self) -> list[str]:
        """What selects its layers in a study."""
        return [f"prune.components=[{', '.join(self.components)}]", *["prune.kinds=[linear]"] * self.linear]


def study_of(bed: str, overrides: Sequence[str]) -> Study:
    """The bed's study with some values changed."""
    return load(STUDIES[bed], overrides)


def scopes_of(bed: str) -> list[Scope]:
    """Text encoders and denoisers, `Linear` layers alone; the denoisers' layers of all kinds where these differ."""
    study = study_of(bed, [])
    pipeline = load_for(study)
    denoisers = tuple(name for name in study.prune.components if name in denoisers_of(pipeline))
    encoders = tuple(name for name in study.prune.components if name not in denoisers)
    layers = take_inventory(modules_of(pipeline), select=denoisers).layers
    others = sum(layer.n for layer in layers if layer.kind != "linear") / sum(layer.n for layer in layers)
    found = [Scope("text encoders", encoders, True, True), Scope("denoiser, Linear", denoisers, True, False)]
    if others >= ROOM_FOR_CONVOLUTIONS:
        found.append(Scope("denoiser, all kinds", denoisers, False, False))
    return found
