"""What is asked and what is answered: plain immutable records, free of torch and Ray.

A strategy asks for a trial by a `TrialSpec`: a short list of `EvaluationRequest`s that one Ray Tune trial works
through; every request is answered by one `Evaluation`, which is one row of the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raysense.allocation import Allocation
from raysense.hashing import content_key

CALIBRATION = "calibration"
"""The rung of the one request that is answered by learning instead of measuring."""

SHARD = "shard"
"""The rung of a request that only samples: some of the images of another evaluation, whose features go to the cache."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Some of the images of an evaluation that has more than one evaluator samples at a time.

    Attributes:
        rung: Whose images, e.g. ``validation``.
        reference: Not the allocation's own images, but the dense ones that distributions are compared with.
        number: Which shard, from 0.
        of: How many there are.
    """

    rung: str
    reference: bool
    number: int
    of: int

    def __str__(self) -> str:
        """For people, and unique among the shards of an evaluation."""
        return f"{self.rung} {'reference ' * self.reference}{self.number + 1} of {self.of}"


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """One allocation to be measured on one rung.

    Attributes:
        allocation: What is pruned.
        rung: Name of a rung of the study, e.g. ``probe``, ``score``, ``validation``.
        replicate: Which set of seeds: 0 first, 1, 2 … for fresh ones.
        shard: On the rung ``shard``: which images to sample.
        method: What chooses the weights that leave, or what is learnt on the rung ``calibration``, in place of the
            study's own; empty for that.
        steps: The part of the trajectory in which the denoiser is pruned, from and to as shares of its steps; None for
            all of it.
    """

    allocation: Allocation
    rung: str
    replicate: int = 0
    shard: Shard | None = None
    method: str = ""
    steps: tuple[float, float] | None = None

    def key(self, signature: str) -> str:
        """The name of this request's evaluation in the store of the study with this signature."""
        which: list[object] = [] if self.shard is None else [str(self.shard)]
        which += [{"method": self.method}] if self.method else []
        which += [{"steps": list(self.steps)}] if self.steps else []
        return content_key(signature, self.allocation.key, self.rung, self.replicate, *which)


@dataclass(frozen=True, slots=True)
class StopRule:
    """When a trial needs no further request: as soon as one of the bounds is certainly crossed.

    Attributes:
        above: Metric name -> stop once the measure's interval lies wholly above this value.
        below: Metric name -> stop once the measure's interval lies wholly below this value.
        stretch: How many times wider than the reported 95 % intervals those are that decide here: more than 1
            where several looks share the error of one.
    """

    above: Mapping[str, float] = field(default_factory=dict)
    below: Mapping[str, float] = field(default_factory=dict)
    stretch: float = 1.0

    def says_stop(self, evaluation: Evaluation) -> bool:
        """Whether `evaluation` settles it; a failed or collapsed one always does."""
        if evaluation.failed or evaluation.collapsed:
            return True
        measures = evaluation.measures

        def reach(name: str, end: float) -> float:
            return measures[name].value + self.stretch * (end - measures[name].value)

        over = any(n in measures and reach(n, measures[n].ci_low) > bound for n, bound in self.above.items())
        under = any(
            n in measures and reach(n, measures[n].ci_high) < bound for n, bound in self.below.items()
        )
        return over or under


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """What one Ray Tune trial works through, in order: a group's curve, or a candidate climbing the rungs.

    Attributes:
        name: Unique in the study and deterministic, e.g. ``sensitivity/unet:mid_block.0``.
        stage: ``baseline``, ``sensitivity``, ``search`` or ``validation``; ``sweep``.
        requests: At least one.
        stop: Ends the trial early; without one, every request is done.
    """

    name: str
    stage: str
    requests: tuple[EvaluationRequest, ...]
    stop: StopRule | None = None


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric's value with its interval.

    Attributes:
        value: The point estimate, in the metric's own unit.
        ci_low: Lower end of the two-sided 95 % interval (one-sided 97.5 %).
        ci_high: Upper end.
        n: Sample size: images, or (latent, timestep, condition) tuples for a probe.
        extractor: Which network's features, e.g. ``open_clip:local-dir:…`` or ``efficientnet-lite0``.
    """

    value: float
    ci_low: float
    ci_high: float
    n: int
    extractor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What measuring one allocation on one rung gave: one row of the table ``evaluations``.

    What has a default is set by who executes, whatever measures leaves out.

    Attributes:
        key: See `EvaluationRequest.key`.
        trial: `TrialSpec.name` of what asked first.
        stage: `TrialSpec.stage`.
        allocation: `Allocation.key`.
        rung: The rung's name.
        replicate: Which set of seeds.
        measures: Metric name -> measure. Relative metrics (paired with the dense pipeline on the same
            prompts and seeds) have names that end in ``_drop`` or ``_rise``.
        zeros: Counted zeros among the selected layers' weights after masking.
        method: What chose the weights that left, e.g. ``wanda`` or ``magnitude 2:4``.
        images: Images sampled for this evaluation.
        nfe: Function evaluations that measuring it took (NFE): evaluations of the denoiser, one image each, conditional
            and unconditional counted apart.
        seconds: Wall time of the evaluation.
        collapsed: Why the output is broken (NaN, constant, off-scale), or an empty string.
        failed: Why it could not be measured, or an empty string.
        notes: Anything that departed from the plan, e.g. ``out of memory: batch 64 -> 32``.
        ray_trial: Ray Tune's trial id, or ``in-process``.
        evaluator: Which evaluator life answered.
        device: What it ran on: ``cpu``, ``cuda: NVIDIA H100``.
        versions: Of the software that decides what is measured.
        taken_from: The earlier run that measured it, where nothing was spent on it here; else an empty string.
        samples: Per-image rows: ``prompt_id``, ``prompt``, ``seed`` and one float per per-image metric.
    """

    key: str = ""
    trial: str = ""
    stage: str = ""
    allocation: str = ""
    rung: str = ""
    replicate: int = 0
    measures: Mapping[str, Measure]
    zeros: int
    images: int
    nfe: int
    seconds: float
    collapsed: str = ""
    failed: str = ""
    notes: str = ""
    method: str = ""
    ray_trial: str = ""
    evaluator: str = ""
    device: str = ""
    versions: str = ""
    taken_from: str = ""
    samples: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Bound:
    """One bound of the quality budget.

    Attributes:
        field: Where the study states it, e.g. ``constraints.clip_score.max_drop``.
        measure: The measure it binds, e.g. ``clip_score_drop``.
        is_upper: True for "at most", False for "at least".
        limit: The bound, in the measure's unit.
    """

    field: str
    measure: str
    is_upper: bool
    limit: float

    def margin(self, ci_low: float, ci_high: float) -> float:
        """How far the interval stays inside the bound; negative when it does not clear it."""
        return self.limit - ci_high if self.is_upper else ci_low - self.limit
