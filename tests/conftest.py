"""What tests of several rooms use."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("AWS_ACCESS_KEY_ID", "test")  # of the S3 server on loopback, for workers too
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "secret-of-the-tests")

REPORTS = Path(__file__).parents[1] / "reports"
REFERENCE = REPORTS / "reference"


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A copy of the committed reference study that may be changed."""
    return Path(shutil.copytree(REFERENCE, tmp_path / "reference"))
