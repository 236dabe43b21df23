"""Connecting to Ray: nobody answers, a long TMPDIR, `uv run`, memory."""

from __future__ import annotations

import os
import re
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
    assert temporary_folder() == f"/tmp/raysense-{os.getuid()}/ray"

    def refused(name: str, below: str) -> Path:
        raise OSError("somebody else was first")

    monkeypatch.setattr(connection, "own_folder", refused)
    with pytest.raises(RaysenseError, match=r"Set RAY_TMPDIR to a folder of at most 3[0-9] characters"):
        temporary_folder()


LOCAL = """
import collections, os, subprocess, sys
import psutil
from raysense.execution.ray.connection import connected
with connected(None):
    import ray
    where = ray.remote(num_cpus=0)(lambda: (os.getcwd(), os.environ["RAY_AUTH_TOKEN"]))
    folder, token = ray.get(where.remote())
    print("WORKER", folder, ray.get_runtime_context().get_runtime_env_string())
    me, hosts = psutil.Process(), collections.Counter()
    for process in (me, *me.children(recursive=True)):
        assert token not in " ".join(process.cmdline())
        hosts.update(c.laddr.ip for c in process.net_connections("inet") if c.status == "LISTEN")
    print("LISTENS", *(f"{count} on {host}" for host, count in sorted(hosts.items())))
    ask = "import sys; from ray._raylet import GcsClient;"
    ask += "print(GcsClient(address=sys.argv[1]).internal_kv_keys(b'', None, 5))"
    command = [sys.executable, "-c", ask, ray.get_runtime_context().gcs_address]
    for mode, other in (("disabled", ""), ("token", "0" * 64)):
        stranger = {**os.environ, "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": other}
        asked = subprocess.run(command, env=stranger, capture_output=True, text=True)
        print("STRANGER", mode, "refused" if "uthenticat" in asked.stderr else asked.stdout + asked.stderr)
print("AFTER", os.environ["RAY_AUTH_MODE"], os.environ.get("RAY_AUTH_TOKEN"))
"""


def test_a_local_ray_has_its_doors_shut_also_under_uv_with_a_long_tmpdir(tmp_path: Path) -> None:
    """`uv run` is what Ray takes any process for whose parent's command line says so; with it, it uploads files."""
    long = tmp_path / ("x" * 90)
    long.mkdir()
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("no uv beside this Python")
    done = subprocess.run(
        [uv, "run", "--offline", "--no-project", "--python", sys.executable, "python", "-c", LOCAL],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "TMPDIR": str(long),
            "RAY_ADDRESS": "127.0.0.1:1",
            "RAY_AUTH_MODE": "disabled",  # of whoever has clusters without a token
            "HOME": str(tmp_path),
            "UV_CACHE_DIR": str(tmp_path / "uv"),
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert said["WORKER"] == f"{tmp_path} {{}}"
    hosts = re.findall(r"\d+ on (\S+)", said["LISTENS"])
    assert hosts
    assert {host.removeprefix("::ffff:") for host in hosts} == {"127.0.0.1"}, said["LISTENS"]
    assert "STRANGER disabled refused" in done.stdout
    assert "STRANGER token refused" in done.stdout
    assert said["AFTER"] == "disabled None"
    assert not (tmp_path / ".ray").exists()  # the token is in no file


def test_a_token_that_others_may_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    token = tmp_path / "auth_token"
    token.write_text("0" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for mode, words in ((0o644, f"chmod 600 {token}"), (0o600, "")):
        token.chmod(mode)
        caplog.clear()
        with pytest.raises(RaysenseError, match="refused"):
            connection._join("127.0.0.1:1", {})
        assert words in caplog.text
        assert bool(caplog.text) is bool(words)


def test_what_ray_says_of_memory_is_one_sentence() -> None:
    words = "2 worker(s) were killed due to the node running low on memory.\n"
    words += "Memory on the node was 9.69GB used / 23.54GB limit (0.4)\n"
    assert in_short(RuntimeError(words + "Top 10 memory users:\n" * 700)) == (
        "Ray ended it because the machine was short of memory (9.69GB of 23.54GB in use): run fewer evaluators, "
        "smaller batches, or less beside them"
    )
    assert in_short(RuntimeError("a\nb")) == "a"
    assert in_short(RuntimeError()) == "RuntimeError"
