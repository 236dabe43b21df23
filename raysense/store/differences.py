"""In what two studies differ, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CONTENTS = {
    "prompts": "the prompts' texts or ids",
    "pipeline": "the pipeline's files",
    "judges": "the networks that judge",
    "reference": "the reference's images",
    "plugins": "a plug-in's code",
    "versions": "the software",
    "device": "the kind of device that measures",
}
"""What a study's `inputs` are, in words."""


def refusal(
    uri: str,
    study: Mapping[str, Any],
    now: Mapping[str, Any],
    extensions: Sequence[str],
    inputs: Mapping[str, Any],
) -> str:
    """Why a store refuses a study: each field that differs from the stored one's."""
    lines = [
        *definitions_differ(study["definition"], now, extensions),
        *contents_differ(study["inputs"], inputs),
    ]
    shown = "\n".join(lines) or "  (its definition reads the same: weights or software differ)"
    return (
        f"store `{uri}` holds another study. What differs:\n{shown}\n"
        "Set it back, or give another folder for the changed study."
    )


def definitions_differ(
    was: Mapping[str, Any],
    now: Mapping[str, Any],
    free: Sequence[str],
    words: tuple[str, str] = ("stored", "now"),
) -> list[str]:
    """In what two definitions differ, a line each.

    Args:
        was: The one.
        now: The other.
        free: Fields, dotted if nested, that may differ, with all that is below them.
        words: For the one's values and for the other's.
    """
    return [
        f"  {field}: {words[0]} {old!r}, {words[1]} {new!r}"
        for field, old, new in difference(was, now)
        if not any(field == name or field.startswith(f"{name}.") for name in free)
    ]


def contents_differ(
    was: Mapping[str, Any], now: Mapping[str, Any], parts: Sequence[str] = tuple(CONTENTS)
) -> list[str]:
    """In what two `inputs` differ, a line each, in words."""
    return [
        f"  {CONTENTS[part]} (`{'.'.join(filter(None, (part, field)))}`): stored {_shown(old)}, now {_shown(new)}"
        for part in parts
        for field, old, new in difference(was.get(part), now.get(part))
    ]


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)


def difference(was: Any, now: Any, field: str = "") -> list[tuple[str, Any, Any]]:
    """The fields in which two JSON-able definitions differ, dotted, with both values; None for absent."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        return [
            found
            for name in sorted(set(was) | set(now))
            for found in difference(was.get(name), now.get(name), f"{field}.{name}" if field else name)
        ]
    return [] if was == now else [(field, was, now)]
