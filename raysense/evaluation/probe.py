"""The probe: how far the pruned pipeline's next step is from the dense one's, without a sampling loop.

Inputs of the denoiser are recorded once from dense sampling at a few timesteps. An evaluation replays them
through the pruned denoiser, under the condition that the pruned text encoders give, and compares the *guided*
prediction (unconditional + guidance x difference), which is what the sampler follows. Where the VAE is pruned,
the error of the decoded final latents is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from raysense.pipelines.load import denoiser_of, modules_of
from raysense.pipelines.prompts import Prompt
from raysense.pipelines.sample import call_pipeline
from raysense.study import Sampling


class _FirstCallSeen(Exception):
    """Ends a sampling call as soon as the denoiser's condition is known."""


class _Recorder:
    """Records the calls of the denoiser: (positional, keyword arguments) and what it gave."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._handle = denoiser.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls.append((args, kwargs))

    def close(self) -> None:
        self._handle.remove()


class Probe:
    """Cached denoiser inputs of a pipeline while it is dense.

    Args:
        pipeline: Dense at this moment.
        prompts: One starting noise each.
        seeds: One seed a prompt.
        sampling: How the recorded trajectories are made.
        timesteps: How many steps of the trajectory are kept, spread evenly.
        decodes: Also compare decoded images (for a pruned VAE).
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        sampling: Sampling,
        timesteps: int,
        decodes: bool,
    ) -> None:
        self._pipeline, self._prompts, self._seeds, self._sampling = pipeline, prompts, seeds, sampling
        self._denoiser = denoiser_of(pipeline)
        recorder = _Recorder(self._denoiser)
        try:
            call_pipeline(pipeline, prompts, seeds, sampling)
        finally:
            recorder.close()
        count = min(timesteps, len(recorder.calls))
        # Centres of `count` equal slices of the trajectory: neither pure noise nor the finished image only.
        chosen = [int((i + 0.5) * len(recorder.calls) / count) for i in range(count)]
        self._calls = [recorder.calls[i] for i in chosen]
        self._dense = [self._guided(self._denoiser(*args, **kwargs)) for args, kwargs in self._calls]
        self._vae = modules_of(pipeline).get("vae") if decodes else None
        self._decoded = self._decode()

    @property
    def tuples(self) -> int:
        """How many (latent, timestep, condition) tuples an evaluation compares."""
        return len(self._calls) * len(self._prompts)

    def errors(self) -> Tensor:
        """Relative squared errors of the pipeline as it is now.

        Returns:
            Float64 tensor of shape (prompts,): |guided - dense guided|² / |dense guided|², averaged over the
            timesteps, plus the same ratio for decoded images where the VAE is studied.
        """
        condition = self._condition()
        total = torch.zeros(len(self._prompts), dtype=torch.float64)
        for (args, kwargs), dense in zip(self._calls, self._dense, strict=True):
            guided = self._guided(self._denoiser(*args, **{**kwargs, **condition}))
            total += _relative_error(guided, dense) / len(self._calls)
        if self._decoded is not None:
            decoded = self._decode()
            assert decoded is not None
            total += _relative_error(decoded, self._decoded)
        return total

    def _condition(self) -> dict[str, Any]:
        """The keyword arguments of the denoiser that come from the text encoders, as they are now."""
        recorder = _Recorder(self._denoiser)
        stop = self._denoiser.register_forward_pre_hook(_stop)
        try:
            call_pipeline(self._pipeline, self._prompts, self._seeds, self._sampling)
        except _FirstCallSeen:
            pass
        finally:
            stop.remove()
            recorder.close()
        _, kwargs = recorder.calls[0]
        latent_names = ("sample", "hidden_states", "timestep")
        return {name: value for name, value in kwargs.items() if name not in latent_names}

    def _guided(self, output: Any) -> Tensor:
        prediction: Tensor = output[0] if isinstance(output, tuple) else output.sample
        prediction = prediction.double().cpu()
        if len(prediction) == 2 * len(self._prompts):
            unconditional, conditional = prediction.chunk(2)
            return unconditional + self._sampling.guidance * (conditional - unconditional)
        return prediction

    def _decode(self) -> Tensor | None:
        if self._vae is None:
            return None
        sample = self._calls[-1][0][0] if self._calls[-1][0] else self._calls[-1][1]["sample"]
        latents = sample[: len(self._prompts)]
        decoded: Tensor = self._vae.decode(latents, return_dict=False)[0]  # type: ignore[operator]
        return decoded.double().cpu()


def _stop(module: nn.Module, args: tuple[Any, ...]) -> None:
    raise _FirstCallSeen


def _relative_error(now: Tensor, dense: Tensor) -> Tensor:
    difference = (now - dense).flatten(1).square().sum(1)
    return difference / dense.flatten(1).square().sum(1).clamp_min(1e-12)
