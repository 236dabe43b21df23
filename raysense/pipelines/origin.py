"""Where a pipeline comes from: the bundle, a folder, a single file, or the hub; and what to say if it is not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from diffusers import DiffusionPipeline

from raysense.hub import pipeline_index
from raysense.names import BUNDLED_PIPELINES
from raysense.study import Lora, Study, bundled_pipeline

NAMES_SHOWN = 4
"""Names of tensors in a message."""

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


def listed(names: Sequence[str]) -> str:
    """Tensors in a message: how many, and the first few."""
    names = sorted(names)
    more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
    return f"{len(names):,} tensors ({', '.join(names[:NAMES_SHOWN])}{more})"


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
