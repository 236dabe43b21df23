"""Headless Chromium, spoken to over its remote-debugging pipe: no driver, no package, no port."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any


class Browser:
    """One page of a headless Chromium; a context manager.

    Attributes:
        console: Everything the page wrote to its console, exceptions and blocked loads included.
        requests: Every address that the page asked for.
    """

    def __init__(self, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        self.console: list[str] = []
        self.requests: list[str] = []
        self._width, self._height, self._dark = width, height, dark
        self._last = 0
        self._buffer = b""

    def __enter__(self) -> Browser:
        program = shutil.which("chromium") or shutil.which("chromium-browser")
        assert program, "no chromium on this machine: `make test` installs Debian's, see the Makefile"
        self._folder = tempfile.TemporaryDirectory(prefix="raysense-chromium-", ignore_cleanup_errors=True)
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        arguments = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
            "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
            f"--user-data-dir={self._folder.name}", "about:blank",
        ]  # fmt: skip
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        shell = ["bash", "-c", f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}', program, *arguments]
        self._process = subprocess.Popen(
            shell, pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        target = self._send("Target.createTarget", {"url": "about:blank"}, session=None)["targetId"]
        attached = self._send("Target.attachToTarget", {"targetId": target, "flatten": True}, session=None)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Performance"):
            self.send(f"{domain}.enable")
        narrow = self._width < 600
        self.send(
            "Emulation.setDeviceMetricsOverride",
            {"width": self._width, "height": self._height, "deviceScaleFactor": 1, "mobile": narrow},
        )
        scheme = "dark" if self._dark else "light"
        self.send(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._out)
        os.close(self._in)
        self._folder.cleanup()

    def open(self, page: Path, seconds: float = 60) -> float:
        """Open a page and wait until its charts are drawn; the milliseconds that took, by its own clock."""
        self.send("Page.navigate", {"url": page.resolve().as_uri()})
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            drawn = self.evaluate("document.documentElement?.dataset.drawn || ''")
            if drawn:
                return float(drawn)
            time.sleep(0.05)
        raise AssertionError(f"{page} is not drawn after {seconds} s; console: {self.console}")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.send(
            "Runtime.evaluate", {"expression": expression, "returnByValue": True, "awaitPromise": True}
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def cpu_seconds(self) -> float:
        """CPU time that the page's own thread has spent on tasks."""
        metrics = {m["name"]: m["value"] for m in self.send("Performance.getMetrics")["metrics"]}
        return float(metrics["ThreadTime"] if "ThreadTime" in metrics else metrics["TaskDuration"])

    def screenshot(self, out: Path) -> None:
        """The whole page as a PNG."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": self._width, "height": size["height"], "scale": 1}
        shot = self.send("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        out.write_bytes(base64.b64decode(shot["data"]))

    def send(self, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._send(method, parameters or {}, session=self._session)

    def _send(self, method: str, parameters: dict[str, Any], session: str | None) -> dict[str, Any]:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._in, 1 << 20)
            assert part, "chromium ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.consoleAPICalled":
            self.console.append(
                " ".join(str(a.get("value", a.get("description"))) for a in parameters["args"])
            )
        elif event.get("method") == "Runtime.exceptionThrown":
            self.console.append(str(parameters["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded":
            self.console.append(parameters["entry"]["text"])
        elif event.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
