from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from raysense.errors import RaysenseError
from raysense.prompts import coco
from raysense.prompts.sets import check_counts, load_prompts

CAPTIONS = {
    "annotations": [
        {"image_id": image, "caption": f" {nth} of {image} "}
        for nth in ("first", "second")
        for image in range(500, 620)
    ]
}


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """An HTTP server with a small archive of COCO's layout; gives the paths that were asked for."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("annotations/captions_train2017.json", json.dumps(CAPTIONS))
    content, asked = buffer.getvalue(), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(coco, "ARCHIVE", f"http://127.0.0.1:{server.server_port}/a.zip")
    monkeypatch.setattr(coco, "SHA1", hashlib.sha1(content).hexdigest())
    monkeypatch.setenv("RAYSENSE_CACHE", str(tmp_path / "cache"))
    yield asked
    server.shutdown()
    server.server_close()


def test_the_papers_captions_come_first(archive: list[str]) -> None:
    """As its code takes them: unique pictures in file order, then `numpy.random.choice` after `seed(0)`."""
    rows = coco.choose(CAPTIONS, per_set=40)
    np.random.seed(0)  # noqa: NPY002  # theirs
    theirs = np.random.choice(120, 40, replace=False)  # noqa: NPY002
    assert [row["prompt"] for row in rows if row["split"] == "search"] == [
        f"first of {500 + i}" for i in theirs
    ]
    assert len({row["id"] for row in rows}) == 80


def test_no_caption_is_held_out_that_was_searched_on() -> None:
    """Pictures of COCO share captions; the paper's stay, others step in for the held-out ones."""
    same = {"annotations": [{"image_id": n, "caption": f"A  cat {n % 70}."} for n in range(120)]}
    rows = coco.choose(same, per_set=30)
    texts = {
        name: {row["prompt"] for row in rows if row["split"] == name} for name in ("search", "validation")
    }
    assert not texts["search"] & texts["validation"]
    assert [row["split"] for row in rows] == ["search"] * 30 + ["validation"] * 30


def test_it_is_downloaded_once(archive: list[str]) -> None:
    sets = load_prompts(coco.NAME)
    assert load_prompts(coco.NAME) == sets
    assert len(archive) == 1
    assert len(sets.search) == 120
    assert sets.search[0].id.startswith("coco-")


def test_another_archive_is_refused(archive: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "SHA1", "0" * 40)
    with pytest.raises(RaysenseError, match="SHA1 hash of downloaded file"):
        load_prompts(coco.NAME)


def test_counts_are_checked_without_a_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAYSENSE_CACHE", str(tmp_path))
    monkeypatch.setattr(coco, "ARCHIVE", "http://127.0.0.1:1/a.zip")
    check_counts(coco.NAME, {"score": 10_000, "validation": 10_000})
    with pytest.raises(RaysenseError, match=r"`rungs.score.prompts` must be ≤ 10000"):
        check_counts(coco.NAME, {"score": 10_001})
    with pytest.raises(RaysenseError, match="cannot be had"):
        load_prompts(coco.NAME)
