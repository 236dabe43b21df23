"""Words for the terminal: what users named is shown as it is, never read as Rich's markup."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text


def say(console: Console, text: str = "", *, style: str = "", whole: bool = False) -> None:
    """Print plain text.

    Args:
        console: Where.
        text: Shown letter by letter, brackets too.
        style: Of all of it, e.g. ``bold``.
        whole: Lines are not broken, so that paths and commands can be copied.
    """
    console.print(Text(text, style=style), soft_wrap=whole, highlight=False)
