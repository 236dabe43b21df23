"""The probe: how far the pruned pipeline's next step is from the dense one's, without a sampling loop.

The pipeline's own code is replayed along the *dense* trajectory: at a few of its steps the pruned denoiser really runs,
under the condition that the pruned text encoders give; at all others it is given what it said first, which nobody
looks at. What is compared is what the pipeline hands to its scheduler: the *guided* prediction, however many calls of
the denoiser it takes and however they are combined. The scheduler itself always steps with the dense prediction, so
that every call gets the latents of the dense trajectory and its own embeddings, masks and pooled vectors. Where the
VAE is pruned, it decodes the dense trajectory's end, and the error of what it gives is added. The error of the text
embeddings themselves, the null prompt's included, is measured beside it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.utils._pytree import tree_map

from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.evaluation.live_pipeline import LivePipeline
from raysense.evaluation.method_selection import EXTRACTOR
from raysense.evaluation.rungs.base import Found
from raysense.evaluation.sampler import seed_of
from raysense.evaluation.scoring import measure
from raysense.metrics.builtin.probe_error import PROBE_ERROR
from raysense.metrics.builtin.text_error import TEXT_ERROR
from raysense.metrics.intervals import mean_interval
from raysense.pipelines.adapter import conditions_in, denoisers_of, samples_in, schedulers_of, wrapped
from raysense.pipelines.load import modules_of
from raysense.pipelines.sample import call_pipeline, refuse_other_scale
from raysense.prompts.sets import Prompt
from raysense.records import EvaluationRequest, Measure
from raysense.study import Sampling


class ProbeRung:
    """The probe on a study's first prompts: records the dense trajectories when first asked."""

    def __init__(self, live: LivePipeline) -> None:
        self._live = live
        self._probes: list[Probe] = []

    def measure(self, request: EvaluationRequest) -> Found:
        """See `Rung`."""
        return Found(self.errors(request.allocation))

    def errors(self, allocation: Allocation) -> dict[str, Measure]:
        """The measures ``probe_error`` and, where there are text embeddings, ``text_error`` of an allocation."""
        live = self._live
        while True:
            try:
                if not self._probes:
                    live.stand_at(Allocation())
                    self._probes = self._record()
                live.stand_at(allocation)
                found = [probe.errors() for probe in self._probes]
                if live.has_moved():
                    continue
                break
            except torch.OutOfMemoryError:
                self._probes = []
                live.halve_batch()
        tuples = sum(probe.tuples for probe in self._probes)
        return {
            name: measure(mean_interval(torch.cat([errors[name] for errors in found]).numpy()), what, n=n)
            for name, what, n in (
                (PROBE_ERROR, EXTRACTOR, tuples),
                (TEXT_ERROR, "text embeddings", None),
            )
            if all(name in errors for errors in found)
        }

    def _record(self) -> list[Probe]:
        """One probe for as many prompts as fit into a batch."""
        live, study = self._live, self._live.study
        rung, modules = study.rungs.probe, modules_of(live.pipeline)
        prompts = live.prompts.of("probe", rung.prompts)
        return [
            Probe(
                live.pipeline,
                prompts[start : start + live.batch],
                [seed_of(study, 0, 0)] * len(prompts[start : start + live.batch]),
                study.sampling,
                rung.timesteps,
                decodes=any(hasattr(modules[name], "decode") for name in study.prune.components),
                tilt=rung.tilt,
            )
            for start in range(0, len(prompts), live.batch)
        ]


class _Enough(Exception):
    """Ends a sampling call as soon as everything was seen."""


class Probe:
    """The dense trajectory of a pipeline, to be replayed.

    Args:
        pipeline: Dense at this moment.
        prompts: One starting noise each.
        seeds: One seed a prompt.
        sampling: How the recorded trajectories are made.
        timesteps: How many steps of the trajectory are compared, spread evenly.
        decodes: Also compare decoded images (for a pruned VAE).
        tilt: Weight of a timestep, exp(tilt · position), from +½ (the noisiest) to −½ (the last), normalised.

    Raises:
        RaysenseError: A stage has no step that is compared; or the pipeline cannot be replayed: dense, it does not
            give what it gave before, to the bit.
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
        self._decodes = decodes
        self._dense: list[Tensor] = []
        self._said: dict[
            tuple[str, int, int], Any
        ] = {}  # denoiser, place in a step, samples -> such an output
        self._wanted: dict[int, float] = {}
        recorded = self._record()
        count = min(timesteps, len(self._dense))
        # Centres of `count` equal slices of the trajectory: neither pure noise nor the finished image only.
        places = [(i + 0.5) / count for i in range(count)]
        weights = torch.tensor([math.exp(tilt * (0.5 - place)) for place in places], dtype=torch.float64)
        steps = [int(place * len(self._dense)) for place in places]
        self._wanted = dict(zip(steps, (weights / weights.sum()).tolist(), strict=True))
        self._refuse_blind(recorded, timesteps)
        self._embeddings, self._decoded = recorded.embeddings, recorded.decoded
        self._refuse_unless_exact()

    @property
    def tuples(self) -> int:
        """How many (latent, timestep, condition) tuples an evaluation compares."""
        return len(self._wanted) * len(self._prompts)

    def errors(self) -> dict[str, Tensor]:
        """Relative squared errors of the pipeline as it is now.

        Returns:
            Float64 tensors of shape (prompts,). ``probe_error``: |guided − dense guided|² / |dense guided|²,
            weighted over the timesteps, plus the same ratio for decoded images where the VAE is studied.
            ``text_error``: the same ratio of the condition that the text encoders give, averaged over the
            prompt and, where guidance runs it, the null prompt; left out where there is no such condition.
        """
        now = self._replay()
        total = torch.zeros(len(self._prompts), dtype=torch.float64)
        for step, weight in self._wanted.items():
            total += weight * _relative_error(now.guided[step], self._dense[step])
        if self._decoded:
            total += _relative_error(torch.cat(now.decoded), torch.cat(self._decoded))
        errors = {PROBE_ERROR: total}
        if self._embeddings:
            n = len(self._prompts)
            parts = [
                torch.cat([_relative_error(a, b) for a, b in zip(pruned, dense, strict=True)])
                .view(-1, n)
                .mean(0)
                for pruned, dense in zip(now.embeddings, self._embeddings, strict=True)
            ]
            errors[TEXT_ERROR] = torch.stack(parts).mean(0)
        return errors

    def _refuse_blind(self, recorded: _Seen, timesteps: int) -> None:
        """Stages may follow each other: what a stage without a compared step loses would go unseen."""
        unseen = [name for name, steps in recorded.steps_of.items() if not steps & self._wanted.keys()]
        if unseen:
            raise RaysenseError(
                f"`rungs.probe.timesteps` is {timesteps}, and none of these steps, of {len(self._dense)}, is one of "
                f"{', '.join(f'`{name}`' for name in unseen)}: the probe could not see what pruning does to it. Raise "
                "it, or make the pipeline's stages more equal in steps (`sampling.steps`, `sampling.call`)"
            )

    def _refuse_unless_exact(self) -> None:
        errors = self.errors()
        worst = {name: float(error.max()) for name, error in errors.items() if not bool((error == 0).all())}
        if worst:
            raise RaysenseError(
                f"`pipeline`: replayed, the dense {type(self._pipeline).__name__} does not give what it gave before "
                f"({', '.join(f'{name} {value:.3g}' for name, value in worst.items())} instead of 0), so what pruning "
                "does to it cannot be told apart; raysense does not measure this pipeline"
            )

    # --- the pipeline's own code, once more -----------------------------------------------------------

    def _record(self) -> _Seen:
        """Sample with the dense pipeline; keeps its guided predictions."""
        seen = _Seen(len(self._prompts))

        def step(scheduler: Callable[..., Any]) -> Callable[..., Any]:
            def kept(model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
                self._dense.append(model_output.clone())
                seen.step += 1
                seen.call = 0
                return scheduler(model_output, *args, **kwargs)

            return kept

        def denoiser(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
            def watched(*args: Any, **kwargs: Any) -> Any:
                output = forward(*args, **kwargs)
                seen.calls(name, args, kwargs)
                place = name, seen.call, samples_in(args, kwargs)
                if place not in self._said:
                    self._said[place] = _copy(output)
                return output

            return watched

        with self._around(step, denoiser, seen):
            images = call_pipeline(self._pipeline, self._prompts, self._seeds, self._sampling)
        refuse_other_scale(self._pipeline, images)
        shapes = {tuple(tensor.shape[:1]) for tensor in self._dense}
        if shapes != {(len(self._prompts),)}:
            raise RaysenseError(
                f"`pipeline`: {type(self._pipeline).__name__} hands its scheduler "
                f"{'nothing' if not shapes else 'predictions that are not one for each prompt'}; raysense cannot tell "
                "the next step of each image and does not measure this pipeline"
            )
        return seen

    def _replay(self) -> _Seen:
        """The same trajectory with the pipeline as it is now."""
        seen = _Seen(len(self._prompts))
        last = max(self._wanted)

        def step(scheduler: Callable[..., Any]) -> Callable[..., Any]:
            def given(model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
                number = seen.step
                if number in self._wanted:
                    seen.guided[number] = model_output.clone()
                seen.step += 1
                seen.call = 0
                if number == last and not self._decodes:
                    raise _Enough
                return scheduler(self._dense[number], *args, **kwargs)

            return given

        def denoiser(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
            def replayed(*args: Any, **kwargs: Any) -> Any:
                seen.calls(name, args, kwargs)
                if seen.step in self._wanted:
                    return forward(*args, **kwargs)
                return _copy(self._said[name, seen.call, samples_in(args, kwargs)])

            return replayed

        with self._around(step, denoiser, seen), suppress(_Enough):
            call_pipeline(self._pipeline, self._prompts, self._seeds, self._sampling)
        return seen

    @contextmanager
    def _around(self, step: Any, denoiser: Any, seen: _Seen) -> Iterator[None]:
        """While this is open, the scheduler's steps, the denoisers' calls and the VAE's decoding go through ours."""

        def decode(method: Callable[..., Any]) -> Callable[..., Any]:
            def kept(*args: Any, **kwargs: Any) -> Any:
                output = method(*args, **kwargs)
                seen.decoded.append((output[0] if isinstance(output, tuple) else output.sample).clone())
                return output

            return kept

        with ExitStack() as stack:
            for scheduler in schedulers_of(self._pipeline).values():
                stack.enter_context(wrapped(scheduler, "step", step))
            for name, module in denoisers_of(self._pipeline).items():
                stack.enter_context(wrapped(module, "forward", functools.partial(denoiser, name)))
            for module in modules_of(self._pipeline).values() if self._decodes else ():
                if hasattr(module, "decode"):
                    stack.enter_context(wrapped(module, "decode", decode))
            yield


class _Seen:
    """What went by while a pipeline sampled.

    Attributes:
        step: Steps of the scheduler so far.
        call: Calls of the denoiser in this step so far.
        guided: Step -> what the scheduler was handed.
        steps_of: Denoiser -> the steps in which it was called.
        embeddings: Those of each denoiser's first step, see `conditions_in`.
        decoded: What the VAE gave.
    """

    def __init__(self, prompts: int) -> None:
        self._prompts = prompts
        self.step = self.call = 0
        self.guided: dict[int, Tensor] = {}
        self.steps_of: dict[str, set[int]] = {}
        self.embeddings: list[list[Tensor]] = []
        self.decoded: list[Tensor] = []

    def calls(self, denoiser: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """A denoiser is called."""
        self.call += 1
        own = self.steps_of.setdefault(denoiser, set())
        own.add(self.step)
        if min(own) == self.step:
            found = conditions_in(args, kwargs, self._prompts)
            self.embeddings += [[tensor.clone() for tensor in rows] for rows in found]


def _copy(output: Any) -> Any:
    """The same tensors anew: pipelines may work on an output in place."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, output)


def _relative_error(now: Tensor, dense: Tensor) -> Tensor:
    """|now − dense|² / |dense|² of each row, in double precision on the CPU."""
    now, dense = now.double().cpu().flatten(1), dense.double().cpu().flatten(1)
    return (now - dense).square().sum(1) / dense.square().sum(1).clamp_min(1e-12)
