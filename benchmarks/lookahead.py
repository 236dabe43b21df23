"""What look-ahead W costs when one evaluator is ten times slower than the others.

    python -m benchmarks.lookahead            # a second or two; no Ray
    python -m benchmarks.lookahead --quick

W keeps decisions independent of the cluster: ask t waits for the answer to ask t - W, so one slow evaluator can
hold everybody up. This is a simulation in virtual time of the real books (`raysense.execution.ledger`) with the
limits of the real path: at most 1.5 trials an evaluator at work, 3 asked. Evaluations take 1 s, on
the slow evaluator 10 s; a trial is a curve of 1 to 8 evaluations, one after another, as Ray Tune's works through it;
a waiting request goes to whichever evaluator is free first. The figure is measuring time divided by evaluators' time,
from the start until the last evaluation begins. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import sys
from collections import deque
from collections.abc import Sequence

from raysense.allocation import Allocation
from raysense.execution.executor import signed
from raysense.execution.ledger import Ledger, PendingTrial
from raysense.records import Evaluation, EvaluationRequest, TrialSpec
from raysense.strategies.base import ASKED_PER_EVALUATOR, RUNNING_PER_EVALUATOR, Lookahead

EVALUATORS, SLOW, LONGEST = 8, 10.0, 8
BAR = 0.95
EMPTY = Evaluation(measures={}, zeros=0, images=0, nfe=0, seconds=0.0)


class Curves:
    """Trials of 1 to `LONGEST` requests, the lengths drawn once."""

    headline = ""

    def __init__(self, specs: int, seed: int) -> None:
        self._lengths = random.Random(seed).choices(range(1, LONGEST + 1), k=specs)
        self._asked = 0

    @property
    def done(self) -> bool:
        """Everything is asked."""
        return self._asked == len(self._lengths)

    def ask(self) -> TrialSpec | None:
        """The next curve."""
        if self.done:
            return None
        name = f"sensitivity/{self._asked}"
        levels = range(self._lengths[self._asked])
        self._asked += 1
        return TrialSpec(
            name, "sensitivity", tuple(EvaluationRequest(Allocation({name: n + 1}), "probe") for n in levels)
        )

    def tell(self, spec: TrialSpec, evaluations: Sequence[Evaluation]) -> None:
        """Nothing depends on the answers: what is measured is the waiting alone."""


def busy_share(width: int, slow: float, specs: int, seed: int = 0) -> float:
    """Measuring time divided by evaluators' time, from the start until the last evaluation begins."""
    ledger = Ledger(Lookahead(Curves(specs, seed), width), {}, "s")
    pace = [slow] + [1.0] * (EVALUATORS - 1)
    free, events = list(range(EVALUATORS)), list[tuple[float, int, PendingTrial]]()
    asked, requests = deque[PendingTrial](), deque[PendingTrial]()
    running, now = 0, 0.0
    spans: list[tuple[float, float]] = []
    while True:
        while running + len(asked) < ASKED_PER_EVALUATOR * EVALUATORS and (work := ledger.next()) is not None:
            asked.append(work)
        while asked and running < math.ceil(RUNNING_PER_EVALUATOR * EVALUATORS):
            running += 1
            requests.append(asked.popleft())
        while requests and free:
            who = free.pop()
            spans.append((now, now + pace[who]))
            heapq.heappush(events, (now + pace[who], who, requests.popleft()))
        if not events:
            break
        now, who, work = heapq.heappop(events)
        free.append(who)
        request = work.left[0]
        answer = signed(EMPTY, work.spec, request, signature="s", trial="t", life="l")
        if ledger.answer(work, answer):
            running -= 1
        else:
            requests.append(work)
    assert ledger.finished
    last = max(start for start, _ in spans)
    return sum(min(end, last) - start for start, end in spans) / (last * EVALUATORS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and, on the last line, the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="200 trials instead of 2,000")
    specs = 200 if parser.parse_args(arguments).quick else 2000
    figures = {}
    for per_evaluator in (1, 1.5, 2, 3, 4, 6, 8):
        width = int(per_evaluator * EVALUATORS)
        shares = {name: busy_share(width, slow, specs) for name, slow in (("alike", 1.0), ("slow", SLOW))}
        figures[f"W={width}"] = {name: round(share, 4) for name, share in shares.items()}
        print(
            f"W = {width:3} ({per_evaluator:g} an evaluator): busy {shares['alike']:.1%} with {EVALUATORS} alike, "
            f"{shares['slow']:.1%} with one {SLOW:g} times slower"
        )
    holds = figures[f"W={6 * EVALUATORS}"]["slow"] >= BAR
    bar = {"busy_share at 6 trials an evaluator, one slow": BAR}
    print(json.dumps({"benchmark": "lookahead", "figures": figures, "bar": bar, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
