"""Folders of one's own in a place that is everybody's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raysense.temporary_folders import own_folder


def test_a_folder_is_this_users_alone(tmp_path: Path) -> None:
    place = own_folder("x", str(tmp_path))
    assert place == own_folder("x", str(tmp_path)) == tmp_path / f"x-{os.getuid()}"
    assert place.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("first", ["link", "dangling", "file", "open", "foreign"])
def test_what_somebody_else_put_there_first_is_refused(tmp_path: Path, first: str) -> None:
    place, elsewhere = tmp_path / f"x-{os.getuid()}", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if first in ("link", "dangling"):
        place.symlink_to(elsewhere if first == "link" else tmp_path / "nowhere")
    elif first == "file":
        place.write_text("")
    else:
        place.mkdir()
        if first == "open":
            place.chmod(0o777)
        elif os.getuid() == 0:
            os.chown(place, 65534, 65534)
        else:
            pytest.skip("only root can make a folder somebody else's")
    with pytest.raises(OSError, match="remove it"):
        own_folder("x", str(tmp_path))
    assert list(elsewhere.iterdir()) == []
