"""Load a `DiffusionPipeline` from the bundle, a folder or the hub, ready to be pruned and sampled."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from raysense.errors import RaysenseError
from raysense.hashing import refuse_odd_files
from raysense.hub import settle_hub
from raysense.names import BUNDLED
from raysense.study import bundled_pipeline

logger = logging.getLogger(__name__)


def pipeline_folder(source: str) -> str:
    """The folder or hub id behind `source`, which may be ``bundled``."""
    return str(bundled_pipeline()) if source == BUNDLED else source


SAFETY = "safety_checker"
"""A component that blackens images by its own judgement: not part of what is measured, so it is switched off."""

NAMES_SHOWN = 4
"""Names of tensors in a message."""


def load_pipeline(
    source: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    channels_last: bool = False,
) -> DiffusionPipeline:
    """Load a pipeline for inference; what departs from the plain case is said by `notes_of`.

    Args:
        source: ``bundled``, a folder in diffusers' format, or a hub id.
        revision: A hub commit, branch or tag.
        dtype: ``float32``, ``bfloat16`` or ``float16``, for every component.
        device: A torch device.
        channels_last: Lay out the weights of two-dimensional convolutions with channels innermost.

    Raises:
        RaysenseError: Nothing loadable is there; weights are missing, left over, of another shape or not finite; a
            component is of a class that is neither diffusers' nor transformers'.
    """
    # Progress bars of the loaders would break up the study's own live view.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    kind = getattr(torch, dtype)
    try:
        with quiet_loaders():
            pipeline, index = _assembled(source, revision, kind)
    except RaysenseError:
        raise
    except Exception as error:  # whatever the libraries raise: they could not read what is there
        reason = " ".join(str(error).split())[:200]
        looked = (
            "as a folder"
            if os.path.exists(pipeline_folder(source))
            else "as a folder (there is none) and as a hub id"
        )
        raise RaysenseError(
            f"`pipeline` must be `bundled`, a folder in diffusers' format or a hub id within reach, but "
            f"`{source}` could not be loaded {looked}: {reason}"
        ) from None
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    for name, module in modules_of(pipeline).items():
        module.requires_grad_(False)
        module.eval()
        if channels_last:
            for weight in module.parameters():
                if weight.ndim == 4:
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        _refuse_broken(name, module)
    notes = [
        note for name, module in modules_of(pipeline).items() if (note := _dtype_note(name, module, kind))
    ]
    if is_component(index.get(SAFETY)):
        notes.append("the safety checker is switched off: it would blacken images, and is in no denominator")
    for note in notes:
        logger.info("%s", note)
    pipeline.loading_notes = tuple(notes)
    return pipeline


def _assembled(
    source: str, revision: str | None, dtype: torch.dtype
) -> tuple[DiffusionPipeline, Mapping[str, Any]]:
    """The pipeline from its components, each loaded and checked by itself; and its ``model_index.json``."""
    folder = local_folder(source, revision)
    _refuse_odd_files(source, folder)
    index = DiffusionPipeline.load_config(folder)
    classes = module_classes(index)
    refuse_foreign(source, classes)
    given: dict[str, Any] = {name: load_component(folder, name, cls, dtype) for name, cls in classes.items()}
    # What was saved without a component, such as Stable Diffusion 3 without T5, loads only where that is said.
    given |= {name: None for name, entry in index.items() if entry in ([None, None], (None, None))}
    if SAFETY in index:
        given[SAFETY] = None
    if "requires_safety_checker" in index:
        given["requires_safety_checker"] = False
    return DiffusionPipeline.from_pretrained(folder, dtype=dtype, **given), index


@contextmanager
def quiet_loaders() -> Iterator[None]:
    """Without the loaders' own warnings about weights that do not match: these are errors here, one line each."""
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


def local_folder(source: str, revision: str | None) -> str:
    """The folder of a pipeline on this machine; what is on the hub is downloaded first."""
    folder = pipeline_folder(source)
    if os.path.isdir(folder):
        return folder
    settle_hub()
    return str(DiffusionPipeline.download(folder, revision=revision))


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


def load_component(folder: str, name: str, cls: Any, dtype: torch.dtype) -> nn.Module:
    """One component with its weights, each of them from the file.

    Raises:
        RaysenseError: Tensors of the component that the file lacks, has too much, or has in another shape.
    """
    options: dict[str, Any] = {"torch_dtype": dtype}
    if issubclass(cls, PreTrainedModel):  # it names tensors of another shape only where these are let pass
        options = {"dtype": dtype, "ignore_mismatched_sizes": True}
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
    told = [f"{what} {_listed(names)}" for what, names in problems.items() if names]
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


def _listed(names: Sequence[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
    return f"{len(names):,} tensors ({', '.join(names[:NAMES_SHOWN])}{more})"


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


def empty_components(
    source: str, *, revision: str | None = None, device: str = "meta"
) -> dict[str, nn.Module]:
    """A pipeline's modules as its configuration describes them, without weights: nothing large is downloaded.

    Args:
        source: See `load_pipeline`.
        revision: See `load_pipeline`.
        device: Where; another one than ``meta`` is for callers that make tensors fake.

    Returns:
        Component name -> module; a safety checker is left out, as `load_pipeline` does, and a
        component of an unknown class is a `Foreign`.

    Raises:
        RaysenseError: No configuration is there, or it cannot be read.
    """
    folder = pipeline_folder(source)
    _refuse_odd_files(source, folder)
    try:
        index = DiffusionPipeline.load_config(folder, revision=revision)
        classes = module_classes(index)
        return {name: _empty(folder, name, cls, revision, device) for name, cls in classes.items()}
    except (OSError, ValueError, ImportError, AttributeError, KeyError) as error:
        raise RaysenseError(
            f"`pipeline`: the configuration of `{source}` could not be read: {' '.join(str(error).split())[:200]}"
        ) from None


def _empty(folder: str, name: str, cls: Any, revision: str | None, device: str) -> nn.Module:
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
