"""Is a pipeline measured rightly? Small checks of what a study takes for granted; `raysense.search.doctor` runs all.

The probe itself refuses a pipeline whose dense error is not exactly 0, the sampler one whose pixels leave [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from raysense.errors import RaysenseError
from raysense.pipelines.sample import RANGE_SLACK, call_pipeline
from raysense.prompts.sets import Prompt
from raysense.pruning.layers import Inventory
from raysense.study import Sampling

Verdict = Literal["ok", "wrong", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: Its name.
        verdict: ``ok``, ``wrong`` or ``not applicable``.
        told: Numbers, or the reason.
    """

    check: str
    verdict: Verdict
    told: str


def judged(check: str, fine: bool, told: str) -> Finding:
    """``ok`` or ``wrong``."""
    return Finding(check, "ok" if fine else "wrong", told)


def same_parameters(empty: Mapping[str, nn.Module], loaded: Mapping[str, nn.Module]) -> Finding:
    """What is planned from configurations alone is what is loaded."""

    def counts(modules: Mapping[str, nn.Module]) -> dict[str, int]:
        return {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}

    foretold, there = counts(empty), counts(loaded)
    other = {name for name in {*foretold, *there} if foretold.get(name) != there.get(name)}
    told = ", ".join(
        f"{name} {foretold.get(name, 0):,} against {there.get(name, 0):,}" for name in sorted(other)
    )
    total = f"{sum(there.values()):,} parameters in {len(there)} components"
    return judged("inventory", not other, f"without weights and with them: {told}" if other else total)


def types(loaded: Mapping[str, nn.Module], dtype: str) -> Finding:
    """Every component has the study's type; what its class keeps in another one is said."""
    wanted, other = getattr(torch, dtype), []
    for name, module in loaded.items():
        weights = [weight for weight in module.parameters() if weight.is_floating_point()]
        odd = [weight for weight in weights if weight.dtype != wanted]
        if odd:
            kinds = "+".join(sorted({str(weight.dtype)[6:] for weight in odd}))
            other.append(
                (name, f"{name}: {len(odd)} of {len(weights)} tensors are {kinds}", len(odd) == len(weights))
            )
    told = "; ".join(text for _, text, _ in other) or f"all {dtype}"
    return judged("types", not any(whole for _, _, whole in other), told)


@contextmanager
def traced(modules: Mapping[str, nn.Module]) -> Iterator[set[str]]:
    """The addresses of the modules that are called while this is open."""
    ran: set[str] = set()

    def listing(address: str) -> Callable[..., None]:
        return lambda *_: ran.add(address)

    handles = [
        module.register_forward_pre_hook(listing(f"{name}:{path}"))
        for name, component in modules.items()
        for path, module in component.named_modules()
    ]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def layers_run(inventory: Inventory, idle: Collection[str], ran: Collection[str]) -> Finding:
    """Every layer that may be pruned takes part in an image, and what is taken for idle does not."""
    # Which experts run is up to the prompt.
    never = [a.address for a in inventory.layers if a.address not in ran and "expert" not in a.address]
    awake = sorted(set(idle) & set(ran))
    told = f"{len(inventory.layers)} prunable layers run, {len(idle)} modules with weights never do"
    if never:
        told = f"{len(never)} prunable layers never run ({never[0]} …): name them in `prune.exclude`"
    elif awake:
        told = f"{len(awake)} modules are taken for idle and run ({awake[0]} …)"
    return judged("idle layers", not never and not awake, told)


def cost(foretold: tuple[int, int], counted: tuple[int, int]) -> Finding:
    """(NFE, scheduler steps) of an image, foretold without weights and counted."""
    said = f"{foretold[0]} NFE in {foretold[1]} steps foretold, {counted[0]} in {counted[1]} counted"
    return judged("cost", foretold == counted, said)


def pixels(images: Tensor) -> Finding:
    """Images lie in [0, 1] and are not one flat colour."""
    low, high = float(images.min()), float(images.max())
    fine = low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK and bool(images.isfinite().all()) and high > low
    return judged("pixels", fine, f"from {low:.4g} to {high:.4g}")


SHORT = Prompt("check-short", "a small cat")
LONG = Prompt(
    "check-long", "a long story of many dogs and cats and birds that sit on a hill and look at the moon"
)

ROUNDING = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.03}
"""What another batch size may change of a pixel in [0, 1]."""


def neighbours(pipeline: DiffusionPipeline, sampling: Sampling, dtype: str) -> Finding:
    """An image is the same beside a longer prompt; two steps are enough to tell."""
    few = sampling.model_copy(update={"steps": min(2, sampling.steps)})
    alone = call_pipeline(pipeline, [SHORT], [0], few)
    beside = call_pipeline(pipeline, [SHORT, LONG], [0, 0], few)
    found = alike(
        "neighbours", alone[0], beside[0], ROUNDING[dtype], "an image alone and beside a longer prompt"
    )
    remedy = "; set `sampling.batch: 1`" if found.verdict == "wrong" else ""
    return replace(found, told=found.told + remedy)


def alike(check: str, one: Tensor, other: Tensor, allowed: float, told: str) -> Finding:
    """Two images, which should be the same, differ by no more than rounding."""
    if one.shape != other.shape:
        return judged(check, False, f"{told}: {tuple(one.shape)} against {tuple(other.shape)}")
    difference = float((one - other).abs().max())
    return judged(check, difference <= allowed, f"{told}: {difference:.2g}, allowed {allowed:.2g}")


def refuse(finding: Finding) -> None:
    """Stop where a check says wrong.

    Raises:
        RaysenseError: It does.
    """
    if finding.verdict == "wrong":
        raise RaysenseError(
            f"`pipeline`: {finding.check}: {finding.told}; `raysense doctor` looks at all of it"
        )
