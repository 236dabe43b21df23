"""Small strategies for tests: fixed lists of trials, and one whose asks depend on the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raysense.allocation import Allocation
from raysense.records import Evaluation, EvaluationRequest, StopRule, TrialSpec


class Curves:
    """One trial per layer, its levels upwards, with or without a stop rule."""

    def __init__(self, layers: int, levels: int, stop_above: float | None = None) -> None:
        self.layers, self.levels = layers, levels
        self.stop = None if stop_above is None else StopRule(above={"clip_drop": stop_above})
        self.asked = 0
        self.told: list[tuple[str, list[float]]] = []
        self.headline = ""
        self.wanted = layers * levels

    @property
    def done(self) -> bool:
        return self.asked == self.layers

    def ask(self) -> TrialSpec | None:
        if self.done:
            return None
        name = f"unet:layer{self.asked:03d}"
        self.asked += 1
        requests = tuple(
            EvaluationRequest(Allocation({name: level}), "probe") for level in range(1, self.levels + 1)
        )
        return TrialSpec(f"sensitivity/{name}", "sensitivity", requests, self.stop)

    def tell(self, spec: TrialSpec, evaluations: Sequence[Evaluation]) -> None:
        self.told.append((spec.name, [_value(e) for e in evaluations]))
        self.headline = f"{len(self.told)} curves"


class Climbs(Curves):
    """One candidate a trial, on preview and score."""

    def __init__(self, candidates: int) -> None:
        super().__init__(candidates, 2)

    def ask(self) -> TrialSpec | None:
        spec = super().ask()
        if spec is None:
            return None
        allocation = spec.requests[0].allocation
        return replace(
            spec, requests=(EvaluationRequest(allocation, "preview"), EvaluationRequest(allocation, "score"))
        )


class Chain:
    """Asks `length` trials of `width` requests; each allocation depends on every answer told so far."""

    def __init__(self, length: int, width: int = 1) -> None:
        self.length, self.width = length, width
        self.asked = 0
        self.state = 0
        self.headline = ""
        self.trace: list[str] = []

    @property
    def done(self) -> bool:
        return self.asked == self.length

    def ask(self) -> TrialSpec | None:
        if self.done:
            return None
        self.asked += 1
        requests = tuple(
            EvaluationRequest(
                Allocation({f"unet:{self.asked}": 1 + self.state % 97, "unet:request": request + 1}), "probe"
            )
            for request in range(self.width)
        )
        self.trace.append(requests[0].allocation.key)
        return TrialSpec(f"search/{self.asked}", "search", requests)

    def tell(self, spec: TrialSpec, evaluations: Sequence[Evaluation]) -> None:
        for evaluation in evaluations:
            self.state = (self.state * 31 + int(1000 * _value(evaluation))) % 1_000_003
        self.trace.append(f"{spec.name} {self.state}")


def _value(evaluation: Evaluation) -> float:
    return -1.0 if evaluation.failed else evaluation.measures["clip_drop"].value
