"""Pipelines that are larger than the GPU: weights wait in the host's memory, and come when they are called.

`accelerate` does the moving, by hooks on the modules. diffusers' own switches (``enable_model_cpu_offload``) take all
hooks off and put them on again at the end of each call, and with them whatever else stands around a module's
``forward``; so the hooks are set here once and stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from raysense.names import Offload
from raysense.pipelines.load import modules_of
from raysense.pruning.layers import AT_REST

_WHOLE = ["MultiheadAttention"]
"""Classes that use the weights of their parts without calling these: their weights come together."""


def place(pipeline: DiffusionPipeline, offload: Offload, device: str) -> None:
    """Bring a pipeline, which is on the CPU, to where it works.

    Args:
        pipeline: The pipeline.
        offload: ``none``: all of it on the device. ``model``: one component at a time, which stays there until another
            one is called; a text encoder whose embeddings are remembered is not called and does not come.
            ``sequential``: one layer at a time; what is written into the tensors of the host is what comes.
        device: A torch device.
    """
    if offload == "none":
        pipeline.to(device)
        return
    modules = modules_of(pipeline)
    resident = set(getattr(pipeline, "_exclude_from_cpu_offload", ()))
    for name, module in modules.items():
        if name in resident:
            module.to(device)
        elif offload == "model":
            others = [other for key, other in modules.items() if key != name and key not in resident]
            add_hook_to_module(module, _OneAtATime(torch.device(device), others), append=True)
        else:
            weights = {path: weight.to("cpu") for path, weight in module.state_dict().items()}
            keep_at_rest(module, weights)
            cpu_offload(
                module,
                torch.device(device),
                offload_buffers=len(module._parameters) > 0,  # of its own, as diffusers does it
                state_dict=weights,
                preload_module_classes=_WHOLE,
            )


def keep_at_rest(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Let each part of a component know the tensors that its weights are brought from."""
    for path, part in module.named_modules():
        own = {
            name: weights[f"{path}.{name}" if path else name]
            for name in part._parameters
            if part._parameters[name] is not None
        }
        if own:
            vars(part)[AT_REST] = own


@contextmanager
def at_rest(pipeline: DiffusionPipeline) -> Iterator[None]:
    """While this is open, modules hold the weights that wait for them, so that these can be looked at and saved."""
    changed: list[tuple[nn.Module, dict[str, Any]]] = []
    known: dict[int, nn.Parameter] = {}  # weights that modules share are one parameter again
    for component in modules_of(pipeline).values():
        for part in component.modules():
            own: dict[str, Tensor] = vars(part).get(AT_REST, {})
            if own:
                changed.append((part, dict(part._parameters)))
            for name, weight in own.items():
                one = known.setdefault(weight.data_ptr(), nn.Parameter(weight, requires_grad=False))
                part._parameters[name] = one if one.shape == weight.shape else nn.Parameter(weight, False)
    try:
        yield
    finally:
        for part, before in changed:
            part._parameters.update(before)


class _OneAtATime(ModelHook):  # type: ignore[misc]  # accelerate is untyped
    """Brings a component to the device when it is called, after the others have left it.

    Attributes:
        execution_device: Read by diffusers: where a pipeline makes its latents.
    """

    def __init__(self, device: torch.device, others: list[nn.Module]) -> None:
        self.execution_device, self._others = device, others

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """See `accelerate.hooks.ModelHook`."""
        # Not as tensors of inference mode: these could not be written to outside it, nor have gradients.
        with torch.inference_mode(False), torch.no_grad():
            for other in self._others:
                _move(other, torch.device("cpu"))
            _move(module, self.execution_device)
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)


def _move(module: nn.Module, device: torch.device) -> None:
    first = next(module.parameters(), None)
    if first is not None and first.device.type != device.type:
        module.to(device)
