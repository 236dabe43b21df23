"""Every key of a study file, as a JSON schema for editors and as a page for people; both come from the schema alone."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from raysense.study.schema import Study

HEADING = """\
# Every key of a study

Made by `raysense schema --markdown`. A study file is YAML; every key but `name` and `constraints` has a default.
`raysense validate STUDY.yaml` prints a study with all of them, `raysense schema` the JSON schema that editors use.
"""


def json_schema() -> str:
    """The JSON schema of a study file, for editors that complete and check keys."""
    return json.dumps({"title": "raysense study"} | Study.model_json_schema(), indent=2) + "\n"


def markdown() -> str:
    """A page with a table for each section: key, type, default, meaning."""
    parts = [HEADING]
    seen: set[tuple[type[BaseModel], str]] = set()
    for place, model in _sections(Study, ""):
        if (model, place) in seen:
            continue
        seen.add((model, place))
        title = f"`{place}`" if place else "The study"
        first = (model.__doc__ or "").strip().splitlines()[0]
        rows = [
            f"| `{field.alias or name}` | {_type(field.annotation)} | {_default(field)} | {_meaning(field)} |"
            for name, field in model.model_fields.items()
        ]
        table = ["| key | type | default | meaning |", "|---|---|---|---|", *rows]
        parts.append("\n".join([f"## {title}\n", f"{first}\n", *table]) + "\n")
    return "\n".join(parts)


def _sections(model: type[BaseModel], place: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield place, model
    for name, field in model.model_fields.items():
        for inner in _models(field.annotation):
            many = get_origin(_plain(field.annotation)) in (dict, tuple)
            yield from _sections(inner, ".".join(filter(None, (place, name))) + (".*" if many else ""))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _plain(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _type(annotation: Any) -> str:
    """A type in words: ``whole number``, ``list of text``, ``text or null``."""
    annotation = _plain(annotation)
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(part) for part in parts))
    if origin is tuple:
        return f"list of {_type(parts[0])}"
    if origin is dict:
        return f"mapping of name to {_type(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    words = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
    return words.get(annotation, "any value")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or value is PydanticUndefined:
        return ""
    return f"`{json.dumps(value)}`"


def _meaning(field: FieldInfo) -> str:
    limits = [
        f"{sign} {getattr(limit, name):g}"
        for limit in field.metadata
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if getattr(limit, name, None) is not None
    ]
    text = (field.description or "").replace("|", "\\|")
    return text + (f" ({', '.join(limits)})" if limits else "")
