"""What can be known of a pipeline without its weights: what an image costs, and in which order its modules run.

The pipeline's own code is run for one image with *hollow* components: their forward passes compute shapes only
(torch's fake tensors) and give zeros, so that the scheduler, the guidance and the number of calls are the real ones,
and neither weights nor time are needed.
"""

from __future__ import annotations

import functools
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_map

from raysense.errors import RaysenseError
from raysense.pipelines.adapter import denoisers_of, samples_in, schedulers_of, wrapped
from raysense.pipelines.cost import Cost, assumed
from raysense.pipelines.load import empty_components, left_out, modules_of, quiet_loaders, use_scheduler
from raysense.pipelines.origin import CONFIGURATION, Origin, configuration_folder
from raysense.pipelines.sample import call_pipeline
from raysense.prompts.sets import Prompt
from raysense.study import Sampling

logger = logging.getLogger(__name__)

METHODS = ("forward", "encode", "decode")
"""What a pipeline calls on its components."""


@dataclass(frozen=True)
class Foreseen:
    """What is known of a pipeline before any weight is loaded.

    Attributes:
        cost: Of an image.
        order: The modules that ran, as ``component:path``, in the order of their first call; empty if unknown.
        why_not: Why the dry run failed, or an empty text; `cost` is then an assumption.
    """

    cost: Cost
    order: tuple[str, ...] = ()
    why_not: str = ""


def foresee(source: str | Origin, sampling: Sampling) -> Foreseen:
    """Run a pipeline for one image without its weights, and count.

    Args:
        source: See `raysense.pipelines.load.load_pipeline`.
        sampling: How images are made.

    Raises:
        RaysenseError: No configuration is there, the pipeline does not take what `sampling` says, or the scheduler
            refuses the steps.
    """
    origin = source if isinstance(source, Origin) else Origin(source)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode:
            modules = empty_components(origin, device="cpu")
        pipeline = _assembled(origin, modules)
        if sampling.scheduler is not None:
            use_scheduler(pipeline, sampling.scheduler)
    except RaysenseError:
        raise
    except Exception as error:
        return _assumed(sampling, error)
    for module in modules.values():
        module.eval()
        hollow(module, mode)
    try:
        with watched(pipeline) as watch, torch.no_grad():
            call_pipeline(pipeline, [Prompt("dry", "a picture")], [0], sampling)
    except RaysenseError:
        raise
    except Exception as error:
        _refuse_what_is_refused(pipeline, sampling, error)
        return _assumed(sampling, error, pipeline)
    if not watch.forwards or not watch.steps:
        return _assumed(sampling, ValueError("no denoiser was called"), pipeline)
    cost = Cost(watch.forwards, watch.steps, "counted on a dry run of the pipeline without weights")
    return Foreseen(cost, tuple(watch.order))


def _assembled(origin: Origin, modules: Mapping[str, nn.Module]) -> DiffusionPipeline:
    """The pipeline around its components."""
    folder = configuration_folder(origin)
    if not Path(folder).is_dir():
        from huggingface_hub import snapshot_download

        folder = snapshot_download(folder, revision=origin.revision, allow_patterns=CONFIGURATION)
    index = DiffusionPipeline.load_config(folder)
    diffusers_logging.disable_progress_bar()
    with quiet_loaders():
        pipeline = DiffusionPipeline.from_pretrained(folder, **{**left_out(index), **modules})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _refuse_what_is_refused(pipeline: DiffusionPipeline, sampling: Sampling, error: Exception) -> None:
    """Say it where it is the pipeline's own check of its arguments, or the scheduler, that fails.

    Both work on real values here, so they would fail in the study too.

    Raises:
        RaysenseError: It is one of these.
    """
    frames = traceback.extract_tb(error.__traceback__)
    why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if any(frame.name == "check_inputs" for frame in frames):
        raise RaysenseError(
            f"`sampling`: {type(pipeline).__name__} refuses its arguments ({why}); change `sampling`"
        ) from None
    if any(Path(frame.filename).name.startswith("scheduling_") for frame in frames):
        names = ", ".join(type(part).__name__ for part in schedulers_of(pipeline).values())
        raise RaysenseError(
            f"`sampling.steps`: {names} cannot sample in {sampling.steps} steps ({why}); give another number of steps"
        ) from None


def _assumed(sampling: Sampling, error: Exception, pipeline: DiffusionPipeline | None = None) -> Foreseen:
    """What can be said without a dry run: the scheduler's own number of steps, and two samples for guidance."""
    why = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    logger.info("dry run: %s", why)
    plain = assumed(sampling)
    steps = plain.steps
    scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is not None:
        try:
            scheduler.set_timesteps(sampling.steps)
            steps = len(scheduler.timesteps)
        except Exception:  # some want more arguments, which only the pipeline knows
            pass
    told = f"assumed: one denoiser call a step of the scheduler (no dry run: {why})"
    return Foreseen(Cost(plain.step * steps, steps, told), why_not=why)


@dataclass
class Watch:
    """What was seen of a pipeline at work: sample-forwards, scheduler steps, modules in order of their first call."""

    forwards: int
    steps: int
    order: dict[str, None]


@contextmanager
def watched(pipeline: DiffusionPipeline) -> Iterator[Watch]:
    """Count and list while the context is open."""
    watch = Watch(0, 0, {})
    handles = []

    def lists(address: str) -> Callable[..., None]:
        return lambda *_: watch.order.setdefault(address)

    def counts(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        watch.forwards += samples_in(args, kwargs)

    def stepping(step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            watch.steps += 1
            return step(*args, **kwargs)

        return counted

    for name, component in modules_of(pipeline).items():
        for path, module in component.named_modules():
            handles.append(module.register_forward_pre_hook(lists(f"{name}:{path}")))
    for denoiser in denoisers_of(pipeline).values():
        handles.append(denoiser.register_forward_pre_hook(counts, with_kwargs=True))
    try:
        with ExitStack() as stack:
            for scheduler in schedulers_of(pipeline).values():
                stack.enter_context(wrapped(scheduler, "step", stepping))
            yield watch
    finally:
        for handle in handles:
            handle.remove()


def hollow(module: nn.Module, mode: FakeTensorMode) -> None:
    """Let a component made of fake tensors compute shapes and give zeros; the same shapes are computed once."""
    for name in METHODS:
        if callable(getattr(module, name, None)):
            setattr(
                module, name, functools.wraps(getattr(module, name))(_hollow(getattr(module, name), mode))
            )


def _hollow(method: Callable[..., Any], mode: FakeTensorMode) -> Callable[..., Any]:
    known: dict[Any, Any] = {}

    def fake(value: Any) -> Any:
        is_real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return mode.from_tensor(value) if is_real else value

    def zeros(value: Any) -> Any:
        return torch.zeros(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value

    def call(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(leaf, FakeTensor) for leaf in tree_flatten((args, kwargs))[0]):
            return method(*args, **kwargs)  # one component inside another
        key = _shapes((args, kwargs))
        if key not in known:
            given, named = tree_map(fake, (args, kwargs))
            with mode:
                known[key] = method(*given, **named)
        return tree_map(zeros, known[key])

    return call


def _shapes(arguments: Any) -> Any:
    leaves, structure = tree_flatten(arguments)
    return str(structure), tuple(
        (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves
    )
