"""Connecting to Ray: nobody answers, a long TMPDIR, `uv run`, memory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raysense.errors import RaysenseError
from raysense.execution.ray import connection
from raysense.execution.ray.connection import connected, in_short, temporary_folder


def test_an_address_where_nobody_answers_is_said_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 2.0)
    with socket.socket() as hole:  # accepts, never answers
        hole.bind(("127.0.0.1", 0))
        hole.listen(8)
        for address, words in (
            (f"127.0.0.1:{hole.getsockname()[1]}", "no answer from 127.0.0.1"),
            (f"ray://127.0.0.1:{hole.getsockname()[1]}", "no answer from 127.0.0.1"),
            ("127.0.0.1:1", "refused"),
            ("no.such.host.invalid:6379", "no.such.host.invalid:6379: "),
            ("127.0.0.1:99999999", "127.0.0.1:99999999"),
        ):
            began = time.monotonic()
            with pytest.raises(RaysenseError, match=words) as caught, connected(address):
                pass
            assert time.monotonic() - began < 5
            assert "ray up cluster.yaml" in str(caught.value)
            assert "\n" not in str(caught.value)


def test_a_cluster_that_is_there_answers(local_ray: str) -> None:
    assert connection._silence(local_ray) == ""


def test_a_web_server_is_no_cluster() -> None:
    program = "import http.server; s = http.server.HTTPServer(('127.0.0.1', 0), http.server.BaseHTTPRequestHandler); print(s.server_port, flush=True); s.serve_forever()"  # noqa: E501
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        assert connection._silence(f"127.0.0.1:{port}") == f"127.0.0.1:{port} is no Ray cluster"
        server.kill()


def test_a_long_tmpdir_is_stepped_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/short")
    assert temporary_folder() is None
    monkeypatch.setenv("TMPDIR", "/scratch/" + "x" * 90)
    assert temporary_folder() == f"/tmp/ray-{os.getuid()}"
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(RaysenseError, match=r"Set RAY_TMPDIR to a folder of at most 3[0-9] characters"):
        temporary_folder()


def test_a_local_ray_starts_under_uv_with_a_long_tmpdir(tmp_path: Path) -> None:
    """`uv run` is what Ray takes any process for whose parent's command line says so; with it, it uploads files."""
    long = tmp_path / ("x" * 90)
    long.mkdir()
    (tmp_path / "bin").mkdir()
    program = """
from raysense.execution.ray.connection import connected
with connected(None):
    import ray
    where = ray.remote(num_cpus=0)(lambda: __import__("os").getcwd())
    print("WORKER", ray.get(where.remote()), ray.get_runtime_context().get_runtime_env_string())
"""
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("no uv beside this Python")
    done = subprocess.run(
        [uv, "run", "--offline", "--no-project", "--python", sys.executable, "python", "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "TMPDIR": str(long),
            "RAY_ADDRESS": "127.0.0.1:1",
            "UV_CACHE_DIR": str(tmp_path / "uv"),
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"WORKER {tmp_path} {{}}" in done.stdout


def test_what_ray_says_of_memory_is_one_sentence() -> None:
    words = "2 worker(s) were killed due to the node running low on memory.\n"
    words += "Memory on the node was 9.69GB used / 23.54GB limit (0.4)\n"
    assert in_short(RuntimeError(words + "Top 10 memory users:\n" * 700)) == (
        "Ray ended it because the machine was short of memory (9.69GB of 23.54GB in use): run fewer evaluators, "
        "smaller batches, or less beside them"
    )
    assert in_short(RuntimeError("a\nb")) == "a"
    assert in_short(RuntimeError()) == "RuntimeError"
