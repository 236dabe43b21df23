"""Work in a process of its own, so that this one never holds what it takes; orders and answers are lines of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from raysense.errors import RaysenseError
from raysense.hashing import know, known_files

SAID_SECONDS = 5.0
"""Between two lines about something that is waited for."""

Tell = Callable[[str], None]
Say = Callable[[str, Any], None]

_ERROR, _PROGRESS = "error", "progress"


class Child:
    """A module that runs as a program and calls `answer`; a context manager, with which it ends.

    It imports what this process imports, and Ctrl-C is left to this process.

    Args:
        module: Its name.
        order: What it is told; plain data.
    """

    def __init__(self, module: str, order: Mapping[str, Any]) -> None:
        self._module = module
        path = os.pathsep.join(part or os.getcwd() for part in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._said: list[dict[str, Any]] = []
        self._over = False
        self._news = threading.Condition()
        given = json.dumps({"order": order, "files": known_files()})
        threading.Thread(target=self._talk, args=(given,), daemon=True, name=f"talks to {module}").start()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Ends it, whatever it is doing."""
        self._process.kill()
        self._process.wait()

    def awaited(self, what: str, tell: Tell, waiting: str) -> Any:
        """What it says under a name.

        Args:
            what: The name.
            tell: Called every few seconds, with what it says that it does or with `waiting`, and the seconds so far.
            waiting: What it does before it says so itself.

        Raises:
            RaysenseError: It says what is wrong, or ends without a word.
        """
        began, read, doing = time.monotonic(), 0, waiting
        tell(doing)
        while True:
            with self._news:
                if read == len(self._said) and not self._over:
                    self._news.wait(SAID_SECONDS)
                new, read, over = self._said[read:], len(self._said), self._over
            for said in new:
                if _ERROR in said:
                    raise RaysenseError(said[_ERROR])
                if what in said:
                    return said[what]
                doing = said.get(_PROGRESS, doing)
            if over:
                raise RaysenseError(
                    f"the process {self._module} ended with status {self._process.wait()} and without a word; was "
                    "there too little memory on this machine?"
                )
            if new and any(_PROGRESS in said for said in new):
                tell(doing)
            elif not new:
                tell(f"{doing} {time.monotonic() - began:.0f} s")

    def _talk(self, given: str) -> None:
        """Tell it its order, which may be more than a pipe holds while it still imports, and hear what it says."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # A broken pipe: it ended at once, and whoever waits for an answer hears of it.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(given)
            self._process.stdin.close()
        for line in self._process.stdout:
            try:
                said = json.loads(line)
            except ValueError:
                continue  # something that a library printed
            if isinstance(said, dict):
                with self._news:
                    self._said.append(said)
                    self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()


def answer(work: Callable[[dict[str, Any], Say], None]) -> None:
    """Do what `Child` ordered; `work` gets the order, and a function that says something under a name.

    What is said under ``progress`` is shown while something else is waited for.
    """

    def say(what: str, value: Any) -> None:
        try:
            print(json.dumps({what: value}), flush=True)
        except BrokenPipeError:  # whoever gave the order was killed
            os._exit(1)

    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    try:
        given = json.load(sys.stdin)
        know(given["files"])
        work(given["order"], say)
    except RaysenseError as error:
        say(_ERROR, str(error))


def _leave_with(parent: int) -> None:
    """Nobody waits for the answer any more once whoever gave the order was killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
