"""What can be known of a pipeline without its weights: what an image costs, and in which order its modules run.

The pipeline's own code is run for one image with *hollow* components: their forward passes compute shapes only
(torch's fake tensors) and give zeros, so that the scheduler, the guidance and the number of calls are the real ones,
and neither weights nor time are needed.
"""

from __future__ import annotations

import functools
import logging
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from raysense.errors import RaysenseError
from raysense.pipelines.adapter import denoisers_of, samples_in, schedulers_of, wrapped
from raysense.pipelines.cost import Cost, assumed
from raysense.pipelines.load import empty_components, left_out, modules_of, quiet_loaders, use_scheduler
from raysense.pipelines.origin import CONFIGURATION, Origin
from raysense.pipelines.sample import call_pipeline
from raysense.pipelines.single_file import configuration_folder
from raysense.prompts.sets import Prompt
from raysense.study import Sampling

logger = logging.getLogger(__name__)

PROMPTS = (Prompt("dry", "a picture"), Prompt("run", "another picture of something"))
"""What a dry run asks for: two prompts, where a study samples several at a time, as some pipelines take one only."""

METHODS = ("forward", "encode", "decode")
"""What a pipeline calls on its components."""


@dataclass(frozen=True)
class Foreseen:
    """What is known of a pipeline before any weight is loaded.

    Attributes:
        cost: Of an image.
        order: The modules that ran, as ``component:path``, in the order of their first call; empty if unknown.
        why_not: Why the dry run failed, or an empty text; `cost` is then an assumption.
        pads: Whether what the denoiser is given for one prompt grows with its neighbours' lengths.
        activations: Component -> bytes, in float32, that the results of its layers take at a time for one image.
    """

    cost: Cost
    order: tuple[str, ...] = ()
    why_not: str = ""
    pads: bool = True
    activations: Mapping[str, int] = field(default_factory=dict)


def foresee(source: str | Origin, sampling: Sampling) -> Foreseen:
    """Run a pipeline for an image or two without its weights, and count.

    Args:
        source: See `raysense.pipelines.load.load_pipeline`.
        sampling: How images are made.

    Raises:
        RaysenseError: No configuration is there, the pipeline does not take what `sampling` says, or the scheduler
            refuses the steps.
    """
    origin = source if isinstance(source, Origin) else Origin(source)
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # what fails is said below
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
    inside: list[None] = []
    peaks: dict[str, int] = {}
    for name, module in modules.items():
        module.eval()
        hollow(module, mode, inside, functools.partial(_raise_to, peaks, name))
    images = min(sampling.batch, len(PROMPTS))
    try:
        watch = _ran(pipeline, sampling, images)
    except RaysenseError:
        raise
    except Exception as error:
        _refuse_what_is_refused(pipeline, sampling, error)
        if images == 1:
            return _assumed(sampling, error, pipeline)
        if not type(error).__module__.startswith(
            "torch._subclasses"
        ):  # what depends on values is up to the dry run
            _refuse_several(pipeline, sampling, error)
        try:
            watch, images = _ran(pipeline, sampling, 1), 1
        except Exception:  # the first reason stands
            return _assumed(sampling, error, pipeline)
    if not watch.nfe or not watch.steps or watch.nfe % images:
        return _assumed(sampling, ValueError("no denoiser was called for each image"), pipeline)
    cost = Cost(watch.nfe // images, watch.steps, "counted on a dry run of the pipeline without weights")
    pads = sampling.batch > 1 and (images == 1 or _pads(pipeline, sampling, images))
    activations = {name: -(-peak // images) for name, peak in peaks.items()}
    return Foreseen(cost, tuple(watch.order), pads=pads, activations=activations)


def _raise_to(peaks: dict[str, int], name: str, bytes_: int) -> None:
    peaks[name] = max(peaks.get(name, 0), bytes_)


class _Seen(Exception):
    """Ends a dry run at its denoiser's first call."""


def _ran(pipeline: DiffusionPipeline, sampling: Sampling, images: int) -> Watch:
    """What is seen of a dry run of so many images."""
    with watched(pipeline) as watch, torch.no_grad():
        call_pipeline(pipeline, PROMPTS[:images], [0] * images, sampling)
    return watch


def _pads(pipeline: DiffusionPipeline, sampling: Sampling, images: int) -> bool:
    """Whether the denoiser is given something else for a prompt where others stand beside it, as far as is known."""
    try:
        alone, together = (_shapes_of_first_call(pipeline, sampling, n) for n in (1, images))
    except Exception as error:
        logger.info("dry run of one prompt: %s", error)
        return True
    return alone != together


def _shapes_of_first_call(
    pipeline: DiffusionPipeline, sampling: Sampling, images: int
) -> list[tuple[int, ...]]:
    """The shapes of what the denoiser is given first, without the samples' axis."""
    found: list[tuple[int, ...]] = []

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        own = [tuple(leaf.shape[1:]) for leaf in leaves if leaf.ndim > 1]
        lists = [
            tuple(leaf.shape) for leaf in leaves if leaf.ndim == 1 and len(leaf) != samples_in(args, kwargs)
        ]
        found.extend(dict.fromkeys(own + lists))
        raise _Seen

    handles = [
        module.register_forward_pre_hook(see, with_kwargs=True) for module in denoisers_of(pipeline).values()
    ]
    try:
        with suppress(_Seen), torch.no_grad():
            call_pipeline(pipeline, PROMPTS[:images], [0] * images, sampling)
    finally:
        for handle in handles:
            handle.remove()
    return found


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


def _refuse_several(pipeline: DiffusionPipeline, sampling: Sampling, error: Exception) -> None:
    """Say it where a pipeline cannot make several images at once, but one.

    Raises:
        RaysenseError: It is so.
    """
    try:
        with torch.no_grad():
            call_pipeline(pipeline, PROMPTS[:1], [0], sampling)
    except Exception:  # nothing is known of it, then
        return
    raise RaysenseError(
        f"`sampling.batch`: {type(pipeline).__name__} fails with several prompts at once ({type(error).__name__}: "
        f"{' '.join(str(error).split())[:160]}); set it to 1"
    ) from None


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
    """What was seen of a pipeline at work: NFE, scheduler steps, modules in order of their first call."""

    nfe: int
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
        watch.nfe += samples_in(args, kwargs)

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


def hollow(
    module: nn.Module, mode: FakeTensorMode, inside: list[None], tell: Callable[[int], None] = lambda _: None
) -> None:
    """Let a component made of fake tensors compute shapes and give zeros; the same shapes are computed once.

    Args:
        module: The component.
        mode: Of its tensors.
        inside: Holds something while a component computes: those that it calls in turn give fake tensors, no zeros.
        tell: Called with the bytes that the results of a call's operations take at a time, at most.
    """
    for name in METHODS:
        if callable(method := getattr(module, name, None)):
            setattr(module, name, functools.wraps(method)(_hollow(method, module, mode, inside, tell)))


class _Results(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes that the results of operations hold at a time while this is open, its module's weights aside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        weights = (*module.parameters(), *module.buffers())
        self._weights = {weight.untyped_storage()._cdata for weight in weights}
        self._held: dict[int, list[int]] = {}  # storage -> its bytes, and how many tensors look at it
        self.peak = self._now = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_flatten(output)[0]:
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return output

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._weights:
            return
        if key not in self._held:
            self._held[key] = [storage.nbytes(), 0]
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
        self._held[key][1] += 1
        weakref.finalize(tensor, self._drop, key).atexit = False

    def _drop(self, key: int) -> None:
        held = self._held[key]
        held[1] -= 1
        if not held[1]:
            self._now -= held[0]
            del self._held[key]


def _hollow(
    method: Callable[..., Any],
    module: nn.Module,
    mode: FakeTensorMode,
    inside: list[None],
    tell: Callable[[int], None],
) -> Callable[..., Any]:
    known: dict[Any, Any] = {}

    def fake(value: Any) -> Any:
        is_real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return mode.from_tensor(value) if is_real else value

    def zeros(value: Any) -> Any:
        return torch.zeros(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value

    def call(*args: Any, **kwargs: Any) -> Any:
        if inside:
            return method(*args, **kwargs)
        key = _shapes((args, kwargs))
        if key not in known:
            given, named = tree_map(fake, (args, kwargs))
            inside.append(None)
            try:
                with mode, _Results(module) as results:
                    known[key] = method(*given, **named)
                tell(results.peak)
            finally:
                inside.pop()
        return tree_map(zeros, known[key])

    return call


def _shapes(arguments: Any) -> Any:
    leaves, structure = tree_flatten(arguments)
    return str(structure), tuple(
        (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves
    )
