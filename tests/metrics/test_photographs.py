"""COCO's photographs from a server of COCO's layout on this machine: small real JPEGs, kills, damage, no network."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from raysense.cli import main
from raysense.errors import RaysenseError
from raysense.evaluation.inputs import reference_content
from raysense.evaluation.scoring import ImageScorer
from raysense.metrics import photographs, references
from raysense.prompts import coco
from raysense.search.prepare import prepare
from raysense.study import load

COUNT = 12
NUMBERS = [9 + 1_000 * ((7 * n) % COUNT) for n in range(COUNT)]
NAMES = [f"{number:012d}.jpg" for number in NUMBERS]
"""In the order of their captions, which is not that of their numbers."""


def jpeg(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((64, 48)).save(buffer, "JPEG")
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Gives the pictures, unless told otherwise.

    Attributes:
        asked: Paths, in order.
        at_once: The most requests that were answered at a time.
        instead: File -> what comes in its place: content, or a number of bytes after which the line breaks.
        fail_after: Requests that are answered before all others are refused; None for all.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.instead: dict[str, bytes | int] = {}
        self.fail_after: int | None = None
        self.at_once = self.busy = 0
        self.counting = threading.Lock()
        self.pictures = dict(zip(NAMES, map(jpeg, NUMBERS), strict=True))


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        with server.counting:
            server.asked.append(self.path)
            server.busy += 1
            server.at_once = max(server.at_once, server.busy)
            refused = server.fail_after is not None and len(server.asked) > server.fail_after
        time.sleep(0.01)
        name = self.path.removeprefix("/train2017/")
        content = server.pictures.get(name)
        instead = server.instead.get(name)
        if isinstance(instead, bytes):
            content = instead
        if refused or content is None:
            self.send_error(503 if refused else 404)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:instead] if isinstance(instead, int) else content)
        with server.counting:
            server.busy -= 1

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server, an empty cache that has the captions alone, and no waiting between tries."""
    running = Server()
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(photographs, "SERVER", f"http://127.0.0.1:{running.server_port}/train2017/")
    monkeypatch.setattr(photographs, "TRIES", 1)
    monkeypatch.setattr(coco, "PER_SET", COUNT)
    monkeypatch.setenv("RAYSENSE_CACHE", str(tmp_path / "cache"))
    captions = tmp_path / "cache" / f"{coco.NAME}-disjoint.jsonl"
    captions.parent.mkdir()
    rows = [
        {"id": f"coco-{number}", "prompt": f"photograph {number}", "split": "search"} for number in NUMBERS
    ]
    rows += [{"id": f"coco-{n}", "prompt": f"held out {n}", "split": "validation"} for n in range(70, 90)]
    captions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    yield running
    running.shutdown()
    running.server_close()


def fetched(limit: int | None = None) -> int:
    (*_, done) = photographs.fetch(limit)
    return done


def there() -> set[str]:
    return {file.name for file in photographs.folder().glob("*") if file.suffix in (".jpg", "")} - {".lock"}


def recorded() -> dict[str, str]:
    lines = (photographs.folder() / photographs.HASHES).read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


def test_they_are_fetched_once_a_few_at_a_time_with_their_hashes(server: Server) -> None:
    assert fetched(5) == 5
    assert there() == set(NAMES[:5])
    assert fetched() == COUNT
    assert sorted(server.asked) == sorted(f"/train2017/{name}" for name in NAMES), "each once"
    assert 1 < server.at_once <= photographs.AT_A_TIME
    assert [file.name for file in photographs.files(None)] == NAMES, "in the order of the captions"
    assert [file.read_bytes() for file in photographs.files(3)] == [jpeg(n) for n in NUMBERS[:3]]
    assert recorded() == {
        name: hashlib.sha256(content).hexdigest() for name, content in server.pictures.items()
    }
    assert fetched() == COUNT
    assert len(server.asked) == COUNT
    (first, second) = (picture.where for picture in references.pictures(Path(photographs.NAME), 2))
    assert [Path(first).name, Path(second).name] == NAMES[:2]


def test_what_was_fetched_before_a_failure_stays(server: Server) -> None:
    server.fail_after = 5
    with pytest.raises(RaysenseError, match=r"photographs are still to come.*503.*it goes on"):
        fetched()
    kept = there()
    assert 1 <= len(kept) <= 5
    assert set(recorded()) <= kept
    with pytest.raises(
        RaysenseError, match=rf"{COUNT - len(kept)} of {COUNT} photographs are missing.*prepare"
    ):
        photographs.files(None)
    (photographs.folder() / "tmpkilled").write_bytes(b"half a picture of a process that was killed")
    server.fail_after, before = None, len(server.asked)
    assert fetched() == COUNT
    assert len(server.asked) - before == COUNT - len(kept)
    assert there() == set(NAMES)
    assert set(recorded()) == set(NAMES)


@pytest.mark.parametrize(
    "instead", [b"<html>please log in</html>", jpeg(3)[:-200], 400], ids=["page", "half", "line breaks"]
)
def test_what_is_no_whole_jpeg_never_stands_in_its_place(server: Server, instead: bytes | int) -> None:
    server.instead[NAMES[0]] = instead
    with pytest.raises(RaysenseError, match="photographs are still to come"):
        fetched(1)
    assert there() == set()
    server.instead.clear()
    assert fetched(1) == 1


def test_a_moment_of_trouble_is_tried_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "TRIES", 2)
    waiting = SimpleNamespace(sleep=lambda seconds: server.instead.clear())
    monkeypatch.setattr("pooch.core.time", waiting)
    server.instead[NAMES[0]] = b""
    assert fetched(1) == 1
    assert len(server.asked) == 2


def test_damage_on_the_disk_is_mended_and_another_content_refused(server: Server) -> None:
    fetched(2)
    place = photographs.folder() / NAMES[0]
    place.write_bytes(jpeg(99))
    assert fetched(2) == 2
    assert place.read_bytes() == jpeg(NUMBERS[0])
    place.unlink()
    server.instead[NAMES[0]] = jpeg(99)
    with pytest.raises(RaysenseError, match=r"hash of downloaded file .* does not match the known hash"):
        fetched(2)
    (photographs.folder() / photographs.HASHES).write_text("0" * 64 + "  nothing\n")
    with pytest.raises(RaysenseError, match=r"is damaged .* delete it"):
        fetched(2)


def test_pictures_put_there_by_hand_are_taken(server: Server) -> None:
    photographs.folder().mkdir()
    (photographs.folder() / NAMES[0]).write_bytes(jpeg(NUMBERS[0]))
    (photographs.folder() / NAMES[1]).write_bytes(jpeg(NUMBERS[1])[:-300])
    assert fetched(2) == 2
    assert server.asked == [f"/train2017/{NAMES[1]}"]
    assert set(recorded()) == set(NAMES[:2])


def test_no_network_and_no_room_are_said_in_one_error(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as without:
        without.setattr(photographs, "SERVER", "http://127.0.0.1:1/train2017/")
        assert main(["prepare", "--set", f"metrics.reference.path={photographs.NAME}"]) == 2
        shown = capsys.readouterr().err
        assert "12 photographs are still to come, but http://127.0.0.1:1/train2017/ does not give" in shown
        assert "Traceback" not in shown
    monkeypatch.setattr(photographs, "MEAN_BYTES", 1 << 60)
    with pytest.raises(RaysenseError, match=r"12 photographs take some .* GB left; make room"):
        fetched()
    assert not server.asked


def test_a_study_is_compared_with_them(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [
        f"metrics.reference.path={photographs.NAME}", "sampling.steps=1", "rungs.preview.prompts=8",
        "rungs.score.prompts=8", "rungs.validation.prompts=8",
    ]  # fmt: skip
    settings = [part for value in values for part in ("--set", value)]
    assert main(["validate", *settings]) == 0, "whether they are there is another question"
    assert main(["search", *settings, "--out", str(tmp_path / "refused")]) == 2
    assert "12 of 12 photographs are missing" in capsys.readouterr().err
    study, run = load(overrides=values), str(tmp_path / "run")
    found = {thing.what: thing.text for thing in prepare(study, run)}
    assert "12 of 12" in found["photographs"]
    assert "features of 12 images" in found["reference"]
    scorer = ImageScorer(study)
    assert reference_content(scorer.external)
    assert len(scorer.external_features(32)["features"]) == len(server.asked) == COUNT
    assert photographs.need(4) == (
        f"The reference: 4 photographs of COCO, some 0.00065 GB in {photographs.folder()} (12 are there); "
        "`raysense prepare` fetches them."
    )
