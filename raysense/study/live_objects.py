"""What a study written in Python may hold that a file cannot: a loaded pipeline, a list of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from raysense.study.paths import make_absolute

GIVEN = "given in Python"
"""Stands in a study's definition for a live object until it is written to a file."""


@dataclass(frozen=True)
class LiveObjects:
    """Objects given in place of names.

    Attributes:
        pipeline: A loaded ``DiffusionPipeline``, or None.
        prompts: Texts, or None.
    """

    pipeline: Any = None
    prompts: tuple[str, ...] | None = None


def from_python(given: Mapping[str, Any]) -> tuple[dict[str, Any], LiveObjects]:
    """Keyword arguments as plain data, live objects apart; relative paths mean the working folder."""
    data = {key: _plain(value) for key, value in given.items()}
    pipeline, prompts = data.get("pipeline"), data.get("prompts")
    live = LiveObjects(
        pipeline if hasattr(pipeline, "components") and hasattr(pipeline, "save_pretrained") else None,
        tuple(prompts)
        if isinstance(prompts, list | tuple) and all(isinstance(p, str) for p in prompts)
        else None,
    )
    data.setdefault("name", "study")
    if live.pipeline is not None:
        data["pipeline"] = GIVEN
    if live.prompts is not None:
        data["prompts"] = GIVEN
    here = Path.cwd()
    named = {key: value for key, value in data.items() if value is not GIVEN}
    make_absolute(named, here, of_file=False)
    return data | named, live


def _plain(value: Any) -> Any:
    """A value as YAML would have it; NumPy's numbers and arrays, torch's types and iterators mean what they hold."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    home = type(value).__module__.partition(".")[0]
    if home == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    if home == "torch" and str(value).startswith("torch.") and type(value).__name__ == "dtype":
        return str(value).removeprefix("torch.")
    if isinstance(value, Iterator):
        return [_plain(entry) for entry in value]
    if isinstance(value, list | tuple):
        return type(value)(_plain(entry) for entry in value) if type(value) in (list, tuple) else value
    return value
