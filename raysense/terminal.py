"""What is printed: any terminal takes it, and what users named is shown as it is, never read as Rich's markup."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from raysense.secrets import masked

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN = {
    **dict.fromkeys("─━═╌╍┄┅┈┉╴╶╸╺", "-"),
    **dict.fromkeys("│┃║╎╏┆┇┊┋╵╷╹╻", "|"),
    **dict.fromkeys("█▉▊▋▌▍▎▏▇▆▅▄▃▂▁■▪●", "#"),
    **dict.fromkeys("–—−‐‑", "-"),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”„", '"'),
    "≤": "<=",
    "≥": ">=",
    "×": "x",
    "±": "+-",
    "≈": "~",
    "→": "->",
    "←": "<-",
    "…": "...",
    "·": "-",
    "•": "*",
    "λ": "lambda",
    "Δ": "delta",
    "√": "sqrt",
    "‖": "||",
    "∞": "inf",
    "²": "2",
    "✓": "ok",
    "✗": "x",
    "°": "deg",
    "µ": "u",
}
_NAME = "raysense-ascii"


def accept_any_text() -> None:
    """Let standard output and error take any text, whatever their encoding: `LANG=C`, latin-1, broken file names.

    What is not Unicode gets ASCII: the bytes of other encodings are often read as something else.
    """
    codecs.register_error(_NAME, _instead)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not what a notebook or a test has put there
            unicode = codecs.lookup(stream.encoding or "ascii").name.startswith("utf")
            stream.reconfigure(encoding=stream.encoding if unicode else "ascii", errors=_NAME)


def _instead(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = "".join(map(plain, error.object[error.start : error.end]))
    return text, error.end


def plain(character: str) -> str:
    """A character in ASCII: a sign's usual spelling, a letter without its accents, or a question mark."""
    if character in _PLAIN:
        return _PLAIN[character]
    if "\u2500" <= character <= "\u257f":
        return "+"  # where lines meet
    letters = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return letters or "?"


SHOW_CURSOR = "\x1b[?25h"


def complain(text: str) -> None:
    """Say what has gone wrong: one line on standard error, without secrets."""
    try:
        print(f"raysense: error: {masked(' '.join(text.splitlines()))}", file=sys.stderr, flush=True)
    except OSError:  # nobody can be told; the exit status says it
        drop(sys.stderr)


def drop(stream: TextIO) -> None:
    """Nobody takes this output any more, so that what is still buffered raises nothing at the interpreter's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(console: Console, text: str = "", *, style: str = "", whole: bool = False) -> None:
    """Print plain text.

    Args:
        console: Where.
        text: Shown letter by letter, brackets too.
        style: Of all of it, e.g. ``bold``.
        whole: Lines are not broken, so that paths and commands can be copied.
    """
    from rich.text import Text  # not at once: `--help` prints without it

    console.print(Text(text, style=style), soft_wrap=whole, highlight=False)


@contextmanager
def patient(console: Console, text: str, seconds: float = 5.0) -> Iterator[threading.Event]:
    """Say every few seconds what goes on, for how long already: nobody has to wonder whether it hangs.

    Args:
        console: Where.
        text: What goes on.
        seconds: Between two lines; what is over sooner says nothing.

    Yields:
        Set it, and nothing more is said.
    """
    over, began = threading.Event(), time.monotonic()

    def repeat() -> None:
        while not over.wait(seconds):
            with contextlib.suppress(OSError):  # the terminal went away
                say(console, f"{text} {time.monotonic() - began:.0f} s")

    thread = threading.Thread(target=repeat, daemon=True, name="says what goes on")
    thread.start()
    try:
        yield over
    finally:
        over.set()
        thread.join()
