"""Where a study's files lie: relative paths in a study file mean beside it, those of ``--set`` the working folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raysense.errors import RaysenseError
from raysense.names import BUNDLED, BUNDLED_PIPELINES
from raysense.prompts import coco

_LOCAL = "local-dir:"

_NAMES = {
    "pipeline": tuple(BUNDLED_PIPELINES),
    "prompts": (BUNDLED, coco.NAME),
    "metrics.reference.path": (coco.NAME,),
}
"""What is no path."""


def make_absolute(data: dict[str, Any], base: Path, *, of_file: bool) -> None:
    """Make the paths in a study's plain data absolute, in place; what is no text is left for validation.

    Args:
        data: The data.
        base: What relative paths are relative to.
        of_file: The data stands in a study file in `base`; otherwise it was given on the command line.

    Raises:
        RaysenseError: There is nothing beside the study, but something in the working folder.
    """

    def path(field: str, text: str, *, must: bool) -> str:
        """`text` as an absolute path, if it is one: `must` says that it can be nothing else."""
        expanded = os.path.expanduser(text)
        if os.path.isabs(expanded) or "://" in text or text in _NAMES.get(field, ()):
            return expanded if os.path.isabs(expanded) else text
        there = os.path.abspath(os.path.join(base, expanded))
        if os.path.lexists(there):
            return there
        if of_file and os.path.lexists(expanded):
            raise RaysenseError(
                f"`{field}: {text}` means beside the study file, in `{base}`, where there is none; there is one in the "
                f"working folder: write `{os.path.abspath(expanded)}` if you mean that"
            )
        return there if of_file and must else text

    def behind(prefix: str, field: str) -> Callable[[str], str]:
        def change(text: str) -> str:
            kept, mark, folder = text.partition(prefix)
            return f"{kept}{mark}{path(field, folder, must=True)}" if mark else text

        return change

    _change(data, "pipeline", lambda text: path("pipeline", text, must=False))
    _change(data, "config", lambda text: path("config", text, must=False))
    loras = data.get("lora")
    for lora in loras if isinstance(loras, list) else ():
        if isinstance(lora, dict):
            _change(lora, "path", lambda text: path("lora.path", text, must=True))
    _change(data, "prompts", lambda text: path("prompts", text, must=True))
    _change(data, "metrics.reference.path", lambda text: path("metrics.reference.path", text, must=True))
    _change(data, "metrics.clip.model", behind(_LOCAL, "metrics.clip.model"))
    _change(data, "metrics.clip.pretrained", lambda text: path("metrics.clip.pretrained", text, must=False))
    _change(data, "metrics.features.extractor", behind(_LOCAL, "metrics.features.extractor"))


def _change(data: dict[str, Any], field: str, change: Callable[[str], str]) -> None:
    *sections, last = field.split(".")
    section: Any = data
    for name in sections:
        section = section.get(name) if isinstance(section, dict) else None
    if isinstance(section, dict) and isinstance(section.get(last), str):
        section[last] = change(section[last])
