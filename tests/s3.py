"""A real S3-speaking server on loopback, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def s3_server() -> Iterator[str]:
    """A server with a bucket ``studies``; gives a pattern for addresses of stores in it.

    The credentials stand in the addresses, so that workers started earlier have them too.
    """
    server = pytest.importorskip("moto.server")
    import boto3

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        moto.start()
        host, port = moto.get_host_and_port()
        boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{port}",
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        ).create_bucket(Bucket="studies")
        query = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        yield f"s3://test:secret@studies/{{}}?{query}"
        moto.stop()
