"""What every section of a study is: strict, frozen, and refused in sentences."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, SerializationInfo, StringConstraints, field_validator

from raysense.registry import DOTTED

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
MetricName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]
PluginName = Annotated[str, StringConstraints(pattern=rf"^({DOTTED.pattern}|[A-Za-z_][\w-]*)$")]
"""A dotted path, the name of an entry point, or of what was decorated in this process; see `raysense.registry`."""


class Said(ValueError):
    """A mistake in whole sentences, with the field in it."""


class Section(BaseModel):
    """A mapping of a study file; unknown keys, other types and what no table can hold are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _storable(cls, value: Any) -> Any:
        if isinstance(value, tuple) and len(set(map(repr, value))) < len(value):
            twice = next(entry for entry in value if value.count(entry) > 1)
            raise ValueError(f"must list each entry once, not {twice!r} twice")
        if type(value) is int and value.bit_length() > 63:
            raise ValueError("must fit into 64 bits")
        return value


def without_new(dumped: dict[str, Any], info: SerializationInfo, **defaults: Any) -> dict[str, Any]:
    """A section's plain data without fields that came later and are not used: the identity of older studies stays."""
    if isinstance(info.context, dict) and info.context.get("every_field"):
        return dumped
    return {
        name: value
        for name, value in dumped.items()
        if name not in defaults or value not in (defaults[name], ())
    }


def shown(value: Any) -> str:
    """A value as JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "…"
