"""One resumable training loop for every bundled model: AdamW, linear decay to zero, EMA, bf16 autocast.

Under ``torchrun`` several processes share a training: each draws its own batches and their gradients are averaged. On
CPUs that other work shares, two processes of one thread each are far faster than one of two threads, whose threads
wait for one another in every layer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

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
    recent: list[float] = []
    for step in range(first, steps):
        rng = np.random.default_rng([step, 2026, rank] if rank else [step, 2026])
        torch.manual_seed(step + rank * 1_000_000)
        rate = learning_rate * min((step + 1) / WARM_UP, (steps - step) / (steps - WARM_UP))
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
        recent.append(float(loss.detach()))
        if (step + 1) % 100 == 0 and not rank:
            per_step = (time.monotonic() - began) / (step + 1 - first)
            left = per_step * (steps - step - 1) / 60
            print(
                f"{checkpoint.stem}: step {step + 1}/{steps}  loss {np.mean(recent[-100:]):.4f}  "
                f"{per_step * 1000:.0f} ms a step, {left:.1f} min left",
                flush=True,
            )
        if time.monotonic() - saved > SAVE_EVERY_S:
            save(step + 1)
            saved = time.monotonic()
    save(steps)
    return dict(average.module.state_dict())


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
