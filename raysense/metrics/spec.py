"""What is known of each metric, as plain data: study, search, page, charts and SQL read it here. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

RELATIVE = ("_drop", "_rise")
"""Endings of measures that compare with the dense pipeline; both are losses, whatever the metric."""

DERIVED = (*RELATIVE, "_low", "_high", "_n")
"""Endings that raysense itself gives to names of metrics, in rows and in data frames."""


@dataclass(frozen=True)
class MetricSpec:
    """One metric.

    Attributes:
        name: As in a study and in the rows.
        label: For people.
        meaning: What it says, in half a sentence.
        unit: Of the value; `relative_unit` of the paired difference.
        higher_is_better: Which way is good.
        kind: ``image``, a number an image whose mean counts; ``set``, a number for all images together; ``probe``,
            measured without images.
        relative: Ending of the paired measure beside it, or an empty text where there is none.
        dense: What the dense pipeline has by definition, where there is no paired measure.
        always: Measured on every image rung.
        needs_images: Whether a reference of a mean and a covariance is not enough.
        needs_full_sample: Whether its bias depends on the number of images, so that a smaller rung says nothing
            certain about a larger one.
    """

    name: str
    label: str
    meaning: str = ""
    unit: str = ""
    relative_unit: str = ""
    higher_is_better: bool = False
    kind: Literal["image", "set", "probe"] = "image"
    relative: Literal["_drop", "_rise", ""] = ""
    dense: float | None = None
    always: bool = False
    needs_images: bool = False
    needs_full_sample: bool = False


_FAR = "how far the set of images is from the dense pipeline's; lower is better"
_OF_SET = "to dense images of other seeds"

SPECS: dict[str, MetricSpec] = {
    spec.name: spec
    for spec in (
        MetricSpec(
            "clip_score",
            "CLIP score",
            "how well an image fits its prompt; higher is better",
            "mean cosine of image and prompt",
            "dense minus pruned, paired by prompt and seed",
            higher_is_better=True,
            relative="_drop",
            always=True,
        ),
        MetricSpec(
            "frechet",
            "Fréchet distance",
            _FAR,
            f"Fréchet distance {_OF_SET}",
            "pruned minus dense Fréchet distance, paired",
            kind="set",
            relative="_rise",
            always=True,
            needs_full_sample=True,
        ),
        MetricSpec(
            "kid",
            "KID",
            _FAR,
            f"kernel distance {_OF_SET}",
            "pruned minus dense kernel distance, paired",
            kind="set",
            relative="_rise",
            always=True,
            needs_images=True,
        ),
        MetricSpec(
            "closeness",
            "closeness to the dense image",
            "how alike an image and the dense one from the same noise are; 1 is equal",
            "mean feature cosine with the dense image of the same noise",
            higher_is_better=True,
            dense=1.0,
            always=True,
        ),
        MetricSpec(
            "cmmd",
            "CMMD",
            _FAR,
            f"kernel distance of CLIP features, × 1000, {_OF_SET}",
            "pruned minus dense kernel distance, paired",
            kind="set",
            relative="_rise",
            needs_images=True,
            needs_full_sample=True,
        ),
        MetricSpec(
            "precision",
            "precision",
            "share of images that look like the reference's; higher is better",
            "share of images",
            "dense minus pruned",
            higher_is_better=True,
            kind="set",
            relative="_drop",
            needs_images=True,
            needs_full_sample=True,
        ),
        MetricSpec(
            "recall",
            "recall",
            "share of the reference that the images cover; higher is better",
            "share of reference images",
            "dense minus pruned",
            higher_is_better=True,
            kind="set",
            relative="_drop",
            needs_images=True,
            needs_full_sample=True,
        ),
        MetricSpec(
            "ssim",
            "SSIM to the dense image",
            "how alike the pixels of an image and the dense one from the same noise are; 1 is equal",
            "mean structural similarity",
            higher_is_better=True,
            dense=1.0,
        ),
        MetricSpec(
            "lpips",
            "LPIPS to the dense image",
            "how unlike an image and the dense one from the same noise look; 0 is equal",
            "mean LPIPS distance",
            dense=0.0,
        ),
        MetricSpec("probe_error", "probe error", "squared error of the denoiser's output", kind="probe", dense=0.0),
        MetricSpec("text_error", "text error", "squared error of the text embeddings", kind="probe", dense=0.0),
        MetricSpec("layer_error", "layer error", "squared error of the layers' outputs", kind="probe", dense=0.0),
    )
}  # fmt: skip


def base_of(measure: str) -> str:
    """The metric behind a measure: ``clip_score_drop`` → clip_score."""
    return measure.removesuffix("_drop").removesuffix("_rise")


def spec_of(measure: str, own: Mapping[str, MetricSpec] | None = None) -> MetricSpec:
    """What is known of a measure's metric.

    Args:
        measure: A metric, or its drop or rise.
        own: What a study says of metrics of its own (`Study.own_specs`); of other unknown names nothing is known but
            the name.
    """
    name = base_of(measure)
    return SPECS.get(name) or (own or {}).get(name) or MetricSpec(name, name.replace("_", " "))


def higher_is_better(measure: str, own: Mapping[str, MetricSpec] | None = None) -> bool:
    """Which way is good: drops and rises are losses. See `spec_of`."""
    return not measure.endswith(RELATIVE) and spec_of(measure, own).higher_is_better
