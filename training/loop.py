"""One resumable training loop for every bundled model: AdamW, linear decay to zero, EMA, bf16 autocast.

On a GPU the small models here spend their time in launching kernels: `graphed` records a loss and its gradient once
and replays them.

Under ``torchrun`` several processes share a training: each draws its own batches and their gradients are averaged. On
CPUs that other work shares, two processes of one thread each are far faster than one of two threads, whose threads
wait for one another in every layer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]

SAVE_EVERY_S = 60.0
WARM_UP = 200
EMA_DECAY = 0.999
"""Reached late: the average covers about the last ninth of the steps so far, so that it is of use early."""


def train(
    module: nn.Module,
    loss_at: Callable[[np.random.Generator], Tensor],
    *,
    steps: int,
    learning_rate: float,
    checkpoint: Path,
    weight_decay: float = 0.01,
    device: str = "cpu",
    minutes: float | None = None,
) -> dict[str, Tensor]:
    """Train ``module`` in place and return its averaged weights.

    A checkpoint (weights, average, optimizer, step) is written about once a minute, by rename, and a
    later call with the same arguments goes on from it. Step ``i`` draws its data from seed ``i`` (and the process).

    Args:
        module: What is trained, on ``device``.
        loss_at: Draws a batch with the generator it is given and returns the loss.
        steps: How many steps in all; the learning rate falls linearly to zero over them.
        learning_rate: The peak, after 200 warm-up steps.
        checkpoint: Where the state is kept.
        weight_decay: AdamW's.
        device: For autocast.
        minutes: End after so long (a rented machine): the learning rate falls to zero over the time, not the steps.

    Returns:
        The exponential moving average of ``module.state_dict()``.
    """
    rank = _join()
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
    )
    average = AveragedModel(module, multi_avg_fn=_average_in, use_buffers=True)
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        module.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        first = state["step"]
        print(f"{checkpoint.stem}: goes on at step {first}", flush=True)

    def save(step: int) -> None:
        if rank:
            return
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = checkpoint.with_suffix(".partial")
        torch.save(
            {
                "weights": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.state_dict(),
                "step": step,
            },
            partial,
        )
        os.replace(partial, checkpoint)

    module.train()
    began = saved = time.monotonic()
    recent: list[Tensor] = []
    for step in range(first, steps):
        left = (steps - step) / (steps - WARM_UP)
        if minutes is not None:
            left = 1 - (time.monotonic() - began) / (60 * minutes)
            if left <= 0:
                save(step)
                break
        rng = np.random.default_rng([step, 2026, rank] if rank else [step, 2026])
        torch.manual_seed(step + rank * 1_000_000)
        rate = learning_rate * min((step + 1) / WARM_UP, left)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = loss_at(rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        _share_gradients(module)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(module)
        recent.append(loss.detach())
        if (step + 1) % 100 == 0 and not rank:
            per_step = (time.monotonic() - began) / (step + 1 - first)
            to_go = per_step * (steps - step - 1) / 60 if minutes is None else left * minutes
            print(
                f"{checkpoint.stem}: step {step + 1}  loss {float(torch.stack(recent).mean()):.4f}  "
                f"{per_step * 1000:.1f} ms a step, {to_go:.1f} min left",
                flush=True,
            )
            recent.clear()
        if time.monotonic() - saved > SAVE_EVERY_S:
            save(step + 1)
            saved = time.monotonic()
    else:
        save(steps)
    return dict(average.module.state_dict())


def graphed(
    loss_of: Callable[..., Tensor], module: nn.Module, example: tuple[Tensor, ...]
) -> Callable[..., Tensor]:
    """Record a loss and its gradient as CUDA graphs, under bf16 autocast.

    Args:
        loss_of: Tensors -> loss; no synchronisation inside.
        module: What has the weights, on the GPU.
        example: Tensors of the shapes, types and device that every call will have.

    Returns:
        The same function, replayed.
    """

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *tensors: Tensor) -> Tensor:
            return loss_of(*tensors)

    with torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):
        replayed = torch.cuda.make_graphed_callables(Whole(), example, allow_unused_input=True)
    return cast(Callable[..., Tensor], replayed)


@torch.no_grad()
def _average_in(averages: Tensors, weights: Tensors, steps: Tensor | int) -> None:
    count = float(steps)
    step = 1 - min(EMA_DECAY, (1 + count) / (10 + count))
    if torch.is_floating_point(averages[0]):
        torch._foreach_lerp_(averages, weights, step)
    else:
        for average, weight in zip(averages, weights, strict=True):
            average.copy_(weight)


def _join() -> int:
    """This process's number in the group that ``torchrun`` started; 0 where it is alone."""
    if "WORLD_SIZE" not in os.environ:
        return 0
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    return distributed.get_rank()


def _share_gradients(module: nn.Module) -> None:
    """Average the gradients over the processes."""
    if not distributed.is_initialized():
        return
    gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, shared in zip(gradients, parts, strict=True):
        gradient.copy_(shared.view_as(gradient))
