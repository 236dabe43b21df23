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

LONGEST = ("test_end_to_end", "execution/ray", "training", "search", "test_docs")
"""Files and folders whose tests take longest: two processes that share the suite begin with them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that neither process waits for the other at the end."""
    items.sort(key=lambda item: not any(part in item.path.as_posix() for part in LONGEST))


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A copy of the committed reference study that may be changed."""
    return Path(shutil.copytree(REFERENCE, tmp_path / "reference"))
