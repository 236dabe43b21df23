"""Is a bound above the noise? How wide a harmless candidate's interval is on so many prompts, and how many it takes.

A harmless candidate is a lightly pruned one that the preview cannot tell from the dense pipeline in the bounded
measure; its images differ from the dense ones all the same, and that spread is what a candidate worth finding has at
least. An interval shrinks with the root of the number of prompts, so the preview says what the larger rungs will have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from raysense.errors import RaysenseError
from raysense.metrics.intervals import LEVEL
from raysense.metrics.spec import base_of
from raysense.names import BUNDLED
from raysense.records import Bound, Measure
from raysense.strategies.verdict import held_out_stretch
from raysense.study import Study

LIGHT = (0.3, 0.15, 0.07)
"""Shares of the selected weights that a light candidate loses; the first that does no visible harm counts."""

USUAL = 0.9
"""Share of harmless candidates that are to pass where a number of prompts is advised."""


TYPICAL = {BUNDLED: {"clip_score_drop": 0.012}, "": {"clip_score_drop": 0.0275}}
"""Pipeline, or "" for any other -> spread of a useful candidate, for the plan of a study before its first image: the
bundled one's with 30 % removed; for Stable Diffusion's sizes, half-widths of .0020 to .0028 on 512 captions."""


@dataclass(frozen=True)
class Need:
    """What a bound asks of a rung.

    Attributes:
        bound: The bound.
        rung: The rung.
        prompts: How many it has.
        reach: Half the width of a harmless candidate's interval there.
        least: Prompts at which a harmless candidate passes as often as not.
        usual: Prompts at which nine in ten pass.
    """

    bound: Bound
    rung: str
    prompts: int
    reach: float
    least: int
    usual: int

    @property
    def is_met(self) -> bool:
        """Whether noise alone leaves room."""
        return self.reach <= self.bound.limit

    def __str__(self) -> str:
        """In words, with the remedy."""
        return (
            f"`{self.bound.field}` is {self.bound.limit:g}, but on the {self.prompts:,} prompts of the {self.rung} "
            f"rung the interval of a candidate that does no harm is ±{self.reach:.2g}, so noise would name the answer: "
            f"set `rungs.{self.rung}.prompts` to {self.least:,} at least ({self.usual:,} for nine harmless candidates "
            f"in ten to pass), or raise the bound to {self.reach:.2g} at least"
        )


def relative(bounds: Sequence[Bound]) -> list[Bound]:
    """The bounds on differences from the dense pipeline; absolute ones are checked on the dense pipeline itself."""
    return [bound for bound in bounds if base_of(bound.measure) != bound.measure and bound.limit > 0]


def spread_of(measure: Measure, prompts: int) -> float:
    """Standard deviation of what one prompt adds to a measure, from its interval on so many."""
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, prompts - 1))
    return (measure.high - measure.low) / 2 / quantile * math.sqrt(prompts)


def needs(study: Study, spreads: Mapping[str, float]) -> list[Need]:
    """What each relative bound with a known spread asks of the rungs that decide."""
    found = []
    for bound in relative(study.constraints.bounds()):
        if bound.measure not in spreads:
            continue
        for rung, stretch in (("score", 1.0), ("validation", held_out_stretch(study))):
            prompts = getattr(study.rungs, rung).prompts
            spread = stretch * spreads[bound.measure]
            reach = float(stats.t.ppf((1 + LEVEL) / 2, prompts - 1)) * spread / math.sqrt(prompts)
            two_sided, one_more = stats.norm.ppf((1 + LEVEL) / 2), stats.norm.ppf(USUAL)
            least = math.ceil(prompts * (reach / bound.limit) ** 2)
            usual = math.ceil(least * ((two_sided + one_more / stretch) / two_sided) ** 2)
            found.append(Need(bound, rung, prompts, reach, least, usual))
    return found


def refuse_noise(study: Study, spreads: Mapping[str, float]) -> None:
    """Refuse a study whose bounds a harmless candidate would fail more often than not.

    Raises:
        RaysenseError: Which bound, on which rung, and how many prompts it takes.
    """
    short = [need for need in needs(study, spreads) if not need.is_met]
    if short:
        raise RaysenseError("; ".join(map(str, short)))


def foretold(study: Study) -> list[str]:
    """What `raysense plan` says about noise, from a typical spread; other measures are not known before an image is."""
    spreads = TYPICAL.get(study.pipeline, TYPICAL[""])
    lines = []
    for need in needs(study, spreads):
        typical = f"At a typical spread of {spreads[need.bound.measure]:g} a prompt: "
        room = (
            f"±{need.reach:.2g} for a harmless candidate on {need.prompts:,} prompts of the {need.rung} rung, inside "
            f"`{need.bound.field}` {need.bound.limit:g}; nine in ten pass from {need.usual:,} prompts on."
        )
        lines.append(typical + (room if need.is_met else f"{need}. The study will be refused if that is so."))
    unknown = [b.field for b in relative(study.constraints.bounds()) if b.measure not in spreads]
    if unknown:
        lines.append(
            f"Noise of {', '.join(f'`{f}`' for f in unknown)}: known after the study's first images."
        )
    return lines
