"""A connection to Ray: the one there is, the one at an address, or a Ray of this machine's for the time being."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

from raysense.errors import RaysenseError
from raysense.execution.interrupt import handlers_kept, leave_soon

ANSWER_SECONDS = 10.0

# A local Ray would run its workers at nice 15, starved by whatever else the machine does.
_LOCAL_ENVIRONMENT = {"RAY_worker_niceness": "0"}

_SOCKET_BYTES = 107
"""What a path of a socket may have, on Linux; macOS has 103."""

_SOCKET_NAME = "/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
"""The longest that Ray puts behind the temporary folder."""

log = logging.getLogger("raysense")


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be connected to Ray while this is open.

    Args:
        address: Of a running cluster; None uses the one this process is connected to, or else starts Ray here.

    Raises:
        RaysenseError: No cluster answers, or Ray does not start.
    """
    _leave_uv_alone()
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        with handlers_kept(), _sigterm_is_ctrl_c():
            if address is None:
                _start_local(quiet)
            else:
                _join(address, quiet)
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _sigterm_is_ctrl_c() -> Iterator[None]:
    """While Ray starts, SIGTERM reaches a handler of its own, which ends the process without a word."""
    try:
        yield
    except SystemExit:
        leave_soon()
        raise KeyboardInterrupt from None


def _leave_uv_alone() -> None:
    """Under `uv run` Ray would upload the working folder and build every worker's environment anew.

    raysense's workers need neither: they are started from this environment, or have one of their own.
    """
    name = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
    os.environ.setdefault(name, "0")
    constants = sys.modules.get("ray._private.ray_constants")  # has read the environment already
    if constants is not None and os.environ[name] == "0" and hasattr(constants, name):
        setattr(constants, name, False)


def _join(address: str, quiet: dict[str, Any]) -> None:
    import ray

    try:
        if problem := _silence(address):
            raise ConnectionError(problem)
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RaysenseError(
            f"address: {address}: no Ray cluster answers ({in_short(error)}). Start one (`ray up cluster.yaml`), or "
            "leave the address out to run on this machine."
        ) from error


def _silence(address: str) -> str:
    """Why nobody answers there, or an empty string: Ray itself tries for minutes."""
    if address == "auto":
        from ray._private import services

        # Which cluster that is; one that is gone without a trace leaves its address behind.
        address = services.canonicalize_bootstrap_address("auto") or ""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return ""  # Ray says what is wrong with it, at once
    problem = [f"no answer from {host}:{port} within {ANSWER_SECONDS:g} s"]

    def ask() -> None:
        try:
            problem[0] = "" if _speaks(host.strip("[]"), int(port)) else f"{host}:{port} is no Ray cluster"
        except TimeoutError:
            pass
        except (OSError, OverflowError) as error:
            problem[0] = f"{host}:{port}: {getattr(error, 'strerror', None) or error}"

    asking = threading.Thread(target=ask, daemon=True)  # a name may take minutes to be looked up
    asking.start()
    asking.join(ANSWER_SECONDS + 1)
    return problem[0]


def _speaks(host: str, port: int) -> bool:
    """Whether an HTTP/2 server is there, as gRPC's are: it answers the preface with settings."""
    with socket.create_connection((host, port), timeout=ANSWER_SECONDS / 2) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return True
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        frame = connection.recv(9)
        return len(frame) > 3 and frame[3] == 4


def _start_local(quiet: dict[str, Any]) -> None:
    import ray

    place = temporary_folder()
    try:
        with environment(_LOCAL_ENVIRONMENT):
            # 127.0.0.2 is loopback too; Ray would turn 127.0.0.1 into the machine's outer address.
            ray.init(
                address="local",
                _node_ip_address="127.0.0.2",
                include_dashboard=False,
                _temp_dir=place,
                **quiet,
            )
    except Exception as error:  # Ray raises bare Exception when a busy machine takes longer than its 30 s
        raise RaysenseError(
            f"Ray does not start on this machine ({in_short(error)}). Free some CPU and memory and start again; "
            "Ray's logs say more."
        ) from error


def temporary_folder() -> str | None:
    """Where a local Ray puts its session if its own choice has too long a path for sockets; else None.

    Raises:
        RaysenseError: There is no shorter one.
    """
    own = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(own + _SOCKET_NAME)) <= _SOCKET_BYTES:
        return None
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        if os.access(folder, os.W_OK | os.X_OK):
            place = f"{folder}/ray-{os.getuid()}"
            log.warning("TMPDIR (%s) is too long for Ray's sockets; Ray's session is below %s", own, place)
            return place
    raise RaysenseError(
        f"TMPDIR is `{own}`: with it, the paths of Ray's sockets are longer than the {_SOCKET_BYTES} bytes that "
        f"systems allow. Set RAY_TMPDIR to a folder of at most {_SOCKET_BYTES - len(_SOCKET_NAME)} characters."
    )


def in_short(error: BaseException) -> str:
    """What Ray says of a process that died, in one sentence; of memory it says hundreds of lines."""
    text = str(error).strip()
    if re.search("running low on memory|OutOfMemory", f"{type(error).__name__} {text}"):
        used = re.search(r"was ([\d.]+ ?GB) used / ([\d.]+ ?GB) limit", text)
        amount = f" ({used[1]} of {used[2]} in use)" if used else ""
        return (
            f"Ray ended it because the machine was short of memory{amount}: run fewer evaluators, smaller batches, or "
            "less beside them"
        )
    return next(iter(text.splitlines()), type(error).__name__)[:300]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What Ray and Tune say of a process that died, pages of it, is shown with -v only: the run says what it means.

    Ray prints its nodes' messages to standard output, and has no public switch for that.
    """
    from ray._private import worker

    def told(data: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        for line in data.get("lines", ()):
            log.info("Ray: %s", line)

    tune, shown = logging.getLogger("ray.tune"), getattr(worker, "print_to_stdstream", None)
    level = tune.level
    if not log.isEnabledFor(logging.INFO):
        tune.setLevel(logging.CRITICAL)
    if shown is not None:
        worker.print_to_stdstream = told
    try:
        yield
    finally:
        tune.setLevel(level)
        if shown is not None:
            worker.print_to_stdstream = shown


@contextlib.contextmanager
def environment(wanted: dict[str, str]) -> Iterator[None]:
    """Have environment variables set while this is open."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
