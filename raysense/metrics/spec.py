"""What a metric is: its words, its bounds, and how it is measured. Loads no torch.

The metrics of raysense's own are the files of `raysense.metrics.builtin`; those of a study are in its `metrics.custom`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from raysense.metrics.gaussians import Gaussian
    from raysense.metrics.intervals import Estimate
    from raysense.metrics.mmd import Labels

RELATIVE = ("_drop", "_rise")
"""Endings of measures that compare with the dense pipeline; both are losses, whatever the metric."""

DERIVED = (*RELATIVE, "_ci_low", "_ci_high", "_n")
"""Endings that raysense itself gives to names of metrics, in rows and in data frames."""

CLIP: Final = "clip"
FEATURES: Final = "features"
"""The two networks whose features are kept, as the study's sections `metrics.clip` and `metrics.features` name them."""

Network = Literal["clip", "features"]


@dataclass(frozen=True)
class OfPrompt:
    """A number an image, from its features and its prompt's.

    Attributes:
        scores: Image features (n, d), text features (n, d) -> (n,) float64.
    """

    scores: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class OfPixels:
    """A number an image, from its pixels and those of the dense pipeline's image of the same prompt and noise.

    Attributes:
        load: Device -> a function of two times (n, 3, h, w) float32 images in [0, 1] that gives (n,) float64.
        extractor: What stands in the rows.
        weights: Which weights it downloads, for a person; empty if none.
    """

    load: Callable[[str], Callable[[Tensor, Tensor], Tensor]]
    extractor: str
    weights: str = ""


@dataclass(frozen=True)
class OfFeatures:
    """A number an image, from its features and those of the dense pipeline's image.

    Attributes:
        scores: Features (n, d) of the pruned, of the dense images, and what is subtracted from both (d,)
            -> (n,) float64.
        network: Whose features.
    """

    scores: Callable[[Tensor, Tensor, Tensor], Tensor]
    network: Network = FEATURES


@dataclass(frozen=True)
class Distance:
    """A number for the set, of which each image's influence is known.

    Attributes:
        estimate: Features (n, d), the reference's (m, d), its mean and covariance, and the number of each image's
            prompt, see `raysense.metrics.mmd.Labels` -> value and influences.
        network: Whose features.
    """

    estimate: Callable[[Tensor, Tensor, Gaussian, Labels], Estimate]
    network: Network = FEATURES


@dataclass(frozen=True)
class OfSet:
    """A number for the set, its interval by leaving groups of prompts out; see `raysense.metrics.custom`.

    Attributes:
        value: Features (n, d), the reference's (m, d) -> the value.
        part: The attribute of what `value` gives that is the metric; empty where it gives a number. Metrics that are
            parts of one function's answer are computed together.
        network: Whose features.
    """

    value: Callable[[Tensor, Tensor], Any]
    part: str = ""
    network: Network = FEATURES

    def of(self, answer: Any) -> float:
        """The metric, out of what `value` gave."""
        return float(getattr(answer, self.part) if self.part else answer)


How = OfPrompt | OfPixels | OfFeatures | Distance | OfSet


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
        lowest: The least value there can be; None for no limit. `highest` likewise.
        always: Measured on every image rung.
        needs_images: Whether a reference of a mean and a covariance is not enough.
        needs_full_sample: Whether its bias depends on the number of images, so that a smaller rung says nothing
            certain about a larger one.
        biased_below: The number of images below which that bias is worth a warning.
        caution: What `validate` says of a study that bounds it, after the key and "bounds it: ".
        typical: Pipeline, or "" for any other -> standard deviation that a prompt adds to the measure that is compared
            with the dense pipeline, of a useful candidate; see `raysense.strategies.noise`.
        how: How raysense measures it; None for a metric of a study's own, and for the probes' errors.
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
    lowest: float | None = None
    highest: float | None = None
    always: bool = False
    needs_images: bool = False
    needs_full_sample: bool = False
    biased_below: int = 0
    caution: str = ""
    typical: Mapping[str, float] = field(default_factory=dict)
    how: How | None = None

    @property
    def compared(self) -> str:
        """The measure that is compared with the dense pipeline: the paired one, where there is one."""
        return self.name + self.relative


def base_of(measure: str) -> str:
    """The metric behind a measure: ``sharpness_drop`` → sharpness."""
    return measure.removesuffix("_drop").removesuffix("_rise")


FAR = "how far the set of images is from the dense pipeline's; lower is better"
OF_SET = "to dense images of other seeds"
"""Words that distances share."""
