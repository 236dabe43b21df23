"""Memory of the device that an evaluator works on: what to do when it runs out."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from raysense.pipelines.load import modules_of

_most = 0


def most_allocated() -> int:
    """The most bytes that tensors of this process ever took of its GPU, `forget_peak` or not."""
    return max(_most, torch.cuda.max_memory_allocated())


def forget_peak() -> int:
    """Let `torch.cuda.max_memory_allocated` begin anew, for a part of the work; returns what is allocated now."""
    global _most
    torch.cuda.synchronize()
    _most = most_allocated()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def release_memory() -> None:
    """Give back what the call that just ran out of memory still holds; to be called while its error is handled.

    The error's traceback keeps every frame, and with it every tensor of the broken-off call, until it is handled.
    """
    error = sys.exception()
    if error is not None:
        traceback.clear_frames(error.__traceback__)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def decode_in_slices(pipeline: DiffusionPipeline, tell: Callable[[str], None]) -> None:
    """Let the pipeline's decoders go on with half the latents when memory runs out, for good.

    A VAE takes many times the denoiser's memory for an image. The latents are kept meanwhile, so that no trajectory is
    sampled anew; where everything fits, nothing is different.

    Args:
        pipeline: Whose components with a ``decode``.
        tell: Called with a sentence when latents are first decoded in smaller slices.
    """
    for name, module in modules_of(pipeline).items():
        decode: Any = getattr(module, "decode", None)
        if callable(decode):
            vars(module)["decode"] = _in_slices(name, decode, tell)


def _in_slices(name: str, decode: Callable[..., Any], tell: Callable[[str], None]) -> Callable[..., Any]:
    most: int | None = None

    @functools.wraps(decode)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal most
        if not args or not isinstance(args[0], Tensor):
            return decode(*args, **kwargs)
        latents, *others = args
        while True:
            size = min(most or len(latents), len(latents))
            try:
                return _joined([decode(part, *others, **kwargs) for part in latents.split(size)])
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                most = size // 2
                tell(f"out of memory: {name} decodes {size} -> {most} at a time")
                release_memory()

    return call


def _joined(outputs: Sequence[Any]) -> Any:
    """What a decoder gives for slices, as what it gives for all of them: a tensor, a tuple of one, or an output."""
    first = outputs[0]
    if len(outputs) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(outputs))
    if isinstance(first, tuple):
        return tuple(torch.cat(same) for same in zip(*outputs, strict=True))
    return type(first)(sample=torch.cat([output.sample for output in outputs]))
