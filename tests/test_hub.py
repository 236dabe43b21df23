"""A hub that does not answer is found out once and quickly."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from raysense.hub import silence


@pytest.fixture
def hole() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def trickle() -> Iterator[str]:
    """A server that sends a byte now and then, which no limit on a single read ends."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(4)

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            for _ in range(40):
                connection.sendall(b"H")
                time.sleep(0.1)

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.close()


def test_silence_is_found_out_in_time(hole: str, trickle: str) -> None:
    for endpoint in (hole, trickle):
        began = time.monotonic()
        assert silence(endpoint, seconds=1) == "no answer within 1 s"
        assert time.monotonic() - began < 3
    assert "refused" in silence("http://127.0.0.1:1", 5)
    assert silence("http://no.such.host.invalid", 5) != ""
    assert "unknown url type" in silence("nonsense", 5)


def test_any_answer_is_an_answer() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(401)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert silence(f"http://127.0.0.1:{server.server_port}", 5) == ""
    server.shutdown()
    server.server_close()


def test_a_command_answers_although_its_hub_does_not(hole: str) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hole, "HF_HUB_OFFLINE": "0", "HF_HUB_ETAG_TIMEOUT": "2"}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "raysense.cli", "layers", "--pipeline", "some/pipeline"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert time.monotonic() - began < 60
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert f"the hub {hole} cannot be reached (no answer within 2 s)" in error
    assert error.startswith("raysense: error: `pipeline`")
