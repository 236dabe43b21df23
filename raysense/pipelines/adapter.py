"""What differs from family to family of pipelines: what denoises, and what one image takes of it.

Nothing here asks for a class by name. The pipeline's own code is run for one image with *hollow* components: their
forward passes compute shapes only (torch's fake tensors) and give zeros, so that the scheduler, the guidance and
the number of calls are the real ones, and neither weights nor time are needed.
"""

from __future__ import annotations

import functools
import inspect
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from raysense.pipelines.cost import Cost, assumed
from raysense.pipelines.load import (
    SAFETY,
    empty_components,
    modules_of,
    pipeline_folder,
    quiet_loaders,
)
from raysense.study import Sampling

logger = logging.getLogger(__name__)

METHODS = ("forward", "encode", "decode")
"""What a pipeline calls on its components."""

CONFIGURATION = ["*.json", "*.txt", "*.model", "*.jinja"]
"""Files of a pipeline on the hub that hold no weights."""


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


def foresee(source: str, sampling: Sampling, *, revision: str | None = None) -> Foreseen:
    """Run a pipeline for one image without its weights, and count.

    Args:
        source: See `raysense.pipelines.load.load_pipeline`.
        sampling: How images are made.
        revision: A hub commit, branch or tag.

    Raises:
        RaysenseError: No configuration is there, or the scheduler refuses the steps.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode:
            modules = empty_components(source, revision=revision, device="cpu")
        pipeline = _assembled(source, revision, modules)
    except RaysenseError:
        raise
    except Exception as error:
        return _assumed(sampling, error)
    for module in modules.values():
        module.eval()
        hollow(module, mode)
    try:
        with watched(pipeline) as watch, torch.no_grad():
            _call(pipeline, sampling)
    except Exception as error:
        _refuse_steps(pipeline, sampling, error)
        return _assumed(sampling, error, pipeline)
    if not watch.forwards or not watch.steps:
        return _assumed(sampling, ValueError("no denoiser was called"), pipeline)
    cost = Cost(watch.forwards, watch.steps, "counted on a dry run of the pipeline without weights")
    return Foreseen(cost, tuple(watch.order))


def _assembled(source: str, revision: str | None, modules: Mapping[str, nn.Module]) -> DiffusionPipeline:
    """The pipeline around its components."""
    folder = pipeline_folder(source)
    if not Path(folder).is_dir():
        from huggingface_hub import snapshot_download

        folder = snapshot_download(folder, revision=revision, allow_patterns=CONFIGURATION)
    index = DiffusionPipeline.load_config(folder)
    given: dict[str, Any] = dict(modules)
    if SAFETY in index:
        given[SAFETY] = None
    if "requires_safety_checker" in index:
        given["requires_safety_checker"] = False
    diffusers_logging.disable_progress_bar()
    with quiet_loaders():
        pipeline = DiffusionPipeline.from_pretrained(folder, **given)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _call(pipeline: DiffusionPipeline, sampling: Sampling) -> None:
    size = {k: v for k, v in (("height", sampling.height), ("width", sampling.width)) if v is not None}
    pipeline(
        prompt=["a picture"],
        generator=[torch.Generator("cpu").manual_seed(0)],
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance,
        output_type="pt",
        **size,
    )


def _refuse_steps(pipeline: DiffusionPipeline, sampling: Sampling, error: Exception) -> None:
    """Say it where it is the scheduler that fails: it works on real tensors, so it would fail in the study too.

    Raises:
        RaysenseError: It is.
    """
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if any(Path(file).name.startswith("scheduling_") for file in files):
        raise RaysenseError(
            f"`sampling.steps`: {type(pipeline.scheduler).__name__} cannot sample in {sampling.steps} steps "
            f"({type(error).__name__}: {' '.join(str(error).split())[:160]}); give another number of steps"
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


def denoisers_of(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    """The components that are called with a timestep, by name: U-Net, transformer, or several of them.

    Raises:
        RaysenseError: The pipeline has none.
    """
    modules = modules_of(pipeline)
    found = {name: module for name, module in modules.items() if _takes_timestep(type(module))}
    found = found or {
        name: module for name, module in modules.items() if name in ("unet", "transformer", "prior")
    }
    if not found:
        raise RaysenseError(
            f"`pipeline`: found no denoiser (a component that takes a timestep) among {sorted(modules)}"
        )
    return found


def _takes_timestep(cls: type[nn.Module]) -> bool:
    return any(
        name == "t" or name.startswith("timestep") for name in inspect.signature(cls.forward).parameters
    )


def samples_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Samples in one call of a denoiser: rows of its first tensor, or the length of its first list of tensors."""
    named = [kwargs[name] for name in ("sample", "hidden_states", "x") if name in kwargs]
    for value in (*args, *named, *kwargs.values()):
        if isinstance(value, Tensor) and value.ndim:
            return len(value)
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            return len(value)
    raise RaysenseError(
        "`pipeline`: its denoiser is called without a tensor; raysense cannot count its samples"
    )


@contextmanager
def wrapped(
    owner: object, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """While this is open, a method of an object is another one, made from the one that it was."""
    before = vars(owner).get(name)
    method = getattr(owner, name)
    setattr(owner, name, functools.wraps(method)(around(method)))
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


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
        with wrapped(pipeline.scheduler, "step", stepping):
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
