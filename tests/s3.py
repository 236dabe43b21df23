"""A real S3-speaking server on loopback, for tests; `python -m tests.s3` is one in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

Application = Callable[[Any, Any], Iterable[bytes]]


@contextmanager
def s3_server(
    through: Callable[[Application], Application] = lambda application: application,
) -> Iterator[str]:
    """A server with a bucket ``studies``; gives a pattern for addresses of stores in it.

    Credentials are the ones that `tests/conftest.py` puts into the environment; workers have them too.

    Args:
        through: Stands before the server, as a faulty proxy does.
    """
    pytest.importorskip("moto.server")
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    whole, one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def atomic(environ: Any, start: Any) -> Iterable[bytes]:
        with one_at_a_time:  # moto looks and writes in two steps; S3 does it in one
            return list(whole(environ, start))

    server = make_server("127.0.0.1", 0, through(atomic), threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    at = f"127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        boto3.client("s3", endpoint_url=f"http://{at}", region_name="us-east-1").create_bucket(
            Bucket="studies"
        )
        try:
            yield f"s3://studies/{{}}?endpoint_override={at}&scheme=http&region=us-east-1"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@contextmanager
def s3_server_apart() -> Iterator[str]:
    """`s3_server` in a process of its own: moto never lets go of a deleted object, and a soak measures our memory."""
    command = [sys.executable, "-m", "tests.s3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            pattern = process.stdout.readline().strip()
            assert pattern, "the server did not start"
            yield pattern
        finally:
            process.terminate()


if __name__ == "__main__":
    with s3_server() as pattern_:
        print(pattern_, flush=True)
        threading.Event().wait()
