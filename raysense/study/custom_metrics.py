"""Metrics of the user's own, as a study names them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, SerializerFunctionWrapHandler, Tag, model_serializer

from raysense.metrics.spec import MetricSpec
from raysense.study.section import PluginName, Section


class CustomMetric(Section):
    """A metric of the user's own, and what must be known of it wherever its values are read.

    What is missing is filled in from its decorator before a study is run, see `raysense.study.complete`.
    """

    path: PluginName = Field(description="package.module.function, or the name of an entry point")
    higher_is_better: bool | None = Field(None, description="which way is good; true if nothing says it")
    kind: Literal["image", "set"] | None = Field(
        None, description="a number an image whose mean counts (so if nothing says it), or one for the set"
    )
    label: str | None = Field(None, min_length=1, max_length=60, description="its name for people")
    unit: str | None = Field(None, max_length=80, description="of its value")
    meaning: str | None = Field(None, max_length=200, description="what it says, in half a sentence")

    @model_serializer(mode="wrap")
    def _what_is_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value is not None}

    @property
    def up(self) -> bool:
        """Whether higher is better."""
        return self.higher_is_better is not False

    @property
    def of_set(self) -> bool:
        """Whether it is one number for all images together."""
        return self.kind == "set"

    def spec(self, name: str) -> MetricSpec:
        """What reading needs.

        Args:
            name: The metric's name in the study and in the rows.
        """
        meaning = self.meaning or "a metric of the study's own"
        way = "higher" if self.up else "lower"
        difference = "dense minus pruned" if self.up else "pruned minus dense"
        return MetricSpec(
            name,
            self.label or name.replace("_", " "),
            f"{meaning}; {way} is better",
            self.unit or "",
            f"{difference}, paired by prompt and seed",
            higher_is_better=self.up,
            kind="set" if self.of_set else "image",
            relative="_drop" if self.up else "_rise",
            needs_images=self.of_set,
            needs_full_sample=self.of_set,
        )


A_PATH, A_SECTION = "a path", "a section"


def _which(entry: Any) -> str:
    return A_SECTION if isinstance(entry, (dict, CustomMetric)) else A_PATH


CustomEntry = Annotated[
    Annotated[PluginName, Tag(A_PATH)] | Annotated[CustomMetric, Tag(A_SECTION)], Discriminator(_which)
]
"""An entry of `metrics.custom`."""


def as_custom_metric(entry: str | CustomMetric) -> CustomMetric:
    """An entry of `metrics.custom`, a path alone or more."""
    return CustomMetric(path=entry) if isinstance(entry, str) else entry
