"""Sampling with common random numbers: prompt id and seed alone fix the noise of an image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from raysense.pipelines.load import denoiser_of
from raysense.pipelines.prompts import Prompt
from raysense.study import Sampling


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
        sampling: Steps, guidance and size.

    Returns:
        Float32 tensor of shape (len(prompts), 3, height, width) in [0, 1], on the CPU.
    """
    size = {k: v for k, v in (("height", sampling.height), ("width", sampling.width)) if v is not None}
    output = pipeline(
        prompt=[prompt.text for prompt in prompts],
        generator=generators(prompts, seeds),
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance,
        output_type="pt",
        **size,
    )
    images: Tensor = output.images
    return images.float().cpu()


@dataclass
class Meter:
    """Counts samples that went through the denoiser: the currency of every budget."""

    forwards: int = 0


@contextmanager
def metered(pipeline: DiffusionPipeline) -> Iterator[Meter]:
    """Count denoiser sample-forwards while the context is open (guidance counts two)."""
    meter = Meter()

    def count(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        assert isinstance(sample, Tensor)
        meter.forwards += len(sample)

    handle = denoiser_of(pipeline).register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield meter
    finally:
        handle.remove()
