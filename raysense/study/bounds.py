"""The quality budget: bounds on measures, each to be met with a whole interval."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import (
    BaseModel,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from raysense.records import Bound
from raysense.study.section import MetricName, Section, without_new

AnyBound = TypeVar("AnyBound", bound=BaseModel)


class ClipScoreBound(Section):
    """Bounds on the mean CLIP score (cosine)."""

    max_drop: float | None = Field(None, ge=0, description="dense minus pruned, paired by prompt and seed")
    min: float | None = Field(None, ge=-1, le=1, description="of the pruned pipeline")

    @model_validator(mode="after")
    def _one(self) -> ClipScoreBound:
        return _some_bound(self)


class DistanceBound(Section):
    """Bounds on the Fréchet distance, KID or CMMD to the reference."""

    max_rise: float | None = Field(None, ge=0, description="pruned minus dense, against the same reference")
    max: float | None = Field(None, ge=0, description="of the pruned pipeline")

    @model_validator(mode="after")
    def _one(self) -> DistanceBound:
        return _some_bound(self)


class ShareBound(Section):
    """Bounds on precision or recall, shares of images."""

    max_drop: float | None = Field(
        None, ge=0, le=1, description="dense minus pruned, against the same reference"
    )
    min: float | None = Field(None, ge=0, le=1, description="of the pruned pipeline")

    @model_validator(mode="after")
    def _one(self) -> ShareBound:
        return _some_bound(self)


class ClosenessBound(Section):
    """Bound on the mean likeness (feature cosine, SSIM) of pruned and dense image of the same noise."""

    min: float = Field(ge=-1, le=1, description="of the mean over all images")


class UnlikenessBound(Section):
    """Bound on the mean LPIPS distance between pruned and dense image of the same noise."""

    max: float = Field(ge=0, description="of the mean over all images")


class CustomBound(Section):
    """Bounds on a metric of the user's own: the first two where higher is better, the others where lower is."""

    max_drop: float | None = Field(None, ge=0, description="dense minus pruned, paired by prompt and seed")
    min: float | None = Field(None, description="of the pruned pipeline")
    max_rise: float | None = Field(None, ge=0, description="pruned minus dense, paired by prompt and seed")
    max: float | None = Field(None, description="of the pruned pipeline")

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_new(dump(self), info, max_rise=None, max=None)

    @model_validator(mode="after")
    def _one(self) -> CustomBound:
        return _some_bound(self)


def _some_bound(bound: AnyBound) -> AnyBound:
    if all(value is None for value in dict(bound).values()):
        raise ValueError(f"must set one of {', '.join(dict(bound))}")
    return bound


class Constraints(Section):
    """The quality budget. All must hold, each with its whole 95 % interval."""

    clip_score: ClipScoreBound | None = Field(None, description="see below")
    frechet: DistanceBound | None = Field(None, description="see below")
    kid: DistanceBound | None = Field(None, description="see below")
    cmmd: DistanceBound | None = Field(None, description="see below")
    precision: ShareBound | None = Field(None, description="see below")
    recall: ShareBound | None = Field(None, description="see below")
    closeness: ClosenessBound | None = Field(None, description="feature cosine with the dense image")
    ssim: ClosenessBound | None = Field(None, description="structural similarity to the dense image")
    lpips: UnlikenessBound | None = Field(None, description="LPIPS distance to the dense image")
    custom: dict[MetricName, CustomBound] = Field(
        default_factory=dict, description="by name of a metric in metrics.custom"
    )

    @model_validator(mode="after")
    def _any(self) -> Constraints:
        if not any(dict(self).values()):
            raise ValueError(f"must name at least one of {', '.join(dict(self))}")
        return self

    def bounds(self) -> list[Bound]:
        """Every single bound, as (measure, direction, limit)."""
        by_metric = {metric: (metric, bound) for metric, bound in self if metric != "custom"}
        by_metric |= {f"custom.{name}": (name, bound) for name, bound in self.custom.items()}
        found: list[Bound] = []
        for place, (metric, bound) in by_metric.items():
            for field, limit in dict(bound or ()).items():
                if limit is not None:
                    measure = metric + {"max_drop": "_drop", "max_rise": "_rise"}.get(field, "")
                    found.append(Bound(f"constraints.{place}.{field}", measure, field != "min", limit))
        return found
