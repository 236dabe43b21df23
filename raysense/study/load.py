"""Read a study from a file, from flags, from plain data: all that is wrong is said at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysense.study import reading
from raysense.study.reading import Examined
from raysense.study.schema import Study, quickstart


def load(path: Path | None = None, overrides: Sequence[str] = ()) -> Study:
    """Read a study file.

    Args:
        path: The YAML file; None for the quickstart study. Relative paths in it mean beside it.
        overrides: ``key=value`` pairs, e.g. ``rungs.score.prompts=64``; values are YAML. Relative paths in them mean
            the working folder.

    Raises:
        RaysenseError: The file is missing or no YAML, a key is unknown, a value is out of range: all that is wrong.
    """
    return examine(path, overrides).right()


def examine(path: Path | None = None, overrides: Sequence[str] = ()) -> Examined[Study]:
    """Read a study file that may have mistakes; see `load`.

    Raises:
        RaysenseError: The file is missing or no YAML.
    """
    return reading.examine(Study, path or quickstart(), path.parent if path else None, overrides)


def revise(study: Study, overrides: Sequence[str]) -> Study:
    """The study with some values changed; see `load`."""
    return parse(reading.revised(study.model_dump(mode="json"), overrides))


def parse(data: Mapping[str, Any]) -> Study:
    """Build a study from plain data; see `load`."""
    return reading.examined(Study, data).right()
