"""The committed reference study, as the page, the queries and the frames are tested on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

REPORTS = Path(__file__).parents[2] / "reports"
REFERENCE = REPORTS / "reference"


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A copy of it that may be changed."""
    return Path(shutil.copytree(REFERENCE, tmp_path / "reference"))


@pytest.fixture
def unfinished(reference: Path) -> Path:
    (reference / "summary.json").unlink()
    return reference
