"""JSON files that carry their own checksum, so that damage is refused instead of read as something else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from raysense.store.schema import SCHEMA_VERSION, check_version

CHECKSUM = "sha256"
"""The field that holds the SHA-256 of all others."""

_REMEDY_OF_EDITED = "was it edited by hand?"


def seal(
    fields: Mapping[str, Any],
    *,
    indent: int | None = None,
    finite: bool = False,
    default: Callable[[Any], Any] | None = None,
) -> bytes:
    """The content of a file with these fields, this raysense's schema version and their checksum.

    Args:
        fields: JSON-able.
        indent: For files that people read.
        finite: Whether NaN and infinity are refused, so that any JSON reader takes the file.
        default: What to do with values that JSON does not know, as for `json.dumps`.
    """
    whole = {"schema_version": SCHEMA_VERSION, **fields}
    plain = _plain(whole, default)
    checksum = hashlib.sha256(plain).hexdigest()
    if indent is None:
        return plain[:-1] + f',"{CHECKSUM}":"{checksum}"}}'.encode()
    text = json.dumps({**json.loads(plain), CHECKSUM: checksum}, indent=indent, allow_nan=not finite)
    return f"{text}\n".encode()


def unseal(content: bytes, where: str) -> dict[str, Any]:
    """The fields that `seal` was given, and ``schema_version``.

    Args:
        content: Of the file.
        where: The file's name in quotes, for messages.

    Raises:
        ValueError: The content is damaged.
        OtherVersion: Another version of raysense wrote it.
    """
    try:
        fields = json.loads(content)
    except RecursionError:
        raise ValueError("too deeply nested") from None
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    # Before the checksum: what a newer raysense wrote is not to be called damaged, whatever it sums up.
    check_version(fields.get("schema_version"), where, str(fields.get("raysense_version", "")))
    checksum = fields.pop(CHECKSUM, None)
    if checksum is None:
        raise ValueError("it has no checksum")
    if checksum != hashlib.sha256(_plain(fields)).hexdigest():
        raise ValueError(f"its checksum does not match its content; {_REMEDY_OF_EDITED}")
    return fields


def _plain(fields: Mapping[str, Any], default: Callable[[Any], Any] | None = None) -> bytes:
    """One form for all ways to write the same fields."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=default)
    return text.encode("utf-8", "surrogatepass")
