"""The quality budget: bounds on measures, each to be met with a whole interval.

What of raysense's own metrics can be bounded, and how, follows from their `MetricSpec`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import (
    BaseModel,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
    model_validator,
)

from raysense.metrics.builtin import SPECS
from raysense.metrics.spec import MetricSpec
from raysense.records import Bound
from raysense.study.section import MetricName, Section, without_new

AnyBound = TypeVar("AnyBound", bound=BaseModel)

BOUNDED = {name: spec for name, spec in SPECS.items() if spec.kind != "probe"}
"""The metrics that a study may bound: those of images."""


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


class _TwoBounds(Section):
    """Bounds of a metric that is also compared with the dense pipeline."""

    @model_validator(mode="after")
    def _one(self) -> _TwoBounds:
        return _some_bound(self)


def _some_bound(bound: AnyBound) -> AnyBound:
    if all(value is None for value in dict(bound).values()):
        raise ValueError(f"must set one of {', '.join(dict(bound))}")
    return bound


def bound_on(spec: MetricSpec) -> type[Section]:
    """What a study may say of a metric: a bound on its value, and one on its paired difference where it has one."""
    value: dict[str, Any] = {"ge": spec.lowest, "le": spec.highest}
    side = "min" if spec.higher_is_better else "max"
    name = "".join(word.capitalize() for word in spec.name.split("_")) + "Bound"
    if not spec.relative:
        text = f"of the mean over all images: {spec.meaning}"
        only: dict[str, Any] = {side: (float, Field(description=text, **value))}
        return create_model(name, __base__=Section, __doc__=f"Bound on the {spec.label}.", **only)
    widest = None if spec.lowest is None or spec.highest is None else spec.highest - spec.lowest
    both: dict[str, Any] = {
        f"max{spec.relative}": (
            float | None,
            Field(None, ge=0, le=widest, description=spec.relative_unit),
        ),
        side: (float | None, Field(None, description="of the pruned pipeline", **value)),
    }
    return create_model(name, __base__=_TwoBounds, __doc__=f"Bounds on the {spec.label}.", **both)


class _Constraints(Section):
    """The quality budget. All must hold, each with its whole 95 % interval."""

    @model_validator(mode="after")
    def _any(self) -> _Constraints:
        if not any(dict(self).values()):
            raise ValueError(f"must name at least one of {', '.join(dict(self))}")
        return self

    @model_serializer(mode="wrap")
    def _those_set(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        # A metric that comes later must not change the identity of older studies.
        return without_new(dump(self), info, **dict.fromkeys(BOUNDED))

    def bounded(self) -> dict[str, MetricSpec]:
        """The metrics of raysense's own that are bounded, by name."""
        return {name: spec for name, spec in BOUNDED.items() if getattr(self, name) is not None}

    def bounds(self) -> list[Bound]:
        """Every single bound, as (measure, direction, limit)."""
        by_metric = {metric: (metric, bound) for metric, bound in self if metric in BOUNDED}
        by_metric |= {f"custom.{name}": (name, bound) for name, bound in dict(self)["custom"].items()}
        found: list[Bound] = []
        for place, (metric, bound) in by_metric.items():
            for field, limit in dict(bound or ()).items():
                if limit is not None:
                    measure = metric + {"max_drop": "_drop", "max_rise": "_rise"}.get(field, "")
                    found.append(Bound(f"constraints.{place}.{field}", measure, field != "min", limit))
        return found


if TYPE_CHECKING:  # its fields are known only when the metrics are

    class Constraints(_Constraints):
        """See `_Constraints`."""

        custom: dict[MetricName, CustomBound]

        def __getattr__(self, name: str) -> Any: ...

else:
    Constraints = create_model(
        "Constraints",
        __base__=_Constraints,
        __doc__=_Constraints.__doc__,
        __module__=__name__,
        **{
            name: (bound_on(spec) | None, Field(None, description=spec.meaning))
            for name, spec in BOUNDED.items()
        },
        custom=(
            dict[MetricName, CustomBound],
            Field(default_factory=dict, description="by name of a metric in metrics.custom"),
        ),
    )
