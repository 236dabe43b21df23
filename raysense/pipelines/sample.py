"""Sampling with common random numbers: prompt id and seed alone fix the noise of an image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.pipelines.adapter import (
    call_arguments,
    denoisers_of,
    images_in,
    prompt_arguments,
    samples_in,
    set_guiders,
    wrapped,
)
from raysense.prompts.sets import Prompt
from raysense.study import Sampling

RANGE_SLACK = 1e-3
"""How far pixels may lie outside [0, 1]: rounding of 16-bit types."""


def first_seed(study_seed: int) -> int:
    """The first seed of a study's images; the others count on from it."""
    return study_seed * 10_000_000


def noise_seed(prompt_id: str, seed: int) -> int:
    """The 63-bit seed of the generator behind one image."""
    digest = hashlib.sha256(f"{seed}\0{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generators(prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator an image.

    diffusers draws each image's starting noise, and every stochastic step, from the image's own generator,
    so batch size, order and worker do not matter.
    """
    pairs = zip(prompts, seeds, strict=True)
    return [torch.Generator("cpu").manual_seed(noise_seed(prompt.id, seed)) for prompt, seed in pairs]


def call_pipeline(
    pipeline: DiffusionPipeline,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    sampling: Sampling,
) -> Tensor:
    """Sample one image a prompt.

    Args:
        pipeline: What samples.
        prompts: The prompts.
        seeds: One seed a prompt.
        sampling: How images are made.

    Returns:
        Float32 tensor of shape (len(prompts), 3, height, width) in [0, 1], on the CPU; NaN where it broke down.

    Raises:
        RaysenseError: The pipeline gives something else than such images, or does not take what `sampling` asks for.
    """
    set_guiders(pipeline, sampling.guidance)
    output = pipeline(
        **prompt_arguments(pipeline, [prompt.text for prompt in prompts], call_arguments(pipeline, sampling)),
        generator=generators(prompts, seeds),
    )
    images = images_in(pipeline, output, len(prompts))
    _refuse_other_size(pipeline, images, sampling)
    return images


def _refuse_other_size(pipeline: DiffusionPipeline, images: Tensor, sampling: Sampling) -> None:
    """Refuse images of another size than was asked for: Stable Diffusion makes its own where one side is missing.

    Raises:
        RaysenseError: See above.
    """
    height, width = images.shape[-2:]
    for name, pixels in (("height", height), ("width", width)):
        asked = getattr(sampling, name)
        if asked is not None and asked != pixels:
            other = "width" if name == "height" else "height"
            remedy = (
                f"give `sampling.{other}` too"
                if getattr(sampling, other) is None
                else "ask for a size that it makes"
            )
            raise RaysenseError(
                f"`sampling.{name}` is {asked}, but {type(pipeline).__name__} makes images of {height} x {width} "
                f"(height x width); {remedy}"
            )


def refuse_other_scale(pipeline: DiffusionPipeline, images: Tensor) -> None:
    """Refuse a pipeline whose dense images leave [0, 1]: every metric would judge other images than people see.

    Raises:
        RaysenseError: They do.
    """
    finite = images[images.isfinite()]
    if finite.numel() and (finite.min() < -RANGE_SLACK or finite.max() > 1 + RANGE_SLACK):
        raise RaysenseError(
            f"`pipeline`: {type(pipeline).__name__} gives pixels from {finite.min():.4g} to {finite.max():.4g} for "
            "output_type='np', where [0, 1] is meant; raysense does not know how to bring them there"
        )


@dataclass
class Meter:
    """Counts samples that went through the denoiser: the currency of every budget."""

    nfe: int = 0


@contextmanager
def metered(pipeline: DiffusionPipeline) -> Iterator[Meter]:
    """Count NFE while the context is open (guidance counts two)."""
    meter = Meter()

    def counted(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            meter.nfe += samples_in(args, kwargs)
            return forward(*args, **kwargs)

        return call

    # Not by hooks: these run too where a replay answers instead of the denoiser.
    with ExitStack() as stack:
        for denoiser in denoisers_of(pipeline).values():
            stack.enter_context(wrapped(denoiser, "forward", counted))
        yield meter
