"""A connection to Ray: the one there is, the one at an address, or a Ray of this machine's for the time being."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import socket
import stat
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raysense.errors import RaysenseError
from raysense.execution.interrupt import handlers_kept, leave_soon
from raysense.execution.ray.watch import RayWatch
from raysense.temporary_folders import own_folder

ANSWER_SECONDS = 10.0

_LOCAL_ENVIRONMENT: dict[str, str | None] = {
    # A local Ray would run its workers at nice 15, starved by whatever else the machine does.
    "RAY_worker_niceness": "0",
    # As on macOS and Windows: a Ray of one machine listens on 127.0.0.1 only. Elsewhere Ray turns that address into
    # the machine's outer one, and every process of it listens on all interfaces.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # With no mode given, Ray asks for a token wherever `ray.init` starts it (since 2.59). This one is in no file, where
    # Ray's own would be readable by all, and later turn authentication on for other clusters.
    "RAY_AUTH_MODE": None,
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}

TOKEN_FILE = Path("~/.ray/auth_token")
"""Where Ray looks for a cluster's token when the environment names none."""

_SOCKET_BYTES = 107
"""What a path of a socket may have, on Linux; macOS has 103."""

_SOCKET_NAME = "/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
"""The longest that Ray puts behind the temporary folder."""

log = logging.getLogger("raysense")


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[RayWatch]:
    """Be connected to Ray while this is open.

    Args:
        address: Of a running cluster; None uses the one this process is connected to, or else starts Ray here.

    Yields:
        A watch over that Ray.

    Raises:
        RaysenseError: No cluster answers, or Ray does not start.
    """
    _leave_uv_alone()
    import ray

    if ray.is_initialized():
        with RayWatch() as watch:
            yield watch
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        with handlers_kept(), _sigterm_is_ctrl_c():
            if address is None:
                _start_local(quiet)
            else:
                _join(address, quiet)
        with RayWatch() as watch:
            yield watch
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


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """See `_LOCAL_ENVIRONMENT`; Ray has read that variable when it was imported."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _forget_token() -> None:
    """Ray keeps the token that it has read first, also for another cluster."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # not in its stubs

    AuthenticationTokenLoader.instance().reset_cache()


def _warn_of_open_token() -> None:
    """A token that everybody on the machine may read opens the cluster to everybody."""
    place = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or TOKEN_FILE).expanduser()
    with contextlib.suppress(OSError):
        mode = stat.S_IMODE(place.stat().st_mode)
        if mode & 0o077 and os.name == "posix":
            log.warning(
                "the cluster's token may be read by others (%s has mode %o): chmod 600 %s", place, mode, place
            )


def _join(address: str, quiet: dict[str, Any]) -> None:
    import ray

    try:
        if address == "auto" or os.environ.get("RAY_AUTH_MODE", "").lower() == "token":  # else none is sent
            _warn_of_open_token()
        _forget_token()
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
        with environment(_LOCAL_ENVIRONMENT), _on_loopback():
            _forget_token()
            ray.init(
                address="local",
                _node_ip_address="127.0.0.1",
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
        with contextlib.suppress(OSError):
            place = str(own_folder("raysense", folder) / "ray")  # Ray opens its own folder to everybody
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
def environment(wanted: Mapping[str, str | None]) -> Iterator[None]:
    """Have environment variables set, or unset (None), while this is open."""
    before = {name: os.environ.get(name) for name in wanted}
    _put(wanted)
    try:
        yield
    finally:
        _put(before)


def _put(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
