"""Where a pipeline comes from: the bundle, a folder, a single file, or the hub; and what to say if it is not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from diffusers import DiffusionPipeline

from raysense.errors import RaysenseError
from raysense.hub import pipeline_index
from raysense.names import BUNDLED_PIPELINES
from raysense.study import Lora, Study, bundled_pipeline
from raysense.study import weight_files as files

LATENT = "model.diffusion_model."
"""How a denoiser's tensors are called in single files of latent diffusion."""

CONFIGURATION = ["*.json", "*.txt", "*.model", "*.jinja"]
"""Files of a pipeline on the hub that hold no weights."""


def pipeline_folder(source: str) -> str:
    """The folder, file or hub id behind `source`, which may be ``bundled``."""
    return str(bundled_pipeline(source)) if source in BUNDLED_PIPELINES else source


@dataclass(frozen=True)
class Origin:
    """Where a pipeline's weights come from.

    Attributes:
        source: ``bundled``, a folder in diffusers' format, a hub id, or a single file of weights.
        revision: A hub commit, branch or tag.
        variant: Weight files of this name, such as ``fp16``.
        config: Of a single file: where its configuration is; None for diffusers' guess.
        lora: Adapters that are added to the weights.
        pickled: Whether pickled weights may be read.
    """

    source: str
    revision: str | None = None
    variant: str | None = None
    config: str | None = None
    lora: tuple[Lora, ...] = ()
    pickled: bool = False

    @classmethod
    def of(cls, study: Study) -> Origin:
        """What a study says."""
        return cls(study.pipeline, study.revision, study.variant, study.config, study.lora, study.pickled)

    @property
    def is_file(self) -> bool:
        """Whether it is a single file of weights."""
        return os.path.isfile(pipeline_folder(self.source))


def local_folder(origin: Origin) -> str:
    """The folder of a pipeline on this machine; what is on the hub is downloaded first."""
    folder = pipeline_folder(origin.source)
    if os.path.isdir(folder):
        return folder
    pipeline_index(folder, origin.revision)
    return str(
        DiffusionPipeline.download(
            folder,
            revision=origin.revision,
            variant=origin.variant,
            use_safetensors=None if origin.pickled else True,
        )
    )


def configuration_folder(origin: Origin) -> str:
    """The folder, or hub id, of a pipeline's configuration; no weights are fetched."""
    return single_file_config(origin) if origin.is_file else pipeline_folder(origin.source)


def single_file_config(origin: Origin) -> str:
    """The folder with the configuration that a single file belongs to; fetched from the hub, or its cache.

    Raises:
        RaysenseError: The file is none that diffusers knows, or the configuration cannot be had.
    """
    from diffusers.loaders.single_file_utils import (
        fetch_diffusers_config,
        infer_diffusers_model_type,
        load_single_file_checkpoint,
    )

    path = pipeline_folder(origin.source)
    files.single_file(Path(path), origin.pickled)
    place = origin.config
    if place is None:
        tensors = load_single_file_checkpoint(path)
        # diffusers takes what it does not know for Stable Diffusion 1.
        if infer_diffusers_model_type(tensors) == "v1" and not any(
            name.startswith(LATENT) for name in tensors
        ):
            raise RaysenseError(
                f"`pipeline`: the single file `{path}` is no checkpoint of a pipeline that diffusers recognises (its "
                f"tensors are {', '.join(sorted(tensors)[:3])} …); set `config` to the pipeline that it belongs to, or "
                "give a folder in diffusers' format"
            )
        place = str(fetch_diffusers_config(tensors)["pretrained_model_name_or_path"])
    if os.path.isdir(place):
        return place
    from huggingface_hub import snapshot_download

    try:
        pipeline_index(place, None)
    except RaysenseError as error:
        raise RaysenseError(
            f"`config`: the single file `{path}` needs the configuration of `{place}`, which cannot be had ({error}); "
            "give a folder that holds it"
        ) from None
    return str(snapshot_download(place, allow_patterns=CONFIGURATION))


def why_not_loaded(origin: Origin, error: BaseException) -> str:
    """One sentence for what a library raised while it read what is there."""
    place = pipeline_folder(origin.source)
    what = (
        "the single file"
        if origin.is_file
        else "the folder"
        if os.path.isdir(place)
        else "the hub's pipeline"
    )
    return f"`pipeline`: {what} `{origin.source}` could not be loaded: {' '.join(str(error).split())[:200]}"
