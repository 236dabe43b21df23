"""The cheapest rung: how wrong each pruned layer's own output is, on inputs of the dense pipeline.

Nothing is sampled and the denoiser does not run: only the pruned layers do, each on inputs that it saw while the
pipeline was dense. What errors do to later layers is not seen; that is what the probe is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from raysense.allocation import Allocation
from raysense.evaluation.live_pipeline import LivePipeline
from raysense.evaluation.rungs.base import Found
from raysense.evaluation.sampler import seed_of
from raysense.evaluation.scoring import measure
from raysense.metrics.builtin.layer_error import LAYER_ERROR
from raysense.metrics.intervals import mean_interval
from raysense.pipelines.adapter import denoisers_of, samples_in, schedulers_of, wrapped
from raysense.pipelines.load import modules_of
from raysense.pipelines.sample import call_pipeline
from raysense.prompts.sets import Prompt
from raysense.pruning.layers import Inventory
from raysense.records import EvaluationRequest
from raysense.study import Sampling


class LayerRung:
    """Layer outputs on a study's first prompts: records the dense layers' inputs and outputs when first asked."""

    def __init__(self, live: LivePipeline) -> None:
        self._live = live
        self._layers: LayerOutputs | None = None

    def measure(self, request: EvaluationRequest) -> Found:
        """See `Rung`; the cost is counted in NFE, by the share of weights that run."""
        live = self._live
        if self._layers is None:
            self._layers = self._record()
        live.stand_at(request.allocation)
        pruned = {a for leader in request.allocation for a in live.grid.members(leader)}
        errors = self._layers.errors(pruned)
        share = sum(layer.n for layer in live.inventory.layers if layer.address in pruned) / live.grid.n
        measures = {LAYER_ERROR: measure(mean_interval(errors.numpy()), "layer outputs")}
        return Found(measures, nfe=math.ceil(share * self._layers.nfe))

    def _record(self) -> LayerOutputs:
        live, rung = self._live, self._live.study.rungs.layer
        live.stand_at(Allocation())
        prompts = live.prompts.of("layer", rung.prompts)
        seeds = [seed_of(live.study, 0, 0)] * len(prompts)
        with live.watchable():
            return LayerOutputs(
                live.pipeline, live.inventory, prompts, seeds, live.study.sampling, rung.timesteps
            )


MANY = 10_000
"""More steps than any trajectory has."""


def _steps_to_keep(schedulers: Sequence[Any], timesteps: int) -> Iterable[int]:
    """Evenly spread steps, once the scheduler knows how many there are; all of them where stages follow each other."""
    if len(schedulers) > 1:
        return range(MANY)
    (scheduler,) = schedulers
    steps = len(scheduler.timesteps)
    kept = min(timesteps, steps)
    return [int((i + 0.5) * steps / kept) for i in range(kept)]


class LayerOutputs:
    """Inputs and outputs of the selected layers of a pipeline while it is dense.

    Args:
        pipeline: Dense at this moment.
        inventory: Its selected layers.
        prompts: One starting noise each.
        seeds: One seed a prompt.
        sampling: How the recorded trajectory is made.
        timesteps: At how many steps the denoiser's calls are kept, spread evenly; of other components, all are.

    Attributes:
        nfe: NFE at the steps that are kept.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        inventory: Inventory,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        sampling: Sampling,
        timesteps: int,
    ) -> None:
        self._count, self._selected = len(prompts), len(inventory.layers)
        modules, denoisers = modules_of(pipeline), denoisers_of(pipeline)
        self.nfe = 0
        self._layers = {
            layer.address: modules[layer.component].get_submodule(layer.path) for layer in inventory.layers
        }
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = {address: [] for address in self._layers}
        schedulers = list(schedulers_of(pipeline).values())
        wanted: set[int] = set()
        step = 0

        def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not wanted:
                wanted.update(_steps_to_keep(schedulers, timesteps))
            if step in wanted:
                self.nfe += samples_in(args, kwargs)

        def counting(advance: Callable[..., Any]) -> Callable[..., Any]:
            def stepped(*args: Any, **kwargs: Any) -> Any:
                nonlocal step
                step += 1
                return advance(*args, **kwargs)

            return stepped

        def watch(address: str, of_denoiser: bool) -> Callable[..., None]:
            def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                if not of_denoiser or step in wanted:
                    given = args[0] if args else next(iter(kwargs.values()))
                    self._seen[address].append((given, output))

            return keep

        handles = [part.register_forward_pre_hook(count, with_kwargs=True) for part in denoisers.values()]
        for layer in inventory.layers:
            keep = watch(layer.address, layer.component in denoisers)
            handles.append(self._layers[layer.address].register_forward_hook(keep, with_kwargs=True))
        try:
            with ExitStack() as stack:
                for scheduler in schedulers:
                    stack.enter_context(wrapped(scheduler, "step", counting))
                call_pipeline(pipeline, prompts, seeds, sampling)
        finally:
            for handle in handles:
                handle.remove()

    def errors(self, addresses: Collection[str]) -> Tensor:
        """Relative squared errors of the outputs of layers as they are now.

        Args:
            addresses: The pruned layers; all others count as exact.

        Returns:
            Float64 tensor of shape (prompts,): |output − dense|² / |dense|², averaged over all *selected* layers.
            A layer that never ran counts as exact.
        """
        total = torch.zeros(self._count, dtype=torch.float64)
        for address in sorted(addresses):
            calls = self._seen[address]
            for given, dense in calls:
                total += self._by_prompt(self._layers[address](given), dense) / len(calls)
        return total / self._selected

    def _by_prompt(self, now: Tensor, dense: Tensor) -> Tensor:
        """(prompts,) relative squared error; rows beyond one a prompt are those of guidance."""
        difference = (now - dense).double().flatten(1).square().sum(1).cpu()
        error = difference / dense.double().flatten(1).square().sum(1).clamp_min(1e-12).cpu()
        if len(error) % self._count:
            return error.mean().expand(self._count)
        return error.view(-1, self._count).mean(0)
