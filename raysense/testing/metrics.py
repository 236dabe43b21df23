"""Checks of what judges images: metrics and feature extractors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from raysense.metrics.custom import checked_metric, checked_set_metric, set_intervals
from raysense.metrics.features import FeatureExtractor
from raysense.metrics.spec import OfSet
from raysense.testing.contract import asserted, declared_as, equal, near, other_random_numbers

PROMPTS = ("a red ball", "a house", "two cats", "the sea", "a map", "a cup of tea", "an owl", "night")
FEATURES = 12


def images(count: int = len(PROMPTS), side: int = 32) -> Tensor:
    """Smooth made-up images: float32 (count, 3, side, side) in [0, 1]."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1)


def noised(sound: Tensor, strength: float = 0.5) -> Tensor:
    """Images or features with Gaussian noise on them; images stay in [0, 1]."""
    noise = torch.randn(sound.shape, generator=torch.Generator().manual_seed(2))
    harmed = sound + strength * noise
    return harmed.clamp(0, 1) if sound.ndim == 4 else harmed


def check_metric(metric: Callable[..., Any], *, harm: Callable[[Tensor], Tensor] | None = None) -> None:
    """Check a metric of images or of the set, whichever its decorator says.

    Shape and finiteness of its answer; that equal inputs give equal answers whatever random numbers the process draws;
    that its inputs stay as they are; that no image's number depends on others in the batch, or that the order of a set
    does not count; and that harm makes it worse.

    Args:
        metric: Decorated with `raysense.metric`.
        harm: Damage that the metric must see: sound images (n, 3, h, w) in, harmed ones out; for a metric of the set
            (n, d) features that come from the reference's distribution. By default strong Gaussian noise.

    Raises:
        AssertionError: It breaks its contract; says how.
    """
    said = declared_as(metric, "metric")
    up = bool(said.facts["higher_is_better"])
    if said.facts["kind"] == "set":
        _check_of_set(metric, said.name, up, harm or (lambda sound: noised(sound, 2.0)))
    else:
        _check_of_image(metric, said.name, up, harm or noised)


def _check_of_image(
    metric: Callable[..., Any], name: str, up: bool, harm: Callable[[Tensor], Tensor]
) -> None:
    measure = checked_metric(metric, name)
    sound, dense = images(), images()
    with asserted():
        other_random_numbers(1)
        first = measure(sound, PROMPTS, dense)
        other_random_numbers(2)
        second = measure(sound, PROMPTS, dense)
        alone = [
            measure(sound[i : i + 1], PROMPTS[i : i + 1], dense[i : i + 1])[0] for i in range(len(sound))
        ]
        harmed = measure(harm(images()), PROMPTS, dense)
    assert equal(sound, images()), f"{name}: changed the images that it was given"
    assert equal(dense, images()), f"{name}: changed the dense images that it was given"
    assert equal(first, second), f"{name}: gave {first} and then {second} for the same images"
    assert near(first, alone), (
        f"{name}: an image's number depends on the others in its batch: {first}, alone {alone}"
    )
    _assert_worse(name, up, float(first.mean()), float(harmed.mean()))


def _check_of_set(metric: Callable[..., Any], name: str, up: bool, harm: Callable[[Tensor], Tensor]) -> None:
    measure = checked_set_metric(metric, name)
    generator = torch.Generator().manual_seed(3)
    sound, reference = (torch.randn(n, FEATURES, generator=generator) for n in (64, 96))
    kept = sound.clone(), reference.clone()
    turned = torch.randperm(len(sound), generator=generator)
    with asserted():
        other_random_numbers(1)
        first = measure(sound, reference)
        other_random_numbers(2)
        second = measure(sound, reference)
        shuffled = measure(sound[turned], reference)
        harmed = measure(harm(sound.clone()), reference)
        ids = [str(i) for i in range(len(sound))]
        value, _ = set_intervals(
            OfSet(measure), sound, harm(sound.clone()), reference, ids, higher_is_better=up
        )
    assert equal(sound, kept[0]), f"{name}: changed the features that it was given"
    assert equal(reference, kept[1]), f"{name}: changed the reference that it was given"
    assert first == second, f"{name}: gave {first} and then {second} for the same features"
    assert near(first, shuffled), f"{name}: the order of the images counts: {first}, shuffled {shuffled}"
    assert value.ci_high > value.ci_low, (
        f"{name}: leaving out images changes nothing, so its interval is empty: is it smooth in every image?"
    )
    _assert_worse(name, up, first, harmed)


def _assert_worse(name: str, up: bool, sound: float, harmed: float) -> None:
    way = "higher" if up else "lower"
    assert (harmed < sound) if up else (harmed > sound), (
        f"{name}: its decorator says that {way} is better, but harm took it from {sound:.6g} to {harmed:.6g}; set "
        f"`higher_is_better={not up}`, or give `harm=…`, damage that it must see"
    )


def check_extractor(make: Callable[..., Any]) -> None:
    """Check a feature extractor: shape, type and finiteness; determinism; that batches do not count; that it sees.

    Args:
        make: Decorated with `raysense.extractor`; called with ``device="cpu"`` and ``batch``.

    Raises:
        AssertionError: It breaks its contract; says how.
    """
    name = declared_as(make, "extractor").name
    other_random_numbers(1)
    whole = make(device="cpu", batch=64)
    assert isinstance(whole, FeatureExtractor), (
        f"{name}: made a {type(whole).__name__} without `name` and `images`"
    )
    sound = images()
    first = whole.images(sound)
    other_random_numbers(2)
    assert isinstance(first, Tensor), f"{name}: `images` must give a tensor, but gave {type(first).__name__}"
    assert first.ndim == 2, f"{name}: features must be (n, d), but are {tuple(first.shape)}"
    assert len(first) == len(sound), f"{name}: gave {len(first)} rows for {len(sound)} images"
    assert first.dtype == torch.float32, f"{name}: features must be float32, but are {first.dtype}"
    assert bool(torch.isfinite(first).all()), f"{name}: features hold NaN or infinity"
    assert equal(sound, images()), f"{name}: changed the images that it was given"
    assert equal(first, whole.images(sound)), f"{name}: gave other features for the same images"
    again = make(device="cpu", batch=3).images(sound)
    assert near(first, again), f"{name}: features depend on `batch`, or on when the extractor was made"
    assert not near(first[0], first[1]), f"{name}: gave two different images the same features"
