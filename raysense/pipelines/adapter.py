"""What differs from family to family of pipelines: what denoises, what steps, how a call is made, what it gives.

Nothing here asks for a class by name: what a pipeline's call takes, and what its components and their configurations
say, decides. Nothing else in raysense knows any of it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.auto_pipeline import (
    AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    AUTO_INPAINT_PIPELINES_MAPPING,
    AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
)
from torch import Tensor, nn
from torch.utils._pytree import SequenceKey, keystr, tree_flatten_with_path

from raysense.errors import RaysenseError
from raysense.pipelines.load import modules_of
from raysense.study import Sampling

NO_GUIDANCE = (0.0, 1.0)
"""Strengths that run no guidance."""

NULL_PROMPT = " "
"""What guidance leads away from, where a pipeline has no prompt of its own for that."""


ONE_PROMPT = ("DreamLiteMobilePipeline",)
"""Pipelines whose signatures take a list of prompts, which they then refuse."""


CONDITIONS = ("encoder_hidden", "text_emb", "text_bth", "pooled", "cap_feat", "prompt")
"""What the names of denoisers' arguments hold that come from text encoders."""


def call_arguments(pipeline: DiffusionPipeline, sampling: Sampling) -> dict[str, Any]:
    """The arguments of a pipeline's call, prompts and generators aside.

    Args:
        pipeline: What is called.
        sampling: How images are made.

    Raises:
        RaysenseError: The pipeline does not take what `sampling` asks for.
    """
    known = inspect.signature(pipeline.__call__).parameters
    kind = type(pipeline).__name__
    if why := why_not(type(pipeline)):
        raise RaysenseError(
            f"`pipeline`: {kind} is not measured: {why}; raysense measures images from a prompt alone"
        )
    wishes = ("height", "width", "max_sequence_length")
    wanted = {name: getattr(sampling, name) for name in wishes if getattr(sampling, name) is not None}
    # By name: many pipelines also swallow what they do not know.
    for name in wanted.keys() - known.keys():
        raise RaysenseError(f"`sampling.{name}` is {wanted[name]}, but {kind} takes no {name}; leave it out")
    for name in sampling.call.keys() - known.keys():
        others = sorted(known.keys() - {"prompt", "args", "kwargs"})
        raise RaysenseError(
            f"`sampling.call` holds {name!r}, which {kind} does not take; it takes {', '.join(others)}"
        )
    return {
        "num_inference_steps": sampling.steps,
        **_guidance(pipeline, sampling, known),
        **wanted,
        **sampling.call,
        # As NumPy arrays: for tensors some families hand out what their decoder gave, on a scale of its own.
        "output_type": "np",
    }


NOT_MEASURED = {
    "GlmImagePipeline": "its language model draws image tokens from one random state for a whole batch, so that an "
    "image has no noise of its own",
}
"""Pipelines that make images from a prompt, but not from common random numbers -> why."""


def why_not(kind: type) -> str:
    """Why pipelines of a class are not measured, or an empty text: a prompt must be enough, and give images."""
    if kind.__name__ in NOT_MEASURED:
        return NOT_MEASURED[kind.__name__]
    if begins := _begins_with(kind):
        return begins
    call: Any = kind.__call__
    known = inspect.signature(call).parameters
    if "prompt" not in known:
        return "it takes no `prompt`"
    free = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    needed = [
        name
        for name, one in known.items()
        if one.default is one.empty and one.kind not in free and name not in ("self", "prompt")
    ]
    parts = inspect.signature(kind).parameters
    needed += [name for name in known if name.startswith("control_image")]
    if "controlnet" in parts and not needed:
        needed.append("image")
    if needed:
        return f"it needs `{needed[0]}` beside a prompt"
    if {"num_frames", "video_length"} & known.keys():
        return "it makes videos, not images"
    if any(name.startswith("audio") for name in known):
        return "it makes sound, not images"
    if "num_inference_steps" not in known:
        return "it takes no number of steps"
    return ""


def _begins_with(kind: type) -> str:
    """What an image is made from by pipelines whose signatures take it for optional, or an empty text."""
    if kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values():
        return ""
    for others, what in (
        (AUTO_IMAGE2IMAGE_PIPELINES_MAPPING, "an image"),
        (AUTO_INPAINT_PIPELINES_MAPPING, "an image and a mask"),
    ):
        for name in (name for name, other in others.items() if other is kind):
            sibling = AUTO_TEXT2IMAGE_PIPELINES_MAPPING.get(name)
            remedy = f" (`_class_name` in model_index.json may be {sibling.__name__})" if sibling else ""
            return f"it starts from {what}{remedy}"
    return ""


def prompt_arguments(
    pipeline: DiffusionPipeline, texts: Sequence[str], others: Mapping[str, Any]
) -> dict[str, Any]:
    """A call's arguments, prompts included: where these are a list, so is what guidance leads away from.

    Args:
        pipeline: What is called.
        texts: The prompts.
        others: The other arguments.

    Raises:
        RaysenseError: It takes one prompt at a time, and there are several.
    """
    prompt = _prompt_argument(pipeline, texts)
    own = dict(others)
    if isinstance(prompt, list):
        # Many pipelines refuse a text beside a list, or take it for the first prompt only.
        own |= {
            name: [value] * len(prompt)
            for name, value in others.items()
            if name.startswith("negative_prompt") and isinstance(value, str)
        }
    return {**own, "prompt": prompt}


def _prompt_argument(pipeline: DiffusionPipeline, texts: Sequence[str]) -> str | list[str]:
    """Texts as a pipeline's call takes them.

    Raises:
        RaysenseError: It takes one at a time, and there are several.
    """
    said = str(inspect.signature(pipeline.__call__).parameters["prompt"].annotation).lower()
    takes_one = "str" in said and "list" not in said
    if not takes_one and type(pipeline).__name__ not in ONE_PROMPT:
        return list(texts)
    if len(texts) > 1:
        raise RaysenseError(
            f"`sampling.batch`: {type(pipeline).__name__} takes one prompt a call, not {len(texts)}; set it to 1"
        )
    return texts[0]


def set_guiders(pipeline: DiffusionPipeline, strength: float) -> None:
    """Tell the components that combine predictions how strongly, where a pipeline has such instead of an argument."""
    for name, part in getattr(pipeline, "components", {}).items():
        is_guider = hasattr(part, "guidance_scale") and callable(getattr(part, "new", None))
        if is_guider and part.guidance_scale != strength:
            pipeline.register_modules(**{name: part.new(guidance_scale=strength)})


def _guidance(pipeline: DiffusionPipeline, sampling: Sampling, known: Mapping[str, Any]) -> dict[str, Any]:
    """The argument that sets how strongly an image follows its prompt.

    Raises:
        RaysenseError: There is none, and guidance is wanted.
    """
    strength = sampling.guidance
    if "true_cfg_scale" in known and not _knows_guidance(pipeline):
        # Its `guidance_scale` is for distilled siblings, which are told their guidance, and does nothing here.
        if "true_cfg_scale" in sampling.call or strength in NO_GUIDANCE:
            return {} if "true_cfg_scale" in sampling.call else {"true_cfg_scale": 1.0}
        return {"true_cfg_scale": strength, "negative_prompt": NULL_PROMPT}
    for name in ("guidance_scale", "prior_guidance_scale"):
        if name in known:
            return {} if name in sampling.call else {name: strength}
    if "distilled_guidance_scale" in known:  # siblings that are not distilled have guiders, see `set_guiders`
        is_told = _knows_guidance(pipeline) and "distilled_guidance_scale" not in sampling.call
        return {"distilled_guidance_scale": strength} if is_told else {}
    if strength not in NO_GUIDANCE:
        raise RaysenseError(
            f"`sampling.guidance` is {strength:g}, but {type(pipeline).__name__} takes none; set it to 1"
        )
    return {}


def _knows_guidance(pipeline: DiffusionPipeline) -> bool:
    """Whether a denoiser was distilled with guidance as one of its inputs."""
    return any(
        getattr(getattr(module, "config", None), "guidance_embeds", False)
        for module in denoisers_of(pipeline).values()
    )


def images_in(pipeline: DiffusionPipeline, output: object, count: int) -> Tensor:
    """The images that a call gave: float32 (count, 3, height, width), on the CPU.

    Raises:
        RaysenseError: It gave something else.
    """
    found = getattr(output, "images", None)
    found = getattr(output, "image", None) if found is None else found
    if isinstance(found, Sequence) and found and all(isinstance(image, np.ndarray) for image in found):
        found = np.stack(list(found))
    if isinstance(found, np.ndarray) and found.ndim == 4 and found.shape[-1] == 4:
        found = found[..., :3] * found[..., 3:] + (1 - found[..., 3:])  # transparent, on white paper
    if not isinstance(found, np.ndarray) or found.ndim != 4 or (len(found), found.shape[-1]) != (count, 3):
        got = f"shape {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        raise RaysenseError(
            f"`pipeline`: {type(pipeline).__name__} gives no images for output_type='np' but {got}, where "
            f"({count}, height, width, 3) is wanted; raysense measures text-to-image pipelines only"
        )
    return torch.from_numpy(found).float().movedim(-1, 1).contiguous()


def schedulers_of(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """The components that turn a prediction into the next latents, by name; more than one where stages follow.

    Raises:
        RaysenseError: The pipeline has none.
    """
    found = {
        name: part
        for name, part in pipeline.components.items()
        if not isinstance(part, nn.Module) and callable(getattr(part, "step", None))
    }
    if not found:
        raise RaysenseError(
            f"`pipeline`: {type(pipeline).__name__} has no scheduler, so raysense cannot follow its steps"
        )
    return found


def denoisers_of(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    """The components that are called with a timestep, by name: U-Net, transformer, or several of them.

    Raises:
        RaysenseError: The pipeline has none.
    """
    modules = modules_of(pipeline)
    found = {name: module for name, module in modules.items() if takes_timestep(type(module))}
    found = found or {
        name: module for name, module in modules.items() if name in ("unet", "transformer", "prior")
    }
    if not found:
        raise RaysenseError(
            f"`pipeline`: found no denoiser (a component that takes a timestep) among {sorted(modules)}"
        )
    return found


def takes_timestep(cls: type[nn.Module]) -> bool:
    """Whether a component of this class denoises: it is told how noisy its input is."""
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


def conditions_in(args: Sequence[Any], kwargs: Mapping[str, Any], prompts: int) -> list[list[Tensor]]:
    """The text embeddings in one call of a denoiser: sequences of vectors, stacks of such, and pooled ones.

    Args:
        args: The call's.
        kwargs: The call's.
        prompts: How many prompts the call is about; guidance may repeat them.

    Returns:
        One list an embedding. The rows of its tensors, one after the other, belong to prompts 0, 1, … and over again: a
        single tensor, or, where texts of different lengths are handed over in a list, a tensor of one row each.
    """
    samples = samples_in(args, kwargs)
    named = {**kwargs, **({"encoder_hidden_states": args[2]} if len(args) > 2 else {})}
    together: dict[tuple[str, bool], list[Tensor]] = {}
    for path, leaf in tree_flatten_with_path(named)[0]:
        keys = tuple(key for key in path if not isinstance(key, SequenceKey))
        name = keystr(keys)
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and any(part in name for part in CONDITIONS):
            together.setdefault((name, keys != path), []).append(leaf)
    found = []
    for (_, listed), leaves in together.items():
        # A list with a tensor each of several encoders is none of texts: every tensor has all the samples.
        of_texts = listed and len(leaves) % prompts == 0 and any(len(leaf) != samples for leaf in leaves)
        if of_texts:
            found.append([leaf[None] for leaf in leaves])
        else:
            found += [[rows] for leaf in leaves if (rows := _by_sample(leaf, samples, prompts)) is not None]
    return found


def _by_sample(leaf: Tensor, samples: int, prompts: int) -> Tensor | None:
    """An embedding with a row a sample, or None if it cannot be told which of its axes is that of the samples."""
    if leaf.ndim > 1 and (len(leaf) == samples or (leaf.ndim < 4 and len(leaf) % prompts == 0)):
        return leaf
    if leaf.ndim > 3 and leaf.shape[1] == samples:  # a language model's layers first
        return leaf.movedim(1, 0)
    if leaf.ndim > 1 and len(leaf) == 1:  # one null prompt for all
        return leaf.expand(prompts, *leaf.shape[1:])
    return None


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
