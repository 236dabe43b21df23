"""What saliency methods need to know, collected by hooks while the pipeline does its real work.

The caller hands in `run`, which samples some prompts through the whole denoising loop; nothing here knows
what a prompt is. What the layers see then is what they see in use:

* Guidance runs the null prompt beside the prompt at every step, so both count.
* Padding counts where the model attends to it (CLIP encoders of Stable Diffusion), and does not where the
  caller passes the encoder an `attention_mask` (T5): masked tokens are left out of that encoder's statistics.

Memory is bounded: a running mean for each layer, whatever the number of prompts and steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raysense.errors import RaysenseError
from raysense.pruning.layers import Inventory, Layer, weight_of
from raysense.pruning.saliency import LayerStats

Run = Callable[[], object]
Call = tuple[tuple[Any, ...], dict[str, Any]]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class StepWeight:
    """The weight of a denoising step, falling with the logarithm of its number from `first` to `last`.

    Errors of early steps pass through all later ones, so early steps count more. Source: OBS-Diff
    (arXiv 2510.06751), which falls logarithmically from 1.2 to 0.8; the interpolation between is ours:
    ``first + (last - first)·ln(1 + i) / ln(steps)`` for step i = 0, 1, ….

    Attributes:
        steps: Denoising steps of one run of the pipeline; the count starts anew after as many calls.
        first: Weight of the first step.
        last: Weight of the last step.
    """

    steps: int
    first: float = 1.2
    last: float = 0.8

    def __call__(self, step: int) -> float:
        """The weight of a step, counted over all runs."""
        fall = math.log(1 + step % self.steps) / math.log(self.steps) if self.steps > 1 else 0.0
        return self.first + (self.last - self.first) * fall


class InputMoments:
    """A context in which the second moments of the layers' inputs are collected.

    Example:
        ```python
        with InputMoments(modules, inventory.layers) as moments:
            pipeline(prompts, num_inference_steps=20)
        mean_squares = moments.collected()
        ```

    Args:
        modules: Component name -> module.
        layers: The layers to watch.
        full: Collect Hessians, E[x·xᵀ] of the inputs to one output, instead of their diagonals.
        step_weight: Component name -> weight of its n-th call; 1 where there is none.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        layers: Sequence[Layer],
        *,
        full: bool = False,
        step_weight: Mapping[str, Callable[[int], float]] | None = None,
    ) -> None:
        self._modules, self._layers, self._full = modules, layers, full
        self._step_weight = dict(step_weight or {})
        self._means: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}
        self._calls = dict.fromkeys(modules, -1)
        self._padding: dict[str, Tensor | None] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> InputMoments:
        for component in dict.fromkeys(layer.component for layer in self._layers):
            self._hooks.append(
                self._modules[component].register_forward_pre_hook(self._count(component), with_kwargs=True)
            )
        for layer in self._layers:
            module = self._modules[layer.component].get_submodule(layer.path)
            self._hooks.append(module.register_forward_pre_hook(self._watch(layer), with_kwargs=True))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def collected(self) -> dict[str, Tensor]:
        """Layer -> mean squares, float64 (groups, columns), or Hessians, float32 (groups, columns, columns).

        A layer's columns are the inputs of one output: ``in`` for Linear, ``in / groups · kernel`` for a
        convolution, in the order of ``weight.flatten(1)``.

        Raises:
            RaysenseError: A layer that never ran, or inputs that are not finite.
        """
        idle = [layer.address for layer in self._layers if layer.address not in self._means]
        if idle:
            raise RaysenseError(
                f"statistics: {', '.join(idle[:3])}{' …' * (len(idle) > 3)} did not run during calibration "
                f"({len(idle)} of {len(self._layers)} layers); exclude them or run what uses them"
            )
        for layer in self._layers:
            if not torch.isfinite(self._means[layer.address]).all():
                raise RaysenseError(
                    f"statistics: the inputs of {layer.address} hold NaN or infinity; "
                    "calibrate in float32 or bfloat16"
                )
        return dict(self._means)

    def _count(self, component: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._calls[component] += 1
            mask = kwargs.get("attention_mask")
            self._padding[component] = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

        return hook

    def _watch(self, layer: Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            mask = self._padding.get(layer.component)
            if mask is not None and x.dim() == 3 and x.shape[:2] == mask.shape:
                x = x[mask.bool()]
            call = max(self._calls[layer.component], 0)
            weigh = self._step_weight.get(layer.component)
            weight = weigh(call) if weigh else 1.0
            # Convolutions one image at a time: their columns are the input times the size of the kernel.
            for part in x.split(1) if isinstance(module, _CONVOLUTIONS) else (x,):
                self._add(layer.address, input_columns(part.detach(), module), weight)

        return hook

    def _add(self, address: str, columns: Tensor, weight: float) -> None:
        """Move the running mean by the moments of these rows, each with this weight."""
        rows = weight * columns.shape[1]
        if not rows:
            return
        moment = self._moment(columns)
        self._weights[address] = self._weights.get(address, 0.0) + rows
        mean = self._means.setdefault(address, torch.zeros_like(moment))
        mean += (moment - mean) * (rows / self._weights[address])

    def _moment(self, columns: Tensor) -> Tensor:
        if self._full:
            return columns.mT @ columns / columns.shape[1]
        return columns.double().square().mean(dim=1)


def input_columns(x: Tensor, module: nn.Module) -> Tensor:
    """The vectors that a layer's weights are multiplied with, one row for each output position.

    Args:
        x: The layer's input.
        module: A linear map or a convolution of any dimension, stride, padding, dilation and groups.

    Returns:
        float32 (groups, rows, columns), the columns in the order of ``weight.flatten(1)``.
    """
    if not isinstance(module, _CONVOLUTIONS):
        return x.reshape(1, -1, x.shape[-1]).float()
    dims = len(module.kernel_size)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x.float(), module._reversed_padding_repeated_twice, mode=mode)
    for i, (kernel, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True)
    ):
        x = x.unfold(2 + i, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    # (batch, channels, positions…, kernel…) -> (positions, groups, channels / groups · kernel)
    x = x.movedim(1, 1 + dims)
    width = x.shape[1 + dims] // module.groups * math.prod(module.kernel_size)
    return x.reshape(-1, module.groups, width).movedim(1, 0)


def record_calls(components: Mapping[str, nn.Module], run: Run, keep: int) -> dict[str, list[Call]]:
    """The arguments of up to `keep` calls of each component during a run, spread evenly over all its calls.

    Memory stays below twice `keep` calls a component: whenever there are more, every other one is dropped.
    """
    recorders = {name: _CallRecorder(component, keep) for name, component in components.items()}
    try:
        run()
    finally:
        for recorder in recorders.values():
            recorder.handle.remove()
    return {name: recorder.spread() for name, recorder in recorders.items()}


class _CallRecorder:
    def __init__(self, component: nn.Module, keep: int) -> None:
        self._keep = keep
        self._kept: list[tuple[int, Call]] = []
        self._count, self._stride = 0, 1
        self.handle = component.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._count % self._stride == 0:
            self._kept.append((self._count, (_detached(args), _detached(kwargs))))
        if len(self._kept) >= 2 * self._keep:
            self._stride *= 2
            self._kept = [entry for entry in self._kept if entry[0] % self._stride == 0]
        self._count += 1

    def spread(self) -> list[Call]:
        spacing = max(len(self._kept) / self._keep, 1.0)
        return [self._kept[int(i * spacing)][1] for i in range(min(self._keep, len(self._kept)))]


def output_gradients(
    modules: Mapping[str, nn.Module], layers: Sequence[Layer], calls: Mapping[str, Sequence[Call]], seed: int
) -> dict[str, Tensor]:
    """Mean squared gradients of a random projection of each component's output with respect to each weight.

    With random signs r, E[(∂⟨r, f⟩/∂w)²] = Σⱼ (∂fⱼ/∂w)², the Gauss-Newton diagonal of the squared error of
    the output: at the dense weights that error itself has no gradient. A weight that does not reach the
    output has gradient 0.

    Args:
        modules: Component name -> module.
        layers: Whose weights.
        calls: Component name -> recorded calls, see `record_calls`.
        seed: Draws the signs.

    Returns:
        Layer -> float32, in the weight's shape.

    Raises:
        RaysenseError: A component without calls, or gradients that are not finite.
    """
    sums: dict[str, Tensor] = {}
    for component in dict.fromkeys(layer.component for layer in layers):
        members = [layer for layer in layers if layer.component == component]
        if not calls.get(component):
            raise RaysenseError(
                f"statistics: {component} was not called during calibration, so its output has no gradients (an "
                "autoencoder is used through its `decode`); prune it with a method that needs none"
            )
        weights = [weight_of(modules, layer) for layer in members]
        wanted_before = [weight.requires_grad for weight in weights]
        generator = torch.Generator().manual_seed(seed)
        try:
            for weight in weights:
                weight.requires_grad_(True)
            for args, kwargs in calls[component]:
                with torch.enable_grad():
                    output = modules[component](*args, **kwargs)
                    output = output if isinstance(output, Tensor) else output[0]
                    signs = torch.randint(0, 2, output.shape, generator=generator).mul(2).sub(1)
                    projection = (output.float() * signs.to(output.device)).sum()
                gradients = torch.autograd.grad(projection, weights, allow_unused=True)
                for layer, weight, gradient in zip(members, weights, gradients, strict=True):
                    mean = sums.setdefault(layer.address, torch.zeros_like(weight, dtype=torch.float32))
                    if gradient is not None:
                        mean += gradient.detach().float().square() / len(calls[component])
        finally:
            for weight, wanted in zip(weights, wanted_before, strict=True):
                weight.requires_grad_(wanted)
    for address, mean in sums.items():
        if not torch.isfinite(mean).all():
            raise RaysenseError(
                f"statistics: the gradients of {address} hold NaN or infinity; calibrate in float32"
            )
    return sums


def calibrate(
    modules: Mapping[str, nn.Module],
    inventory: Inventory,
    needs: frozenset[str],
    run: Run,
    *,
    seed: int = 0,
    calls: int = 16,
) -> dict[str, LayerStats]:
    """Collect what a method needs (`Method.needs`) by running the real loop, once for each kind of need.

    Runs outside inference mode, so that gradients can be taken.

    Args:
        modules: Component name -> module, dense.
        inventory: The selected layers.
        needs: Any of ``inputs`` and ``gradients``.
        run: Samples the calibration prompts.
        seed: The study's seed.
        calls: Calls of each component that gradients are taken from, spread over the run.
    """
    inputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    if "inputs" in needs:
        with InputMoments(modules, inventory.layers) as moments:
            run()
        inputs = moments.collected()
    if "gradients" in needs:
        recorded = record_calls(
            {layer.component: modules[layer.component] for layer in inventory.layers}, run, calls
        )
        gradients = output_gradients(modules, inventory.layers, recorded, seed)
    return {
        layer.address: LayerStats(
            layer.address, layer.kind, inputs.get(layer.address), gradients.get(layer.address), seed
        )
        for layer in inventory.layers
    }


def _detached(value: Any) -> Any:
    """A copy whose tensors are cut off from graphs and from later changes in place."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _detached(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_detached(item) for item in value)
    return value
