"""Load a `DiffusionPipeline` from the bundle, a folder or the hub, ready to be pruned and sampled."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from raysense.errors import RaysenseError
from raysense.hashing import refuse_odd_files
from raysense.hub import pipeline_index
from raysense.pipelines.lora import fuse, refuse_misfit
from raysense.pipelines.origin import Origin, listed, local_folder, pipeline_folder, why_not_loaded
from raysense.pipelines.single_file import configuration_folder, configuration_of, not_in_it
from raysense.study import SchedulerChoice, Study
from raysense.study import weight_files as files

logger = logging.getLogger(__name__)


def load_for(study: Study, device: str = "cpu") -> DiffusionPipeline:
    """The pipeline as a study samples it: its weights, type, adapters and scheduler; see `load_pipeline`."""
    return load_pipeline(
        Origin.of(study),
        dtype=study.dtype,
        device=device,
        channels_last=study.channels_last,
        scheduler=study.sampling.scheduler,
    )


SAFETY = "safety_checker"
"""A component that blackens images by its own judgement: not part of what is measured, so it is switched off."""


def load_pipeline(
    source: str | Origin,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    channels_last: bool = False,
    scheduler: SchedulerChoice | None = None,
) -> DiffusionPipeline:
    """Load a pipeline for inference; what departs from the plain case is said by `notes_of`.

    Args:
        source: Where from; see `Origin`.
        dtype: ``float32``, ``bfloat16`` or ``float16``, for every component.
        device: A torch device.
        channels_last: Lay out the weights of two-dimensional convolutions with channels innermost.
        scheduler: What takes the place of the pipeline's own scheduler.

    Raises:
        RaysenseError: Nothing loadable is there; weights are missing, left over, of another shape or not finite; a
            component is quantised, or of a class that is neither diffusers' nor transformers'; an adapter does not fit.
    """
    origin = source if isinstance(source, Origin) else Origin(source)
    kind = getattr(torch, dtype)
    try:
        with quiet_loaders():
            pipeline, index, notes = _single(origin, kind) if origin.is_file else _assembled(origin, kind)
    except RaysenseError:
        raise
    except Exception as error:  # whatever the libraries raise: they could not read what is there
        raise RaysenseError(why_not_loaded(origin, error)) from None
    if scheduler is not None:
        use_scheduler(pipeline, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    for name, module in modules_of(pipeline).items():
        module.requires_grad_(False)
        module.eval()
        if channels_last:
            for weight in module.parameters():
                if weight.ndim == 4:
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        _refuse_broken(name, module)
        if note := _dtype_note(name, module, kind):
            notes.append(note)
            bridge_types(module, kind)
    for lora in origin.lora:
        notes.append(fuse(type(pipeline), modules_of(pipeline), lora))
    pipeline.to(device)
    if is_component(index.get(SAFETY)):
        notes.append("the safety checker is switched off: it would blacken images, and is in no denominator")
    for note in notes:
        logger.info("%s", note)
    pipeline.loading_notes = tuple(notes)
    return pipeline


_Loaded = tuple[DiffusionPipeline, Mapping[str, Any], list[str]]
"""A pipeline, its ``model_index.json``, and what is to be said of where its weights came from."""


def _assembled(origin: Origin, dtype: torch.dtype) -> _Loaded:
    """The pipeline from its components, each loaded and checked by itself."""
    folder = local_folder(origin)
    _refuse_odd_files(origin.source, folder)
    index = DiffusionPipeline.load_config(folder)
    pipeline_class(origin.source, index)
    classes = module_classes(index)
    refuse_foreign(origin.source, classes)
    if mistakes := list(files.mistakes_in(Path(folder), classes, origin.variant, origin.pickled)):
        raise RaysenseError("; ".join(mistakes))
    given: dict[str, Any] = {
        name: load_component(folder, name, cls, dtype, origin) for name, cls in classes.items()
    }
    return DiffusionPipeline.from_pretrained(folder, dtype=dtype, **given, **left_out(index)), index, []


def left_out(index: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for what a pipeline is loaded without: components that were not saved, and a safety checker."""
    # What was saved without a component, such as Stable Diffusion 3 without T5, loads only where that is said.
    given: dict[str, Any] = {
        name: None for name, entry in index.items() if entry in ([None, None], (None, None))
    }
    if SAFETY in index:
        given[SAFETY] = None
    if "requires_safety_checker" in index:
        given["requires_safety_checker"] = False
    return given


def _single(origin: Origin, dtype: torch.dtype) -> _Loaded:
    """The pipeline from a single file, by diffusers' own converters; what it holds nothing of, from `config`."""
    folder = configuration_of(origin)
    index = DiffusionPipeline.load_config(folder)
    classes = module_classes(index)
    refuse_foreign(folder, classes)
    cls = pipeline_class(folder, index)
    empty = {name: _empty(folder, name, kind) for name, kind in classes.items()}
    elsewhere = _elsewhere(origin, folder, cls, empty)
    if mistakes := list(files.mistakes_in(Path(folder), elsewhere, origin.variant, origin.pickled)):
        raise RaysenseError("; ".join(mistakes))
    given = {"config": folder, "local_files_only": True, **left_out(index)}
    given |= {name: load_component(folder, name, classes[name], dtype, origin) for name in elsewhere}
    kind = cls.__name__
    misfit = f"`pipeline`: the single file `{origin.source}` is no {kind} as `{folder}` describes one"
    remedy = "set `config` to the pipeline that it belongs to"
    with _complaints() as left_over:
        try:
            pipeline = cls.from_single_file(origin.source, dtype=dtype, **given)
        except NotImplementedError:  # tensors that got no values cannot change their type
            raise RaysenseError(f"{misfit}: it lacks weights; {remedy}") from None
    if left_over:
        raise RaysenseError(f"{misfit}: it holds tensors too many ({left_over[0][:200]}); {remedy}")
    for name, module in modules_of(pipeline).items():
        missing = [path for path, weight in module.named_parameters() if weight.is_meta]
        if missing:
            raise RaysenseError(f"{misfit}: it lacks {listed(missing)} of `{name}`; {remedy}")
    told = f"{', '.join(elsewhere)}: from `config`, as the single file holds nothing of it"
    return pipeline, index, [told] if elsewhere else []


def _elsewhere(origin: Origin, folder: str, cls: Any, empty: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """The components that a single file's pipeline takes from the folder of its configuration.

    Raises:
        RaysenseError: diffusers does not read such a pipeline from a single file; see `not_in_it`.
    """
    if not hasattr(cls, "from_single_file"):
        raise RaysenseError(
            f"`pipeline`: diffusers cannot read a {cls.__name__} from a single file; give the pipeline's folder or hub "
            "id"
        )
    return not_in_it(origin, folder, cls.__name__, empty)


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What diffusers warns of while it reads a single file: tensors that found no place."""
    found: list[str] = []
    reader = logging.getLogger("diffusers.loaders.single_file_model")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(" ".join(record.getMessage().split()))  # type: ignore[method-assign]
    before = reader.level, reader.propagate
    reader.setLevel(logging.WARNING)
    reader.propagate = False
    reader.addHandler(handler)
    try:
        yield found
    finally:
        reader.removeHandler(handler)
        reader.level, reader.propagate = before


def use_scheduler(pipeline: DiffusionPipeline, choice: SchedulerChoice) -> None:
    """Give a pipeline another scheduler, with what its own one was configured to.

    Raises:
        RaysenseError: There is no such scheduler, it has no such options, or cannot be made with them.
    """
    cls: Any = getattr(diffusers, choice.kind, None)
    if not inspect.isclass(cls) or not issubclass(cls, SchedulerMixin):
        raise RaysenseError(
            f"`sampling.scheduler.class` {choice.kind!r} is no scheduler of the installed diffusers"
        )
    known = inspect.signature(cls).parameters
    for name in choice.options:
        if name not in known:
            raise RaysenseError(
                f"`sampling.scheduler.options`: {choice.kind} has no {name!r}; it has "
                f"{', '.join(sorted(known))}"
            )
    maker: Any = cls
    try:
        made = maker.from_config(pipeline.scheduler.config, **choice.options)
    except Exception as error:  # whatever its constructor refuses
        raise RaysenseError(
            f"`sampling.scheduler`: {choice.kind} cannot be made ({' '.join(str(error).split())[:160]})"
        ) from None
    own = pipeline.scheduler
    for part in (pipeline, *(one for one in vars(pipeline).values() if isinstance(one, DiffusionPipeline))):
        if getattr(part, "scheduler", None) is own:
            part.register_modules(scheduler=made)


def bridge_types(module: nn.Module, dtype: torch.dtype) -> None:
    """Let layers that their class keeps in another type take and give the type around them.

    Most classes cast by themselves; then their inputs come in the layer's own type, and nothing is done.
    """

    def cast(layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if args and isinstance(args[0], Tensor) and args[0].dtype == dtype:
            layer._raysense_cast = True
            return (args[0].to(layer.weight.dtype), *args[1:])
        return args

    def back(layer: Any, args: tuple[Any, ...], output: Any) -> Any:
        given = layer.__dict__.pop("_raysense_cast", False)
        return output.to(dtype) if given and isinstance(output, Tensor) else output

    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        is_map = isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
        if is_map and isinstance(weight, Tensor) and weight.dtype != dtype:
            layer.register_forward_pre_hook(cast)
            layer.register_forward_hook(back)


@contextmanager
def quiet_loaders() -> Iterator[None]:
    """Without the loaders' own warnings about weights that do not match: these are errors here, one line each.

    Their progress bars, which would break up the study's own live view, stay off for good.
    """
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    before = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about settings of the pipeline's author
            yield
    finally:
        diffusers_logging.set_verbosity(before[0])
        transformers_logging.set_verbosity(before[1])


def notes_of(pipeline: DiffusionPipeline) -> tuple[str, ...]:
    """What departs from the plain case in a pipeline that `load_pipeline` gave, a sentence each."""
    notes: tuple[str, ...] = getattr(pipeline, "loading_notes", ())
    return notes


def pipeline_class(source: str, index: Mapping[str, Any]) -> Any:
    """The class that a ``model_index.json`` names.

    Raises:
        RaysenseError: The installed diffusers does not have it.
    """
    kind = index.get("_class_name")
    found = getattr(diffusers, kind, None) if isinstance(kind, str) else None
    if not inspect.isclass(found) or not issubclass(found, DiffusionPipeline):
        raise RaysenseError(files.unknown_pipeline(source, kind))
    return found


def is_component(entry: object) -> bool:
    """Whether an entry of ``model_index.json`` describes a component that is there: a library and a class."""
    return (
        isinstance(entry, (list, tuple)) and len(entry) == 2 and all(isinstance(part, str) for part in entry)
    )


class Foreign(nn.Module):
    """Stands for a component of a class that is neither diffusers' nor transformers'; see `refuse_foreign`."""


def module_classes(index: Mapping[str, Any]) -> dict[str, type[nn.Module]]:
    """Component name -> class of every component that holds weights, but for a safety checker.

    Args:
        index: The pipeline's ``model_index.json``.

    Returns:
        A class that the installed diffusers and transformers do not have is a `Foreign` of the class's name.
    """
    found: dict[str, type[nn.Module]] = {}
    for name, entry in index.items():
        if not is_component(entry) or name == SAFETY:
            continue
        library, class_name = entry
        home: Any = getattr(diffusers.pipelines, library, None)
        if home is None and library in ("diffusers", "transformers"):
            home = importlib.import_module(library)
        cls = getattr(home, class_name, None)
        if cls is None:
            cls = type(f"{library}.{class_name}", (Foreign,), {})
        if isinstance(cls, type) and issubclass(cls, nn.Module):
            found[name] = cls
    return found


def refuse_foreign(source: str, classes: Mapping[str, type]) -> None:
    """Refuse components of classes that are unknown here.

    Raises:
        RaysenseError: There are such: their code is not run, and they would be missing from the denominators.
    """
    for name, cls in classes.items():
        if issubclass(cls, Foreign):
            raise RaysenseError(
                f"`pipeline`: component `{name}` of `{source}` is a `{cls.__name__}`, which the installed diffusers "
                "and transformers do not have. Code that comes with a pipeline is not run, and left out the component "
                "would be missing from the denominators: save the pipeline with a class of theirs"
            )


def load_component(
    folder: str, name: str, cls: Any, dtype: torch.dtype, origin: Origin | None = None
) -> nn.Module:
    """One component with its weights, each of them from the file.

    Raises:
        RaysenseError: Tensors of the component that the file lacks, has too much, or has in another shape.
    """
    origin = origin or Origin(folder)
    options: dict[str, Any] = {
        "torch_dtype": dtype,
        "variant": files.chosen_variant(Path(folder) / name, origin.variant),
        "use_safetensors": None if origin.pickled else True,
    }
    if issubclass(cls, PreTrainedModel):  # it names tensors of another shape only where these are let pass
        options["dtype"] = options.pop("torch_dtype")
        options["ignore_mismatched_sizes"] = True
    try:
        module, info = cls.from_pretrained(folder, subfolder=name, output_loading_info=True, **options)
    except Exception as error:  # the libraries' messages do not say which component it is
        raise ValueError(f"component `{name}`: {error}") from error
    own: set[str] = {path.rpartition(".")[2] for path, _ in module.named_buffers()}
    problems = {
        "lacks": [str(key) for key in info["missing_keys"]],
        # Buffers that an older version stored, and that are computed today, are no weights.
        "has no use for": [str(key) for key in info["unexpected_keys"] if key.rpartition(".")[2] not in own],
        "has in another shape": [
            str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]
        ],
    }
    told = [f"{what} {listed(names)}" for what, names in problems.items() if names]
    if told:
        raise RaysenseError(
            f"`pipeline`: the weights of `{name}` do not match its class {cls.__name__}: the file "
            f"{', and '.join(told)}. The rest would be random numbers: save the component with `save_pretrained` from "
            "the model that holds the right weights (adapters fused and unloaded)"
        )
    loaded: nn.Module = module
    return loaded


def _refuse_odd_files(source: str, folder: str) -> None:
    if os.path.isdir(source):  # the hub's cache is the hub's
        try:
            refuse_odd_files(Path(folder))
        except RaysenseError as error:
            raise RaysenseError(f"`pipeline`: {error}") from None


def _refuse_broken(name: str, module: nn.Module) -> None:
    """Refuse weights that are not finite: every image and every score would be worthless."""
    for path, weight in (*module.named_parameters(), *module.named_buffers()):
        # Infinite buffers are masks; a weight is never infinite.
        broken = weight.isnan() if not isinstance(weight, nn.Parameter) else ~weight.isfinite()
        if bool(broken.any()):
            raise RaysenseError(
                f"`pipeline`: {int(broken.sum()):,} of the {weight.numel():,} values of `{name}` tensor `{path}` are "
                f"NaN or infinite as {str(weight.dtype)[6:]}; the checkpoint is broken, or does not fit `dtype`"
            )


def _dtype_note(name: str, module: nn.Module, wanted: torch.dtype) -> str:
    """What of a component is not of the study's type, or an empty text."""
    weights = dict(module.named_parameters())
    other = {
        path: weight
        for path, weight in weights.items()
        if weight.is_floating_point() and weight.dtype != wanted
    }
    if not other:
        return ""
    kinds = ", ".join(sorted({str(weight.dtype)[6:] for weight in other.values()}))
    return (
        f"{name}: {len(other)} of {len(weights)} tensors are {kinds}, not {str(wanted)[6:]}, as their class "
        f"{type(module).__name__} wants it ({min(other)}{' …' * (len(other) > 1)})"
    )


def empty_components(source: str | Origin, *, device: str = "meta") -> dict[str, nn.Module]:
    """A pipeline's modules as its configuration describes them, without weights: nothing large is downloaded.

    Args:
        source: See `Origin`.
        device: Where; another one than ``meta`` is for callers that make tensors fake.

    Returns:
        Component name -> module; a safety checker is left out, as `load_pipeline` does, and a
        component of an unknown class is a `Foreign`.

    Raises:
        RaysenseError: No configuration is there, it cannot be read, or an adapter does not fit.
    """
    origin = source if isinstance(source, Origin) else Origin(source)
    _refuse_odd_files(origin.source, pipeline_folder(origin.source))
    try:
        folder = configuration_folder(origin)
        if not os.path.isdir(folder):
            pipeline_index(folder, origin.revision)
        index = DiffusionPipeline.load_config(folder, revision=origin.revision)
        kind = pipeline_class(origin.source, index)
        classes = module_classes(index)
        modules = {name: _empty(folder, name, cls, origin.revision, device) for name, cls in classes.items()}
    except (OSError, ValueError, ImportError, AttributeError, KeyError) as error:
        raise RaysenseError(
            f"`pipeline`: the configuration of `{origin.source}` could not be read: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None
    if origin.is_file and device == "meta":
        refuse_foreign(folder, classes)
        _elsewhere(origin, folder, kind, modules)
    for lora in origin.lora if device == "meta" else ():
        refuse_misfit(kind, modules, lora)
    return modules


def _empty(folder: str, name: str, cls: Any, revision: str | None = None, device: str = "meta") -> nn.Module:
    """One component without weights."""
    if issubclass(cls, Foreign):
        foreign: nn.Module = cls()
        return foreign
    with torch.device(device):
        if issubclass(cls, PreTrainedModel):
            module: nn.Module = cls(
                cls.config_class.from_pretrained(folder, subfolder=name, revision=revision)
            )
        else:
            module = cls.from_config(cls.load_config(folder, subfolder=name, revision=revision))
    return module


def modules_of(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    """The components of `pipeline` that are modules, by name."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def denoiser_of(pipeline: DiffusionPipeline) -> nn.Module:
    """The component that the sampling loop calls at every step: the U-Net or the transformer.

    Raises:
        RaysenseError: The pipeline has neither.
    """
    modules = modules_of(pipeline)
    for name in ("unet", "transformer", "prior"):
        if name in modules:
            return modules[name]
    raise RaysenseError(
        f"`pipeline`: found no denoiser (`unet`, `transformer` or `prior`) among the components {sorted(modules)}"
    )


def compile_denoiser(pipeline: DiffusionPipeline, backend: str = "inductor") -> None:
    """Compile the denoiser's `forward` in place, so that weights may change and hooks on it still run.

    The graph takes the weights as inputs: masking them in place compiles nothing anew. (`nn.Module.compile`
    would compile the hooks in and overlook those that are added later.) Hooks on the modules *inside* do not run.

    Args:
        pipeline: Whose denoiser.
        backend: Of `torch.compile`.
    """
    denoiser = denoiser_of(pipeline)
    denoiser.forward = torch.compile(denoiser.forward, backend=backend)
