from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def local_ray() -> Iterator[str]:
    """A Ray of four fake CPUs for all tests of this folder; gives its address."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # the name that Ray reads
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
