from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

# 127.0.0.2 is loopback too; Ray would turn 127.0.0.1 into the machine's outer address.
HOST = "127.0.0.2"


def node_arguments() -> dict[str, Any]:
    """What every simulated node is started with.

    With ports given, a node does not wait 15 s for its helper processes and end if a busy machine takes longer.
    """
    names = (
        "metrics_agent_port",
        "metrics_export_port",
        "dashboard_agent_listen_port",
        "runtime_env_agent_port",
    )
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for one in sockets:
            one.bind((HOST, 0))
        ports = {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}
    return {"node_ip_address": HOST, "include_dashboard": False, **ports}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A Ray cluster on this machine: a head with four fake CPUs; tests may add nodes."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # the name that Ray reads
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 0, **node_arguments()}
    )
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="session")
def local_ray(cluster: Any) -> Iterator[str]:
    """This process is connected to the cluster; gives its address."""
    import ray

    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster.address
    ray.shutdown()
