"""What pydantic finds wrong with a study, in sentences that name the field, the value and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from raysense.names import renamed
from raysense.study.custom_metrics import A_PATH, A_SECTION
from raysense.study.section import Said, shown

Location = tuple[int | str, ...]
"""Where something stands in a study: keys, and numbers of list entries."""

_KEY_MARK = "[key]"
"""What pydantic adds to the place of a mapping's entry if not its value, but its name is wrong."""

_PLAINER = {
    "Input should be ": "",
    "greater than or equal to": "≥",
    "less than or equal to": "≤",
    "greater than": ">",
    "less than": "<",
}


def mistakes_of(error: ValidationError, model: type[BaseModel]) -> dict[Location, str]:
    """What pydantic found in data for `model`, a sentence a field."""
    by_field: dict[Location, list[Any]] = {}
    for mistake in error.errors():
        # Unions add the names of their branches to the location; users know only the keys.
        keys = tuple(
            part
            for part in mistake["loc"]
            if not str(part).startswith(("constrained-", "literal[", "tuple[", "dict[", A_PATH, A_SECTION))
            and part != "str"
        )
        by_field.setdefault(keys, []).append(mistake)
    return {location: _sentence(location, branches, model) for location, branches in by_field.items()}


def without_key_mark(location: Location) -> Location:
    """Where the entry stands whose name or value is wrong."""
    return location[:-1] if location[-1:] == (_KEY_MARK,) else location


def _sentence(location: Location, branches: Sequence[Any], model: type[BaseModel]) -> str:
    field = ".".join(f"{part!s:.80}" for part in without_key_mark(location))
    first, value = branches[0], shown(branches[0]["input"])
    said = first.get("ctx", {}).get("error")
    if isinstance(said, Said):
        return str(said)
    if first["type"] == "extra_forbidden" and (said_now := renamed(field)):
        return said_now
    if first["type"] == "extra_forbidden":
        known = _keys_at(first["loc"][:-1], model)
        close = difflib.get_close_matches(str(location[-1])[:80], known, n=1)
        remedy = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(known)}"
        return f"`{field}` is not a key of a study ({remedy})"
    if first["type"] == "missing":
        return f"`{field}` is required, but missing"
    message = " or ".join(dict.fromkeys(m["msg"].removeprefix("Value error, ") for m in branches))
    message = re.sub(r"^[A-Z]\w+ should ", "must ", message)
    if first["type"] == "model_type":
        message = f"must be a mapping with {', '.join(_keys_at(first['loc'], model))}"
    for words, sign in _PLAINER.items():
        message = message.replace(words, sign)
    remedy = "; write true or false" if first["type"] == "bool_type" else ""
    return f"`{field or 'study'}` {message}, but got {value}{remedy}"


def _keys_at(location: Location, outermost: type[BaseModel]) -> list[str]:
    model: Any = outermost
    for part in location:
        if part not in model.model_fields:
            continue  # the user's own name in a mapping whose values are sections
        model = next(_sections_in(model.model_fields[part].annotation))
    return [field.alias or name for name, field in model.model_fields.items()]


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)


def listed(mistakes: Sequence[str]) -> str:
    """Mistakes as one line."""
    lines = [" ".join(mistake.split()) for mistake in mistakes]
    return lines[0] if len(lines) == 1 else f"{len(lines)} mistakes: " + "; ".join(lines)
