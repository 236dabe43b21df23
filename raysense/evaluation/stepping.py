"""A denoiser that is pruned for a part of the trajectory and dense for the rest of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from diffusers import DiffusionPipeline

from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.pipelines.adapter import denoisers_of, schedulers_of, wrapped
from raysense.pruning.masks import Pruner


@contextmanager
def pruned_in(steps: tuple[float, float], pipeline: DiffusionPipeline, masker: Pruner) -> Iterator[None]:
    """While this is open, sampling has the masker's allocation in some of its steps and dense weights in the others.

    Args:
        steps: From and to, as shares of the scheduler's steps; a step counts by its middle.
        pipeline: What samples.
        masker: Stands at the allocation, before and afterwards.

    Raises:
        RaysenseError: The pipeline has more than one trajectory.
    """
    allocation, done = masker.current, 0
    schedulers = schedulers_of(pipeline)
    if len(schedulers) > 1:
        raise RaysenseError(
            f"`sweep`: `steps` needs one trajectory, but {type(pipeline).__name__} has {len(schedulers)} schedulers"
        )
    (scheduler,) = schedulers.values()

    def counting(advance: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            done += 1
            return advance(*args, **kwargs)

        return stepped

    def switching(forward: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            inside = steps[0] <= (done + 0.5) / len(scheduler.timesteps) < steps[1]
            masker.apply(allocation if inside else Allocation())
            return forward(*args, **kwargs)

        return called

    with ExitStack() as stack:
        stack.enter_context(wrapped(scheduler, "step", counting))
        for denoiser in denoisers_of(pipeline).values():
            stack.enter_context(wrapped(denoiser, "forward", switching))
        try:
            yield
        finally:
            masker.apply(allocation)
