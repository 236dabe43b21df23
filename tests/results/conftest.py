"""The committed reference study, as the page, the queries and the frames are tested on it."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def unfinished(reference: Path) -> Path:
    (reference / "summary.json").unlink()
    return reference
