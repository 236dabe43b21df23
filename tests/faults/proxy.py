"""A faulty way to an S3 server: a real HTTP proxy that drops, delays, refuses, cuts short, and is gone for a while."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("lost request", "lost answer", "500", "503", "cut answer", "cut request", "slow", "reset")


@dataclass
class Weather:
    """What happens on the way; may be changed while requests go through.

    Attributes:
        rng: Decides.
        share: Of the requests to which something happens.
        slow: Seconds that a slow one takes longer.
        away: Nobody answers: connections are closed at once.
        counts: What happened.
    """

    rng: random.Random
    share: float = 0.0
    slow: float = 0.05
    away: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    def fate(self) -> str:
        """Of the next request."""
        kind = self.rng.choice(FAULTS) if self.rng.random() < self.share else "passed"
        kind = "away" if self.away else kind
        self.counts[kind] += 1
        return kind


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: str, weather: Weather) -> None:
        super().__init__(("127.0.0.1", 0), _Way)
        self.upstream, self.weather = upstream, weather

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are what this is for."""


class _Way(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _handle(self) -> None:
        kind = self.server.weather.fate()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if kind in ("away", "lost request"):
            self._hang_up()
        elif kind == "reset":
            self._hang_up(reset=True)
        elif kind in ("500", "503"):
            code = b"<Error><Code>%s</Code></Error>" % (b"SlowDown" if kind == "503" else b"InternalError")
            self._answer(int(kind), {}, code)
        elif kind == "cut request":
            self._cut_request(body)
        else:
            if kind == "slow":
                time.sleep(self.server.weather.slow)
            status, headers, content = self._forward(body)
            if kind == "lost answer":
                self._hang_up()
            elif kind == "cut answer":
                self._answer(status, headers, content, content[: len(content) // 2])
                self._hang_up()
            else:
                self._answer(status, headers, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            hop = ("transfer-encoding", "connection", "content-length", "server", "date")
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in hop}
            if self.command == "HEAD" and (length := answer.getheader("Content-Length")):
                headers["Content-Length"] = length
            return answer.status, headers, answer.read()
        finally:
            connection.close()

    def _cut_request(self, body: bytes) -> None:
        """The server sees half of it."""
        with contextlib.suppress(OSError), socket.create_connection(self._upstream(), timeout=5) as way:
            lines = [f"{self.command} {self.path} HTTP/1.1", *(f"{k}: {v}" for k, v in self.headers.items())]
            way.sendall("\r\n".join([*lines, "", ""]).encode() + body[: len(body) // 2])
        self._hang_up()

    def _upstream(self) -> tuple[str, int]:
        host, _, port = self.server.upstream.partition(":")
        return host, int(port)

    def _answer(
        self, status: int, headers: dict[str, str], content: bytes, sent: bytes | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content if sent is None else sent)
        self.wfile.flush()

    def _hang_up(self, *, reset: bool = False) -> None:
        self.close_connection = True
        if reset:  # RST instead of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is said."""


@contextlib.contextmanager
def faulty_way(pattern: str, weather: Weather) -> Iterator[str]:
    """A proxy before the S3 server of `tests.s3.s3_server`; gives the pattern of addresses by this way."""
    upstream = pattern.split("endpoint_override=")[1].split("&")[0]
    server = _Server(upstream, weather)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield pattern.replace(upstream, f"127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
