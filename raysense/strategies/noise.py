"""Is a bound above the noise? How wide a harmless candidate's interval is on so many prompts, and how many it takes.

A harmless candidate is a lightly pruned one that the preview cannot tell from the dense pipeline in the bounded
measure; its images differ from the dense ones all the same, and that spread is what a candidate worth finding has at
least. An interval shrinks with the root of the number of prompts, so the preview says what the larger rungs will have;
that of a set's distance (Fréchet, KID, CMMD) shrinks faster, so there the preview asks for more than it takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import ndtri

from raysense.errors import RaysenseError
from raysense.metrics.builtin import SPECS, spec_of
from raysense.metrics.intervals import LEVEL, quantile
from raysense.metrics.spec import base_of
from raysense.names import BUNDLED
from raysense.records import Bound, Measure
from raysense.strategies.verdict import held_out_stretch
from raysense.study import Study

LIGHT = (0.3, 0.15, 0.07)
"""Shares of the selected weights that a light candidate loses; the first that does no visible harm counts."""

USUAL = 0.9
"""Share of harmless candidates that are to pass where a number of prompts is advised."""


TYPICAL = {
    BUNDLED: "the bundled pipeline, 30 % removed by one ratio, 80 prompts",
    "": "half-widths of 0.0020 to 0.0028 on 512 captions, Stable Diffusion 2",
}
"""Pipeline, or "" for any other -> where the typical spreads of its metrics (`MetricSpec.typical`) come from."""


def typical_of(pipeline: str) -> tuple[dict[str, float], str]:
    """Spreads to plan with before a study's first image.

    Args:
        pipeline: As in the study.

    Returns:
        Bounded measure -> standard deviation that a prompt adds, of a useful candidate; where they come from.
    """
    known = pipeline if pipeline in TYPICAL else ""
    spreads = {spec.compared: spec.typical[known] for spec in SPECS.values() if known in spec.typical}
    return spreads, TYPICAL[known]


@dataclass(frozen=True)
class Need:
    """What a bound asks of a rung.

    Attributes:
        bound: The bound.
        rung: The rung.
        prompts: How many it has.
        room: What the bound leaves from the dense pipeline's value.
        reach: Half the width of a harmless candidate's interval there.
        least: Prompts at which a harmless candidate passes as often as not.
        usual: Prompts at which nine in ten pass.
    """

    bound: Bound
    rung: str
    prompts: int
    room: float
    reach: float
    least: int
    usual: int

    @property
    def is_met(self) -> bool:
        """Whether noise alone leaves room."""
        return self.reach <= self.room

    def __str__(self) -> str:
        """In words, with the remedy."""
        return (
            f"`{self.bound.field}` is {self.bound.limit:g}, but on the {self.prompts:,} prompts of the {self.rung} "
            f"rung the interval of a candidate that does no harm is ±{self.reach:.2g}, so noise would name the answer: "
            f"set `rungs.{self.rung}.prompts` to {self.least:,} at least ({self.usual:,} for nine harmless candidates "
            f"in ten to pass), or loosen the bound to {_at(self.bound, self.reach):.2g} at least"
        )


def paired(bounds: Sequence[Bound]) -> list[Bound]:
    """The bounds of which a lightly pruned candidate's spread tells the noise.

    They are those on differences from the dense pipeline, and on what the dense pipeline has by definition (how alike
    the images are). Of any other absolute value the dense pipeline's own interval tells; see `alone`.
    """
    return [bound for bound in bounds if (room(bound) or 0.0) > 0]


def alone(bounds: Sequence[Bound]) -> list[Bound]:
    """The absolute bounds that are held against the dense pipeline's own interval."""
    return [bound for bound in bounds if room(bound) is None]


def room(bound: Bound) -> float | None:
    """What a bound leaves from the dense pipeline's value, in the measure's unit; None if that has to be measured."""
    if is_difference(bound):
        return bound.limit
    dense = spec_of(bound.measure).dense
    return None if dense is None else abs(bound.limit - dense)


def is_difference(bound: Bound) -> bool:
    """Whether it bounds a difference from the dense pipeline: a drop or a rise."""
    return base_of(bound.measure) != bound.measure


def _at(bound: Bound, room_wanted: float) -> float:
    """The limit that leaves so much room."""
    dense = 0.0 if is_difference(bound) else spec_of(bound.measure).dense or 0.0
    return dense + (room_wanted if bound.is_upper else -room_wanted)


def shows_no_harm(bound: Bound, measure: Measure) -> bool:
    """Whether a light candidate's measure is one of a candidate worth finding.

    A difference is, if its interval holds 0; what is compared with the dense images themselves, if it is inside.
    """
    if is_difference(bound):
        return measure.ci_low <= 0
    return bound.margin(measure.value, measure.value) >= 0


def spread_of(measure: Measure, prompts: int) -> float:
    """Standard deviation of what one prompt adds to a measure, from its interval on so many."""
    return (measure.ci_high - measure.ci_low) / 2 / quantile(prompts - 1) * math.sqrt(prompts)


def needs(study: Study, spreads: Mapping[str, float]) -> list[Need]:
    """What each bound with a known spread asks of the rungs that decide."""
    found = []
    for bound in paired(study.constraints.bounds()):
        left = room(bound)
        if left is None or bound.measure not in spreads:
            continue
        for rung, stretch in (("score", 1.0), ("validation", held_out_stretch(study))):
            prompts = getattr(study.rungs, rung).prompts
            spread = stretch * spreads[bound.measure]
            reach = quantile(prompts - 1) * spread / math.sqrt(prompts)
            two_sided, one_more = ndtri((1 + LEVEL) / 2), ndtri(USUAL)
            least = math.ceil(prompts * (reach / left) ** 2)
            usual = math.ceil(least * ((two_sided + one_more / stretch) / two_sided) ** 2)
            found.append(Need(bound, rung, prompts, left, reach, least, usual))
    return found


def refuse_noise(study: Study, spreads: Mapping[str, float]) -> None:
    """Refuse a study whose bounds a harmless candidate would fail more often than not.

    Raises:
        RaysenseError: Which bound, on which rung, and how many prompts it takes.
    """
    short = [need for need in needs(study, spreads) if not need.is_met]
    if short:
        raise RaysenseError("; ".join(map(str, short)))


def given_spreads(study: Study, texts: Sequence[str]) -> dict[str, float]:
    """What ``--spread NAME=VALUE`` says, by bounded measure.

    Args:
        study: The study.
        texts: Each a metric or a measure that the study bounds, and the standard deviation that a prompt adds to it.

    Raises:
        RaysenseError: A text of another form, a name that is not bounded, or no positive number.
    """
    bounded = {bound.measure for bound in paired(study.constraints.bounds())}
    found: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        measures = [measure for measure in bounded if name in (measure, base_of(measure))]
        if not measures:
            choice = ", ".join(sorted(bounded)) or "none"
            raise RaysenseError(
                f"`--spread {text}`: {name!r} is no measure whose spread matters; there are: {choice}"
            )
        try:
            spread = float(number)
        except ValueError:
            spread = math.nan
        if not (0 < spread < math.inf):
            raise RaysenseError(f"`--spread {text}`: give NAME=VALUE with a positive number, not {number!r}")
        found |= dict.fromkeys(measures, spread)
    return found


def foretold(study: Study, given: Mapping[str, float] | None = None) -> list[str]:
    """What can be said of every bound's noise before the first image, a few sentences a bound.

    Args:
        study: The study.
        given: Bounded measure -> spread that the user knows; see `given_spreads`.
    """
    given, bounds = given or {}, study.constraints.bounds()
    typical, their_source = typical_of(study.pipeline)
    spreads = {**typical, **given}
    found = needs(study, spreads)
    lines = []
    for bound in bounds:
        own = [need for need in found if need.bound == bound]
        if not own:
            continue
        source = "given" if bound.measure in given else f"typical: {their_source}"
        reach = " and ".join(
            f"±{n.reach:.2g} on the {n.prompts:,} prompts of the {n.rung} rung (enough: {n.usual:,})"
            for n in own
        )
        inside = (
            f"`{bound.field}` {bound.limit:g} is above the noise: a harmless candidate is measured to {reach}, if "
            f"one prompt differs from another by {spreads[bound.measure]:g} ({source}). Enough: nine such candidates "
            "in ten pass."
        )
        short = [
            f"{need}. The study will be refused if one prompt differs from another by {spreads[bound.measure]:g} "
            f"({source})."
            for need in own
            if not need.is_met
        ]
        lines += short or [inside]
    return lines + _known_later(bounds, spreads)


def foretold_short(study: Study) -> list[str]:
    """What `foretold` says that is doubtful: bounds below a typical noise, and those of which nothing is known yet."""
    spreads, source = typical_of(study.pipeline)
    found = [
        f"{need} (at a spread of {spreads[need.bound.measure]:g} a prompt, typical: {source}). The "
        "study will be refused if that is so"
        for need in needs(study, spreads)
        if not need.is_met
    ]
    return found + _known_later(study.constraints.bounds(), spreads)


def _known_later(bounds: Sequence[Bound], spreads: Mapping[str, float]) -> list[str]:
    lines = []
    for bound in paired(bounds):
        if bound.measure not in spreads:
            lines.append(
                f"Noise of `{bound.field}`: known after the dense baseline; the study is refused then if its rungs are "
                f"too small. `raysense plan --spread {bound.measure}=VALUE` foretells it from a spread that you know."
            )
    lines += [
        f"Noise of `{bound.field}`: known after the dense baseline; the study is refused then if the dense pipeline's "
        "own interval is not inside."
        for bound in alone(bounds)
    ]
    return lines
