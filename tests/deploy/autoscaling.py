"""A study across an autoscaled cluster, 0 -> 2 -> 0 worker nodes: part of `make cluster-test`.

Ray's own autoscaler, with its `fake_multinode` provider: a node is a raylet of its own on this machine. The head has no
CPU for evaluators, so the study that asks for two of them makes the autoscaler bring two nodes, and when it is done
they go. Everything lives in namespaces of its own (see `tests.deploy.rehearsal`) and ends with the test.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from tests.deploy.rehearsal import INSIDE, ROOT, STUDY, say

MINUTES = 12
CONFIG = {
    "cluster_name": "autoscaling",
    "max_workers": 2,
    "upscaling_speed": 10,
    "idle_timeout_minutes": 0.2,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "auth": {},
    "docker": {},
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    "head_node_type": "ray.head.default",
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}
ENVIRONMENT = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "0",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_raylet_start_wait_time_s": "180",
    "RAY_agent_register_timeout_ms": "180000",
    "RAY_AUTH_MODE": "token",  # said aloud: a token that some local Ray has left behind would decide it otherwise
    "RAY_AUTH_TOKEN": secrets.token_hex(16),
    "PYTHONPATH": str(ROOT),
}


def main() -> int:
    """Enters the namespaces, cleans up."""
    if sys.platform != "linux" or os.geteuid() != 0:
        print("autoscaling: needs Linux and root", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="raysense-autoscaling-", ignore_cleanup_errors=True) as folder:
        Path(folder, "ray").mkdir()
        script = (
            f"set -e; ip link set lo up; mkdir -p /tmp/ray; mount --bind {folder}/ray /tmp/ray; "
            f"exec {sys.executable} -m {__spec__.name} {folder}"
        )
        process = subprocess.Popen(
            [*INSIDE, "bash", "-c", script], cwd=ROOT, env={**os.environ, **ENVIRONMENT}
        )
        try:
            return process.wait(timeout=60 * MINUTES)
        except subprocess.TimeoutExpired:
            print(f"autoscaling: not done after {MINUTES} minutes", file=sys.stderr)
            return 1
        finally:
            process.kill()  # --kill-child: the whole process namespace goes
            process.wait()


def scale(folder: Path) -> int:
    """In the namespaces: head, study, and the number of worker nodes all the while."""
    import ray

    (folder / "cluster.yaml").write_text(yaml.safe_dump(CONFIG))
    command = Path(sys.executable).with_name("ray")
    subprocess.run(
        [command, "start", "--head", "--port=6379", "--num-cpus=0", "--node-ip-address=127.0.0.1",
         "--include-dashboard=false", f"--autoscaling-config={folder / 'cluster.yaml'}"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    ray.init(address="127.0.0.1:6379", log_to_driver=False, logging_level="ERROR")
    out = folder / "run"
    changes = {**STUDY, "cluster": "{evaluators: 2, cpus_per_evaluator: 1}"}
    settings = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    seen = [workers()]
    study = subprocess.Popen(
        [sys.executable, "-m", "raysense.cli", "search", *settings, "--address", "127.0.0.1:6379", "--out", out],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while study.poll() is None:
        note(seen)
        time.sleep(0.5)
    say(f"the study ended with status {study.returncode}; worker nodes so far: {seen}")
    end = time.monotonic() + 180
    while workers() and time.monotonic() < end:
        note(seen)
        time.sleep(0.5)
    note(seen)
    say(f"worker nodes over time: {seen}")
    summary = json.loads((out / "summary.json").read_text())
    say(f"{summary['evaluations']} evaluations, {summary['sparsity_components']:.1%} of the components")
    good = study.returncode == 0 and seen[0] == 0 and max(seen) == 2 and seen[-1] == 0
    return 0 if good and summary["feasible"] else 1


def workers() -> int:
    """Worker nodes that are alive."""
    import ray

    return sum(node["Alive"] for node in ray.nodes()) - 1  # type: ignore[no-untyped-call]


def note(seen: list[int]) -> None:
    """Adds the number of workers where it has changed."""
    now = workers()
    if now != seen[-1]:
        seen.append(now)


if __name__ == "__main__":
    sys.exit(scale(Path(sys.argv[1])) if len(sys.argv) > 1 else main())
