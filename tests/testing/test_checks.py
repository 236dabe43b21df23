"""Each check passes a sound plug-in, and fails one that breaks the contract in one way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import raysense as rs
from raysense.allocation import Allocation
from raysense.pruning.saliency import output_rows
from raysense.records import EvaluationRequest, TrialSpec
from raysense.testing import (
    check_allocation_rule,
    check_extractor,
    check_metric,
    check_saliency,
    check_strategy,
)


@rs.metric("smooth")
def smooth(images, prompts, dense):
    return -(images[..., 1:] - images[..., :-1]).abs().mean(dim=(1, 2, 3))


@rs.metric("far", higher_is_better=False, kind="set")
def far(features, reference):
    return float((features.mean(0) - reference.mean(0)).square().sum() + (features.std(0) - 1).square().sum())


def in_place(images, prompts, dense):
    answer = smooth(images, prompts, dense)
    images.mul_(0.5)
    return answer


METRICS: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "shape": (lambda images, prompts, dense: images.mean(), {}, "must return one number an image"),
    "finite": (lambda images, prompts, dense: images.mean((1, 2, 3)) / 0, {}, "NaN or infinity"),
    "random": (lambda images, prompts, dense: torch.rand(len(images)), {}, "and then"),
    "in place": (in_place, {}, "changed the images"),
    "batch": (
        lambda images, prompts, dense: smooth(images, prompts, dense) - images.mean(),
        {},
        "depends on the others",
    ),
    "direction": (smooth, {"higher_is_better": False}, "lower is better, but harm took it"),
    "blind": (lambda images, prompts, dense: [float(len(p)) for p in prompts], {}, "harm took it"),
    "set shape": (lambda features, reference: features.mean(0), {"kind": "set"}, "must return one number"),
    "set random": (lambda features, reference: float(torch.rand(())), {"kind": "set"}, "and then"),
    "set order": (lambda features, reference: float(features[0].sum()), {"kind": "set"}, "order"),
    "set direction": (far, {"kind": "set"}, "higher is better, but harm took it"),
    "set blind": (lambda features, reference: float(len(reference)), {"kind": "set"}, "interval is empty"),
}


@pytest.mark.parametrize("what", METRICS)
def test_a_broken_metric_fails(what: str) -> None:
    function, facts, words = METRICS[what]

    def broken(*args):
        return function(*args)

    rs.metric("broken", **facts)(broken)
    with pytest.raises(AssertionError, match=words):
        check_metric(broken)


def test_sound_metrics_pass_and_undecorated_ones_are_told() -> None:
    check_metric(smooth)
    check_metric(far)
    with pytest.raises(AssertionError, match=r"decorate it with `@raysense\.metric"):
        check_metric(lambda images, prompts, dense: images)
    with pytest.raises(AssertionError, match="is decorated as metric, not as saliency"):
        check_saliency(smooth)


@rs.saliency("by_input", needs=["inputs"], kinds=["linear"])
def by_input(weight, known):
    return weight.abs().float() * known.inputs.sqrt().float()


def moving(weight, known):
    weight.zero_()
    return torch.ones_like(weight)


SALIENCIES: dict[str, tuple[Callable[..., Any], str]] = {
    "shape": (lambda weight, known: weight.flatten()[1:], "a finite score for each of"),
    "finite": (lambda weight, known: weight / 0, "a finite score for each of"),
    "random": (lambda weight, known: torch.rand(weight.shape), "other scores the second time"),
    "moving": (moving, "changed the weight"),
    "statistics": (lambda weight, known: weight.abs() * known.inputs.sqrt(), "'NoneType'"),
}


@pytest.mark.parametrize("what", SALIENCIES)
def test_a_broken_saliency_fails(what: str) -> None:
    function, words = SALIENCIES[what]

    def broken(weight, known):
        return function(weight, known)

    rs.saliency("broken")(broken)
    with pytest.raises((AssertionError, AttributeError), match=words):
        check_saliency(broken)


def test_a_sound_saliency_passes() -> None:
    check_saliency(by_input)


def smallest(weight: Tensor, zeros: int) -> Tensor:
    new = weight.clone().flatten()
    new[weight.abs().flatten().argsort(stable=True)[:zeros]] = 0
    return new.view_as(weight)


def noisy(weight, hessian, zeros, kind):
    return smallest(weight, zeros) + 1e-3 * torch.rand(weight.shape) * (smallest(weight, zeros) != 0)


UPDATES: dict[str, tuple[Callable[..., Any], str]] = {
    "shape": (lambda weight, hessian, zeros, kind: output_rows(weight, kind).t(), "but gave torch.float32"),
    "type": (lambda weight, hessian, zeros, kind: smallest(weight, zeros).half(), "torch.float16"),
    "count": (lambda weight, hessian, zeros, kind: smallest(weight, zeros + 1), "exactly"),
    "finite": (lambda weight, hessian, zeros, kind: smallest(weight, zeros) / 0, "NaN or infinity"),
    "random": (noisy, "another weight the second time"),
    "harm": (
        lambda weight, hessian, zeros, kind: 2 * smallest(weight, zeros),
        "makes the layer's output worse",
    ),
}


@pytest.mark.parametrize("what", UPDATES)
def test_a_broken_update_fails(what: str) -> None:
    function, words = UPDATES[what]

    def broken(weight, hessian, zeros, kind):
        return function(weight, hessian, zeros, kind)

    rs.saliency("broken", updates_weights=True)(broken)
    with pytest.raises(AssertionError, match=words):
        check_saliency(broken)


@rs.strategy("sound")
def sound(search, known):
    rng = np.random.default_rng(search.study.seed)
    for share in (0.1, 0.3):
        candidate = yield search.grid.uniform(share)
        assert candidate.strategy == "sound"
    pair = yield [search.grid.uniform(rng.uniform(0.3, 0.5)) for _ in range(2)]
    assert [one.feasible for one in pair] == [True, True]
    (probe,) = yield TrialSpec("mine", "search", (EvaluationRequest(pair[0].allocation, "probe"),))
    assert probe.measures["probe_error"].value > 0


def drawing(search, known):
    while True:
        yield search.grid.uniform(np.random.uniform(0, 0.5))  # noqa: NPY002


def nothing(search, known):
    if search is None:
        yield


STOP = threading.Event()
"""Ends the strategy that is stuck, once the check has seen it."""


def stuck(search, known):
    STOP.wait(20)
    yield search.grid.uniform(0.1)


def a_number(search, known):
    yield search.grid.uniform(0.1)
    yield 3


def elsewhere(search, known):
    yield Allocation({"unet:nowhere": 1})


def raising(search, known):
    yield search.grid.uniform(0.1)
    raise ValueError("of its own")


STRATEGIES: dict[str, tuple[Callable[..., Any], str]] = {
    "random": (drawing, "something else the second time: proposal 1"),
    "nothing": (nothing, "proposed nothing"),
    "stuck": (stuck, "did not come to its end in 1 s"),
    "no allocation": (a_number, "must give an Allocation, but gave int"),
    "unknown layer": (elsewhere, "nowhere"),
    "raising": (raising, "raised ValueError: of its own"),
    "no generator": (
        lambda search, known: [search.grid.uniform(0.1)],
        "a strategy is a generator, but gave list",
    ),
}


@pytest.mark.parametrize("what", STRATEGIES)
def test_a_broken_strategy_fails(what: str) -> None:
    function, words = STRATEGIES[what]

    def broken(search, known):
        return function(search, known)

    rs.strategy("broken")(broken)
    with pytest.raises(AssertionError, match=words):
        check_strategy(broken, seconds=1 if what == "stuck" else 60)
    if what == "stuck":
        STOP.set()


def test_a_sound_strategy_passes() -> None:
    check_strategy(sound)


@rs.allocation_rule("even")
def even(inventory, grid, zeros):
    return grid.nearest({a: zeros * grid.weights(a) / grid.n for a in grid.addresses}, zeros)


RULES: dict[str, tuple[Callable[..., Any], str]] = {
    "total": (lambda inventory, grid, zeros: grid.uniform(0.3), "was asked for 0 zeros"),
    "type": (lambda inventory, grid, zeros: {}, "must give an Allocation, but gave dict"),
    "level": (lambda inventory, grid, zeros: Allocation({grid.addresses[0]: 999}), "999"),
    "random": (
        lambda inventory, grid, zeros: grid.nearest(
            {a: float(torch.rand(())) * grid.weights(a) for a in grid.addresses}, zeros
        ),
        "differently the second time",
    ),
}


@pytest.mark.parametrize("what", RULES)
def test_a_broken_rule_fails(what: str) -> None:
    function, words = RULES[what]

    def broken(inventory, grid, zeros):
        return function(inventory, grid, zeros)

    rs.allocation_rule("broken")(broken)
    with pytest.raises(AssertionError, match=words):
        check_allocation_rule(broken)


def test_a_sound_rule_passes() -> None:
    check_allocation_rule(even)


@rs.extractor("mean")
class Mean:
    name = "mean"

    def __init__(self, device: str, batch: int) -> None:
        self.batch = batch

    def images(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class Unnamed:
    def __init__(self, device: str, batch: int) -> None:
        self.batch = batch


class Flat(Mean):
    def images(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))


class Double(Mean):
    def images(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)).double()


class Undefined(Mean):
    def images(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) / 0


class Batched(Mean):
    def images(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) * self.batch


class Blind(Mean):
    def images(self, images: Tensor) -> Tensor:
        return torch.ones(len(images), 3)


class Drawn(Mean):
    def images(self, images: Tensor) -> Tensor:
        return torch.rand(len(images), 3)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Unnamed, "without `name` and `images`"),
        (Flat, r"features must be \(n, d\)"),
        (Double, "must be float32"),
        (Undefined, "NaN or infinity"),
        (Batched, "depend on `batch`"),
        (Blind, "the same features"),
        (Drawn, "other features for the same images"),
    ],
)
def test_a_broken_extractor_fails(kind: type, words: str) -> None:
    rs.extractor("broken")(kind)
    with pytest.raises(AssertionError, match=words):
        check_extractor(kind)


def test_a_sound_extractor_passes() -> None:
    check_extractor(Mean)
