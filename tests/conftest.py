"""What tests of several rooms use."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

REPORTS = Path(__file__).parents[1] / "reports"
REFERENCE = REPORTS / "reference"


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A copy of the committed reference study that may be changed."""
    return Path(shutil.copytree(REFERENCE, tmp_path / "reference"))
