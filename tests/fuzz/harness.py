"""Runs many damaged inputs and counts what became of them: read, refused in one line, or wrong.

A case is a name and a function. It may return (`ok`), raise `RaysenseError` (`refused`, if the message is one
line), raise `Changed` or fail an `assert` (`changed`: read, but not as what was written), raise anything else
(`traceback`), end its process (`died`), or not come back in time (`hang`). Cases run in forked children, so that
nothing that a case does can stop the count.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psutil

from raysense.errors import RaysenseError

Case = tuple[str, Callable[[], object]]
LIMIT_SECONDS = 10.0
"""Of processor time; a case that waits without working may take `PATIENCE` times as long, as a busy machine may."""

PATIENCE = 6
GOOD = ("ok", "refused")


class Changed(Exception):
    """An input was read without a word as something else than was written."""


@dataclass
class Counts:
    """What became of the cases.

    Attributes:
        what: The kind of input, for the table.
        by_outcome: Outcome -> how many.
        bad: (outcome, case's name, what was raised) of each that is wrong.
    """

    what: str
    by_outcome: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[str, str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{self.by_outcome[name]} {name}" for name in (*GOOD, *WRONG))
        return f"{self.what}: {self.by_outcome.total()} inputs: {counts}"

    def check(self) -> None:
        """Print the counts; fail if any input went wrong, with the first few."""
        print(self)
        assert not self.bad, f"{self}\n" + "\n".join(" | ".join(entry) for entry in self.bad[:20])


WRONG = ("changed", "traceback", "died", "hang")


def run(what: str, cases: Sequence[Case], limit: float = LIMIT_SECONDS) -> Counts:
    """Run all cases, one after the other.

    Args:
        what: The kind of input.
        cases: See the module; none may depend on what another did.
        limit: Seconds that a case may take.
    """
    counts, index = Counts(what), 0
    while index < len(cases):
        here, there = _FORK.Pipe(duplex=False)
        child = _FORK.Process(target=_run_from, args=(cases, index, there), daemon=True)
        child.start()
        there.close()
        while index < len(cases):
            outcome, text = _next(here, limit, psutil.Process(child.pid))
            counts.by_outcome[outcome] += 1
            if outcome not in GOOD:
                counts.bad.append((outcome, cases[index][0], text))
            index += 1
            if outcome in ("died", "hang"):
                break  # the next child goes on behind it
        child.kill()
        child.join()
        here.close()
    return counts


_FORK = multiprocessing.get_context("fork")


def _next(
    pipe: multiprocessing.connection.Connection, limit: float, child: psutil.Process
) -> tuple[str, str]:
    try:
        before = _worked(child)
        for _ in range(PATIENCE):
            if pipe.poll(limit):
                break
            if _worked(child) - before > limit:
                return "hang", f"no answer within {limit:g} s of work"
        else:
            return "hang", f"no answer within {PATIENCE * limit:g} s"
        outcome, text = pipe.recv()
        return str(outcome), str(text)
    except EOFError:
        return "died", "its process ended"


def _worked(child: psutil.Process) -> float:
    """Seconds of processor time; 0 of a process that has ended."""
    try:
        times = child.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _run_from(cases: Sequence[Case], first: int, pipe: multiprocessing.connection.Connection) -> None:
    for _, case in cases[first:]:
        try:
            pipe.send(outcome_of(case))
        except BrokenPipeError:
            break
    pipe.close()
    os._exit(0)


def outcome_of(case: Callable[[], object]) -> tuple[str, str]:
    """What becomes of one case, and what was raised."""
    try:
        case()
    except RaysenseError as error:
        return (
            ("refused", "") if len(str(error).splitlines()) == 1 else ("traceback", f"lines: {error!s:.300}")
        )
    except (Changed, AssertionError) as error:
        return "changed", f"{error!s:.300}"
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error!s:.300}"
    return "ok", ""
