"""The two bundled pipelines as test beds: their studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raysense.study import Study, load

_STUDIES = Path(__file__).parents[1] / "search"
STUDIES = {"bundled": _STUDIES / "quickstart.yaml", "bundled-transformer": _STUDIES / "transformer.yaml"}
"""Pipeline -> the study that says what is pruned of it and how it samples."""


def study_of(bed: str, overrides: Sequence[str]) -> Study:
    """The bed's study with some values changed."""
    return load(STUDIES[bed], overrides)
