"""One live view of a run in the terminal; plain lines where the output is not a terminal."""

from __future__ import annotations

from html import escape
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raysense.execution.progress import Clock, Snapshot
from raysense.terminal import say

PLAIN_SECONDS = 8.0


def duration(seconds: float) -> str:
    """Seconds as a person reads them: ``42 s``, ``12 min``, ``3 h 05``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60:02d}"


def lines(snapshot: Snapshot) -> list[tuple[str, str]]:
    """What the view shows, as label and text."""
    s = snapshot
    # An expectation, not a promise: where it was too low, the number alone is true.
    wanted = f" of about {s.wanted}" if s.wanted > s.done else ""
    extras = [
        text
        for number, text in ((s.replayed, f"{s.replayed} from the store"), (s.failed, f"{s.failed} failed"))
        if number
    ]
    left = s.seconds_left
    shown = [
        ("stage", s.stage or "starting"),
        ("evaluations", f"{s.done}{wanted} done" + (f" ({', '.join(extras)})" if extras else "")),
        ("time", duration(s.seconds) + (f", about {duration(left)} left" if left is not None else "")),
        ("images", f"{s.images} ({s.images_per_second:.1f} a second), {s.nfe} NFE"),
        ("evaluators", f"{s.busy} of {s.evaluators} busy"),
    ]
    if s.headline:
        shown.append(("incumbent", s.headline))
    if s.message:
        shown.append(("waiting", s.message))
    return shown


class NotebookView:
    """An `on_progress` that keeps one bar in a notebook's cell up to date; a context manager."""

    def __init__(self) -> None:
        self._clock = Clock(1.0)
        self._handle: Any = None

    def __enter__(self) -> NotebookView:
        from IPython.display import HTML, display  # there is one in a notebook

        self._html: Any = HTML
        self._handle = display(HTML(""), display_id=True)  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, snapshot: Snapshot) -> None:
        """Shows the snapshot."""
        if self._clock.due():
            self._handle.update(self._html(in_html(snapshot)))


def in_html(snapshot: Snapshot) -> str:
    """A bar with the live view's lines under it."""
    full = snapshot.wanted_nfe or snapshot.wanted
    done = snapshot.spent if snapshot.wanted_nfe else snapshot.done
    bar = f'<progress max="{full}" value="{min(done, full)}" style="width: 100%"></progress>' if full else ""
    rows = "".join(
        f"<tr><th>{escape(label)}</th><td>{escape(text)}</td></tr>" for label, text in lines(snapshot)
    )
    return f"{bar}<table>{rows}</table>"


def view(console: Console) -> LiveView | NotebookView:
    """What shows a run: a bar in a notebook, a live table in a terminal, plain lines elsewhere."""
    return NotebookView() if console.is_jupyter and not console.quiet else LiveView(console)


class LiveView:
    """An `on_progress` that shows each snapshot; a context manager.

    Args:
        console: Where to; by default standard error, so that results can be piped.
        plain_seconds: Seconds between two lines where the output is not a terminal.
    """

    def __init__(self, console: Console | None = None, *, plain_seconds: float = PLAIN_SECONDS) -> None:
        self._console = console or Console(stderr=True)
        self._clock = Clock(plain_seconds)
        self._live: Live | None = None
        self._last: Snapshot | None = None
        self._shown: Snapshot | None = None

    def __enter__(self) -> LiveView:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
        elif self._last is not None and self._last is not self._shown:
            self._print(self._last)

    def __call__(self, snapshot: Snapshot) -> None:
        """Shows the snapshot."""
        self._last = snapshot
        if self._live is not None:
            table = Table.grid(padding=(0, 2))
            for label, text in lines(snapshot):
                table.add_row(Text(label, style="bold"), Text(text))
            self._live.update(table, refresh=True)
        elif self._clock.due():
            self._print(snapshot)

    def _print(self, snapshot: Snapshot) -> None:
        self._shown = snapshot
        text = " · ".join(f"{label}: {text}" for label, text in lines(snapshot))
        say(self._console, text, whole=True)
