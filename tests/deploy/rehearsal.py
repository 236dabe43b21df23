"""A real `ray up` on one machine: `make cluster-test`.

Two machines and a laptop are made of Linux namespaces (processes, network, mounts, host name), so that nothing here
meets another Ray of this machine, `ray stop` and `ray down` see only what this test has started, and all of it ends
with the test, whatever happens. Then deploy/on-premises.yaml is used as a person would use it, with the addresses and
the key filled in: `ray up` over real SSH, a study by `ray job submit`, its results by `ray rsync-down`, `ray down`.

Needs Linux and root. Installs the Debian packages that are missing, and Ray's cluster launcher into the node's own
virtual environments; the heavy packages are those of this project's environment.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
MINUTES = 12
LAPTOP, HEAD, WORKER = "10.77.0.1", "10.77.0.2", "10.77.0.3"
INSIDE = ("unshare", "--mount", "--pid", "--fork", "--net", "--uts", "--kill-child", "--mount-proc")
DEBIAN = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "rsync": "rsync",
    "ip": "iproute2",
    "ss": "iproute2",
}
STUDY = {
    "name": "rehearsal",
    "search.granularity": "component",
    "search.bisections": "2",
    "search.rounds": "1",
    "search.offspring": "2",
    "search.levels": "3",
    "search.strategies": "[uniform, solver]",
    "rungs.probe": "{prompts: 4, timesteps: 2}",
    "rungs.preview.prompts": "8",
    "rungs.score.prompts": "12",
    "rungs.validation.prompts": "12",
    "sampling.steps": "4",
    "constraints": "{clip_score: {max_drop: 0.5}}",
    # Two cores an evaluator, of which each machine shows two: one evaluator a machine. Both sample a shard of whatever
    # has more than 8 images.
    "cluster": "{evaluators: 2, cpus_per_evaluator: 2, images_per_shard: 8}",
}


def main() -> int:
    """Prepares, enters the namespaces, cleans up."""
    if sys.platform != "linux" or os.geteuid() != 0:
        print("cluster-test: needs Linux and root: it makes its machines of namespaces", file=sys.stderr)
        return 2
    install_debian_packages()
    folder = Path(tempfile.mkdtemp(prefix="raysense-rehearsal-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    try:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(make_home, (folder / name for name in ("laptop", "head", "worker"))))
        say(f"homes and environments are made ({time.monotonic() - started:.0f} s)")
        process = subprocess.Popen([*INSIDE, sys.executable, "-m", __spec__.name, str(folder)], cwd=ROOT)
        try:
            status = process.wait(timeout=60 * MINUTES)
        except BaseException:
            process.send_signal(signal.SIGKILL)  # --kill-child takes the whole process namespace with it
            process.wait()
            raise
        say(f"{'passed' if status == 0 else 'FAILED'} after {time.monotonic() - started:.0f} s")
        return status
    except subprocess.TimeoutExpired:
        print(f"cluster-test: not done after {MINUTES} minutes", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def install_debian_packages() -> None:
    """Whatever of `DEBIAN` is not there."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    os.environ["PATH"] = path
    missing = sorted({package for tool, package in DEBIAN.items() if shutil.which(tool) is None})
    if missing:
        quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "check": True}
        subprocess.run(["apt-get", "update", "-qq"], **quiet)  # type: ignore[call-overload]
        subprocess.run(["apt-get", "install", "-qq", "-y", *missing], **quiet)  # type: ignore[call-overload]


def make_home(home: Path) -> None:
    """A machine's home with ~/raysense/venv: Python, Ray's cluster launcher, and no raysense yet."""
    venv = home / "raysense" / "venv"
    uv = Path(sys.executable).with_name("uv")
    # Nothing is seeded: that would be the newest pip, setuptools and what they need, not the lock's.
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, venv], check=True)
    # pip, torch and the rest are not installed anew: links to this environment's packages, without raysense and Ray.
    packages = home / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"_?_?(raysense|editable)|ray(-.*)?$|.*\.pth$|__pycache__$", entry.name):
            (packages / entry.name).symlink_to(entry)
    site = next(venv.glob("lib/python3*/site-packages"))
    (site / "shared.pth").write_text(f"{packages}\n")
    lock = ROOT / "deploy" / "cluster.lock"
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", venv / "bin/python", "--no-deps",
         *(pin for pin in launcher(lock, packages) if home.name != "worker" or pin.startswith("ray=="))],
        check=True,
    )  # fmt: skip


def launcher(lock: Path, packages: Path) -> list[str]:
    """What the lock has beside this environment's packages: what `ray up` and `ray job` need."""
    there = {re.sub(r"[-_.]+", "-", path.name.split("-")[0]).lower() for path in packages.glob("*.dist-info")}
    wanted = re.findall(r"^(([\w.-]+)==[^\s;]+)(?:\s*;\s*(.*))?$", lock.read_text(), re.MULTILINE)
    from packaging.markers import Marker

    return [
        pin
        for pin, name, marker in wanted
        if re.sub(r"[-_.]+", "-", name).lower() not in there and (not marker or Marker(marker).evaluate())
    ]


# --- inside the namespaces ----------------------------------------------------------------------------


class Laptop:
    """Where the person sits: runs `ray` with the cluster's file."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "laptop"
        self.ray = str(self.home / "raysense/venv/bin/ray")
        self.config = str(folder / "on-premises.yaml")
        self.environment = {
            "HOME": str(self.home),
            "PATH": f"{self.home}/raysense/venv/bin:{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            "RAY_TMPDIR": str(self.home / "ray"),
            "TMPDIR": str(self.home / "ray"),
            "TERM": "dumb",
        }

    def run(self, *command: str, check: bool = True, quiet: bool = False) -> str:
        """Runs a command; its output. The output of a failed one is shown."""
        say("$ " + " ".join(part.replace(str(self.home), "~") for part in command))
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise AssertionError(
                f"{command[0]} … ended with status {done.returncode}:\n{done.stdout[-6000:]}"
            )
        if not quiet:
            print("    " + "\n    ".join(done.stdout.strip().splitlines()[-6:]), flush=True)
        return done.stdout

    def exec(self, command: str, *, check: bool = True, quiet: bool = False) -> str:
        """Runs a command on the head by `ray exec`."""
        return self.run(self.ray, "exec", self.config, command, check=check, quiet=quiet)


def rehearse(folder: Path) -> None:
    """The whole guide, as docs/guides/cluster.md says it."""
    network()
    laptop = Laptop(folder)
    (laptop.home / "ray").mkdir()
    key = folder / "laptop" / ".ssh" / "id_ed25519"
    key.parent.mkdir(mode=0o700)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    runs = folder / "shared"
    runs.mkdir()
    for name, address in (("head", HEAD), ("worker", WORKER)):
        machine(folder / name, address, key.with_suffix(".pub"), runs)
    config = filled_in(yaml.safe_load((ROOT / "deploy/on-premises.yaml").read_text()), key)
    Path(laptop.config).write_text(yaml.safe_dump(config, sort_keys=False))

    token = laptop.run(laptop.ray, "get-auth-token", "--generate", quiet=True).split()[-1]
    began = time.monotonic()
    laptop.run(laptop.ray, "up", "--yes", "--no-config-cache", laptop.config)
    say(f"ray up took {time.monotonic() - began:.0f} s")

    venv = "RAY_AUTH_MODE=token ~/raysense/venv/bin"
    version = laptop.exec("~/raysense/venv/bin/raysense --version", quiet=True)
    assert "raysense 0." in version, version
    where = laptop.exec(
        "cd / && ~/raysense/venv/bin/python -c 'import raysense; print(raysense.__file__)' && "
        "~/raysense/venv/bin/raysense validate ~/raysense/bundle/search/quickstart.yaml | head -1",
        quiet=True,
    )
    assert "venv/lib" in where, f"not the wheel: {where}"
    assert "name: quickstart" in where, where
    ports = laptop.exec("ss -ltnH", quiet=True)
    assert "127.0.0.1:8265" in ports, ports
    assert not re.search(r"(0\.0\.0\.0|\*|10\.77\.0\.2):8265", ports), ports
    refused = laptop.exec(
        "RAY_AUTH_MODE=disabled ~/raysense/venv/bin/ray job list --address http://127.0.0.1:8265",
        check=False,
        quiet=True,
    )
    assert re.search(r"401|[Uu]nauthorized|[Aa]uthenticat", refused), f"no token, but: {refused[-500:]}"
    say("dashboard on loopback only; a client without the token is refused")

    wait_for_worker(laptop, venv)

    changes = " ".join(f"--set '{name}={value}'" for name, value in STUDY.items())
    job = f"{venv}/ray job submit --address http://127.0.0.1:8265 --submission-id rehearsal"
    laptop.exec(
        f"{job} --no-wait -- ~/raysense/venv/bin/raysense search ~/raysense/bundle/search/quickstart.yaml "
        f"{changes.replace(chr(39), chr(34))} --address auto --resume --out ~/raysense/runs/rehearsal"
    )
    # The terminal that submitted is closed; everything from here on is a new connection.
    status = ""
    while "Job 'rehearsal' succeeded" not in status:
        time.sleep(5)
        status = laptop.exec(f"{venv}/ray job status --address http://127.0.0.1:8265 rehearsal", quiet=True)
        if "Job 'rehearsal' failed" in status or "Job 'rehearsal' was stopped" in status:
            log = laptop.exec(f"{venv}/ray job logs --address http://127.0.0.1:8265 rehearsal", quiet=True)
            raise AssertionError(f"the study failed:\n{log[-6000:]}")
    laptop.exec(f"{venv}/ray job logs --address http://127.0.0.1:8265 rehearsal")

    results = folder / "results"
    results.mkdir()
    laptop.run(
        laptop.ray, "rsync-down", laptop.config, "~/raysense/runs/rehearsal/", f"{results}/", quiet=True
    )
    check_results(results)

    laptop.run(laptop.ray, "down", "--yes", laptop.config, quiet=True)
    for address in (HEAD, WORKER):
        left = left_on(address, key)
        print(f"    left on {address}: {left or 'nothing'}", flush=True)
        assert address != HEAD or not left, f"ray down left {left}"
    assert token not in Path(laptop.config).read_text()


def wait_for_worker(laptop: Laptop, venv: str) -> None:
    """`ray up` starts the head, the head then the worker, over SSH of its own; the study would not wait for it."""
    alive = 'sum(node["Alive"] for node in ray.nodes())'
    began = time.monotonic()
    while time.monotonic() - began < 240:
        nodes = laptop.exec(
            f'{venv}/python -c \'import ray; ray.init("auto", log_to_driver=False); print("alive:", {alive})\'',
            quiet=True,
        )
        if "alive: 2" in nodes:
            say(f"the worker joined {time.monotonic() - began:.0f} s after `ray up`")
            return
        time.sleep(2)
    log = laptop.exec("tail -n 60 /tmp/ray/session_latest/logs/monitor.out", check=False, quiet=True)
    raise AssertionError(f"the worker has not joined in 240 s:\n{log[-6000:]}")


def left_on(address: str, key: Path) -> str:
    """Ray's processes on a machine, half a minute after the order to stop."""
    command = [
        "ssh",
        "-i",
        str(key),
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-q",
    ]
    command += [f"root@{address}", "ps -eo comm | grep -E '^(raylet|gcs_server|ray::)'"]
    for _ in range(15):
        left = subprocess.run(command, text=True, capture_output=True, check=False).stdout.strip()
        if not left:
            break
        time.sleep(2)
    return " ".join(left.split())


def check_results(results: Path) -> None:
    """Parquet and answer have come back, and both machines have measured."""
    import pyarrow.parquet as pq

    summary = json.loads((results / "summary.json").read_text())
    rows = pq.read_table(results / "tables" / "evaluations").to_pylist()
    assert summary["feasible"] is True
    assert len(rows) == summary["evaluations"] == len({row["key"] for row in rows})
    hosts = {row["evaluator"].rsplit("-", 2)[0] for row in rows}
    assert hosts == {"head", "worker"}, hosts
    sampled = [row for row in rows if row["rung"] == "shard"]
    assert {row["evaluator"].rsplit("-", 2)[0] for row in sampled} == hosts, (
        "shards of one evaluation on one machine"
    )
    assert all(row["images"] == 0 for row in rows if row["rung"] in ("score", "validation"))
    pages = [path.name for path in results.glob("*.html")]
    say(f"{len(rows)} evaluations, measured on {' and '.join(sorted(hosts))}; page: {pages or 'none made'}")


def network() -> None:
    """The laptop's end: a bridge that the machines are plugged into."""
    for command in (
        "ip link set lo up",
        "ip link add wire type bridge",
        f"ip addr add {LAPTOP}/24 dev wire",
        "ip link set wire up",
    ):
        subprocess.run(command.split(), check=True)


def machine(home: Path, address: str, public_key: Path, runs: Path) -> None:
    """A machine with an SSH server: its own processes, network, host name, /tmp/ray and home; it shares `runs`."""
    name = home.name
    ssh = home / ".ssh"
    ssh.mkdir(mode=0o700)
    shutil.copy(public_key, ssh / "authorized_keys")
    (home / "raysense" / "runs").mkdir()
    (home / "ray").mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(ssh / "host")], check=True)
    users = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
    (home / "passwd").write_text(
        "\n".join(
            ":".join([*user[:5], str(home), "/bin/bash"] if user[0] == "root" else user) for user in users
        )
        + "\n"
    )
    server = [
        "/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-h", str(ssh / "host"), "-E", str(home / "sshd.log"),
        *(f"-o{option}" for option in (
            "UsePAM=no", "StrictModes=no", "PermitRootLogin=prohibit-password", "PidFile=none",
            f"ListenAddress={address}",
            # The machines are not on the Internet, and the settings of this one's pip are not theirs. A busy machine
            # takes longer to start two of Ray than Ray waits.
            "SetEnv=PIP_CONFIG_FILE=/dev/null PIP_NO_INDEX=1 RAY_raylet_start_wait_time_s=180 "
            "RAY_agent_register_timeout_ms=180000",
        )),
    ]  # fmt: skip
    # /tmp/ray is Ray's fixed place, and the other machine's is another one.
    script = (
        f"set -e; hostname {name}; mkdir -p /run/sshd /tmp/ray; mount --bind {home}/passwd /etc/passwd; "
        f"mount --bind {home}/ray /tmp/ray; mount --bind {runs} {home.parent}/head/raysense/runs; "
        f"until ip addr show dev eth0 2>/dev/null | grep -q {address}; do sleep 0.1; done; exec {shlex.join(server)}"
    )
    process = subprocess.Popen([*INSIDE, "bash", "-c", script])
    time.sleep(1.0)  # `unshare` is in its namespaces
    enter = f"nsenter --net --target {process.pid}"
    for command in (
        f"ip link add {name} type veth peer name eth0 netns {process.pid}",
        f"ip link set {name} master wire up",
        f"{enter} ip link set lo up",
        f"{enter} ip addr add {address}/24 dev eth0",
        f"{enter} ip link set eth0 up",
        f"{enter} ip route add default via {LAPTOP}",
    ):
        subprocess.run(command.split(), check=True)
    wait_for_ssh(address)


def wait_for_ssh(address: str) -> None:
    """Until a machine answers."""
    import socket

    for _ in range(100):
        try:
            with socket.create_connection((address, 22), timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no SSH server at {address}")


def filled_in(config: dict[str, Any], key: Path) -> Mapping[str, Any]:
    """What a person writes into deploy/on-premises.yaml; nothing else is changed."""
    provider = {**config["provider"], "head_ip": HEAD, "worker_ips": [WORKER]}
    return {**config, "provider": provider, "auth": {"ssh_user": "root", "ssh_private_key": str(key)}}


def say(text: str) -> None:
    """A line of the test's own."""
    print(f"cluster-test: {text}", flush=True)


def run_inside(arguments: Sequence[str]) -> int:
    """In the namespaces: the rehearsal itself."""
    try:
        rehearse(Path(arguments[0]))
    except AssertionError as error:
        print(f"cluster-test: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_inside(sys.argv[1:]) if len(sys.argv) > 1 else main())
