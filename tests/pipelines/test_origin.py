"""A hub that refuses, or does not know, a pipeline: one clear sentence, soon."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SECONDS = 15


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does about repositories that are gated, or not there."""

    def do_GET(self) -> None:
        code = "GatedRepo" if "gated" in self.path else "RepoNotFound"
        self.send_response(403 if code == "GatedRepo" else 401 if "api" in self.path else 404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"{code} of the test")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def said(command: list[str], home: Path, **environment: str) -> str:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "raysense.cli", *command],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **environment},
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < SECONDS * float(os.environ.get("RAYSENSE_TEST_PATIENCE", "1"))
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", [["layers"], ["try", "--sparsity", "0.1"], ["plan", "--speed", "1"]])
@pytest.mark.parametrize(
    ("name", "told"),
    [("a/gated", "`a/gated` is gated on the hub"), ("a/absent", "has no repository `a/absent`")],
)
def test_what_the_hub_refuses_is_said(
    command: list[str], name: str, told: str, hub: str, tmp_path: Path
) -> None:
    line = said([*command, "--set", f"pipeline={name}"], tmp_path, HF_ENDPOINT=hub)
    assert line.startswith("raysense: error: `pipeline`")
    assert told in line


@pytest.mark.parametrize(
    "environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://no.such.host.invalid"}]
)
def test_without_a_hub_the_cache_is_all_there_is(environment: dict[str, str], tmp_path: Path) -> None:
    line = said(["layers", "--set", "pipeline=some/pipeline"], tmp_path, **environment)
    assert "as a hub id it is not in this machine's cache, and the hub" in line
