"""The probe: how far the pruned pipeline's next step is from the dense one's, without a sampling loop.

Inputs of the denoiser are recorded once from dense sampling at a few timesteps. An evaluation replays them
through the pruned denoiser, under the condition that the pruned text encoders give, and compares the *guided*
prediction (unconditional + guidance x difference), which is what the sampler follows. Where the VAE is pruned,
the error of the decoded final latents is added. The error of the text embeddings themselves, the null prompt's
included, is measured beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from raysense.pipelines.load import denoiser_of, modules_of
from raysense.pipelines.prompts import Prompt
from raysense.pipelines.sample import call_pipeline
from raysense.study import Sampling, Study

Call = tuple[tuple[Any, ...], dict[str, Any]]


class _FirstCallSeen(Exception):
    """Ends a sampling call as soon as the denoiser's condition is known."""


@contextmanager
def _recorded(denoiser: nn.Module, *, only_first: bool = False) -> Iterator[list[Call]]:
    """The calls of the denoiser; with `only_first`, sampling ends at the first one, before it runs or counts."""
    calls: list[Call] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))
        if only_first:
            raise _FirstCallSeen

    handle = denoiser.register_forward_pre_hook(record, with_kwargs=True, prepend=True)
    try:
        with suppress(_FirstCallSeen):
            yield calls
    finally:
        handle.remove()


EXTRACTOR = "denoiser output"
"""What a probe error compares."""


def probe_cost(study: Study, *, records: bool = False) -> int:
    """Sample-forwards of a probe; with those of an evaluator's first one, which records the dense pipeline's inputs."""
    probe, guided = study.rungs.probe, 2 if study.sampling.guidance > 1 else 1
    recorded = probe.timesteps + study.sampling.steps if records else 0
    return probe.prompts * (probe.timesteps + recorded) * guided


class Probe:
    """Cached denoiser inputs of a pipeline while it is dense.

    Args:
        pipeline: Dense at this moment.
        prompts: One starting noise each.
        seeds: One seed a prompt.
        sampling: How the recorded trajectories are made.
        timesteps: How many steps of the trajectory are kept, spread evenly.
        decodes: Also compare decoded images (for a pruned VAE).
        tilt: Weight of a timestep, exp(tilt · position), from +½ (the noisiest) to −½ (the last), normalised.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        sampling: Sampling,
        timesteps: int,
        decodes: bool,
        tilt: float = 0.0,
    ) -> None:
        self._pipeline, self._prompts, self._seeds, self._sampling = pipeline, prompts, seeds, sampling
        self._denoiser = denoiser_of(pipeline)
        with _recorded(self._denoiser) as calls:
            call_pipeline(pipeline, prompts, seeds, sampling)
        count = min(timesteps, len(calls))
        # Centres of `count` equal slices of the trajectory: neither pure noise nor the finished image only.
        places = [(i + 0.5) / count for i in range(count)]
        self._calls = [calls[int(place * len(calls))] for place in places]
        weights = torch.tensor([math.exp(tilt * (0.5 - place)) for place in places], dtype=torch.float64)
        self._weights = (weights / weights.sum()).tolist()
        self._embeddings = self._texts(self._condition())
        self._dense = [self._guided(self._denoiser(*args, **kwargs)) for args, kwargs in self._calls]
        self._vae = modules_of(pipeline).get("vae") if decodes else None
        self._decoded = self._decode()

    @property
    def tuples(self) -> int:
        """How many (latent, timestep, condition) tuples an evaluation compares."""
        return len(self._calls) * len(self._prompts)

    def errors(self) -> dict[str, Tensor]:
        """Relative squared errors of the pipeline as it is now.

        Returns:
            Float64 tensors of shape (prompts,). ``probe_error``: |guided − dense guided|² / |dense guided|²,
            weighted over the timesteps, plus the same ratio for decoded images where the VAE is studied.
            ``text_error``: the same ratio of the condition that the text encoders give, averaged over the
            prompt and, where guidance runs it, the null prompt; left out where there is no such condition.
        """
        condition = self._condition()
        total = torch.zeros(len(self._prompts), dtype=torch.float64)
        for (args, kwargs), dense, weight in zip(self._calls, self._dense, self._weights, strict=True):
            guided = self._guided(self._denoiser(*args, **{**kwargs, **condition}))
            total += weight * _relative_error(guided, dense)
        if self._decoded is not None:
            decoded = self._decode()
            assert decoded is not None
            total += _relative_error(decoded, self._decoded)
        errors = {"probe_error": total}
        if self._embeddings:
            now = self._texts(condition)
            parts = [_relative_error(a, b) for a, b in zip(now, self._embeddings, strict=True)]
            rows = torch.stack(parts).mean(0)
            errors["text_error"] = rows.view(-1, len(self._prompts)).mean(0)
        return errors

    def _condition(self) -> dict[str, Any]:
        """The keyword arguments of the denoiser that come from the text encoders, as they are now."""
        with _recorded(self._denoiser, only_first=True) as calls:
            call_pipeline(self._pipeline, self._prompts, self._seeds, self._sampling)
        _, kwargs = calls[0]
        latent_names = ("sample", "hidden_states", "timestep")
        return {name: value for name, value in kwargs.items() if name not in latent_names}

    def _texts(self, condition: dict[str, Any]) -> list[Tensor]:
        """The embeddings in a condition: its sequences of vectors, (prompts or twice as many, tokens, width)."""
        n = len(self._prompts)
        return [
            leaf.double().cpu()
            for leaf in tree_flatten(condition)[0]
            if isinstance(leaf, Tensor)
            and leaf.is_floating_point()
            and leaf.ndim == 3
            and len(leaf) in (n, 2 * n)
        ]

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


def _relative_error(now: Tensor, dense: Tensor) -> Tensor:
    difference = (now - dense).flatten(1).square().sum(1)
    return difference / dense.flatten(1).square().sum(1).clamp_min(1e-12)
