"""Scores images: networks and functions that turn them into features, and features into measures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.hashing import DIGITS
from raysense.metrics import cmmd, frechet, kid, mmd, references
from raysense.metrics.clip_score import clip_scores
from raysense.metrics.closeness import Lpips, feature_closeness, ssim
from raysense.metrics.collapsed import why_collapsed
from raysense.metrics.custom import custom_metric, refuse_other_facts, set_intervals, set_metric
from raysense.metrics.features import ClipFeatures, as_bytes, extractor
from raysense.metrics.intervals import (
    Estimate,
    Interval,
    influence_interval,
    influence_rise,
    mean_interval,
    paired_drop,
)
from raysense.metrics.precision_recall import precision_recall_intervals
from raysense.metrics.spec import SPECS
from raysense.names import BUNDLED
from raysense.prompts.sets import Prompt
from raysense.records import Measure
from raysense.study import Study

DISTANCES = tuple(name for name, spec in SPECS.items() if spec.kind == "set" and spec.relative == "_rise")
"""Metrics of the whole set with an influence an image."""


@dataclass(frozen=True)
class ScoredImages:
    """What is kept of a set of images, row by row the same prompts and seeds as every set of its rung.

    Attributes:
        values: Metric -> (n,) float64, one number an image.
        features: Network (``clip``, ``frechet``) -> (n, d) float32.
        images: (n, 3, h, w) uint8 where a metric compares with the dense pipeline's images, else empty.
        size: Side of the images, in pixels.
        broken: One an image: why those of its batch are broken, or an empty string; nothing where none is.
    """

    values: Mapping[str, Tensor]
    features: Mapping[str, Tensor]
    images: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    size: int = 0
    broken: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values["clip_score"])

    @property
    def undefined(self) -> list[str]:
        """Metrics without a value for some image."""
        return [name for name, value in self.values.items() if bool(value.isnan().any())]

    @property
    def collapsed(self) -> str:
        """Why the set is broken, or an empty string: more than half of the images are, or a metric is undefined."""
        reasons = [reason for reason in self.broken if reason]
        if len(reasons) * 2 > len(self):
            return "; ".join(sorted(set(reasons)))
        return "; ".join(sorted(f"{name} is undefined for some images" for name in self.undefined))

    def rows(self, indices: Sequence[int]) -> ScoredImages:
        """Some of the images."""
        images = self.images[list(indices)] if len(self.images) else self.images
        chosen = list(indices)
        values = {name: value[chosen] for name, value in self.values.items()}
        features = {name: value[chosen] for name, value in self.features.items()}
        broken = tuple(self.broken[i] for i in chosen) if self.broken else ()
        return ScoredImages(values, features, images, self.size, broken)

    def to_tensors(self) -> dict[str, Tensor]:
        """As named tensors, for the cache."""
        tensors = {f"values/{name}": tensor for name, tensor in self.values.items()}
        tensors |= {f"features/{name}": tensor for name, tensor in self.features.items()}
        if self.broken:
            text = json.dumps(self.broken).encode()
            tensors["broken"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return {**tensors, "images": self.images, "size": torch.tensor(self.size)}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> ScoredImages:
        """What `to_tensors` was given."""
        parts: dict[str, dict[str, Tensor]] = {"values": {}, "features": {}}
        for name, tensor in tensors.items():
            kind, slash, rest = name.partition("/")
            if slash:
                parts[kind][rest] = tensor
        broken = json.loads(bytes(tensors["broken"].tolist())) if "broken" in tensors else ()
        return ScoredImages(
            parts["values"], parts["features"], tensors["images"], int(tensors["size"]), tuple(broken)
        )


def joined(parts: Sequence[ScoredImages]) -> ScoredImages:
    """Sets of images as one."""
    if len(parts) == 1:
        return parts[0]
    values = {name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values}
    features = {name: torch.cat([part.features[name] for part in parts]) for name in parts[0].features}
    images = torch.cat([part.images for part in parts])
    broken: tuple[str, ...] = ()
    if any(part.broken for part in parts):
        broken = tuple(reason for part in parts for reason in part.broken or ("",) * len(part))
    return ScoredImages(values, features, images, parts[0].size, broken)


@dataclass(frozen=True)
class Reference:
    """What distribution metrics compare with, and where the dense pipeline stands to it.

    Attributes:
        gaussian: Mean and covariance of the features.
        features: Network -> (m, d) features; empty for saved statistics.
        dense: Metric -> the dense pipeline's estimate, row by row the images of the rung.
    """

    gaussian: frechet.Gaussian
    features: Mapping[str, Tensor]
    dense: Mapping[str, Estimate]


class ImageScorer:
    """The networks and functions of a study, loaded.

    Args:
        study: Whose `metrics` and `constraints` say what is measured.
        device: Where the networks run.

    Attributes:
        device: See above.
        measured: The metrics, custom ones left out.
        compares_images: Whether a metric needs the dense pipeline's images beside the pruned one's.

    Raises:
        RaysenseError: A network, a function or a reference is unknown or cannot be had.
    """

    def __init__(self, study: Study, device: str = "cpu") -> None:
        clip = study.metrics.clip
        model = clip.model
        if model == BUNDLED:
            model = f"local-dir:{files('raysense.bundled') / 'scorer'}"
        self.device = device
        self.measured = study.measured()
        self._clip = ClipFeatures(model, clip.pretrained, device)
        self._features = extractor(study.metrics.frechet.extractor, device)
        self._lpips = Lpips(device) if "lpips" in self.measured else None
        self._own = study.metrics.own
        for name, own in self._own.items():
            field = f"metrics.custom.{name}"
            refuse_other_facts(own.path, field, higher_is_better=own.up, of_set=own.of_set)
        self._custom = {
            name: custom_metric(own.path, f"metrics.custom.{name}")
            for name, own in self._own.items()
            if not own.of_set
        }
        self._of_set = {
            name: set_metric(own.path, f"metrics.custom.{name}")
            for name, own in self._own.items()
            if own.of_set
        }
        self._texts: dict[str, Tensor] = {}
        self.external = study.metrics.reference
        if self.external.path is not None:
            references.check(Path(self.external.path))
        self.compares_images = bool(self._custom) or self._lpips is not None or "ssim" in self.measured

    def score(self, images: Tensor, prompts: Sequence[Prompt], dense: Tensor | None) -> ScoredImages:
        """Extract all features of a batch of images, once for all metrics.

        Args:
            images: Float32 (n, 3, h, w), meant to lie in [0, 1].
            prompts: One an image.
            dense: The dense pipeline's images of the same prompts and noise, uint8; None where these are they, which
                are kept.
        """
        collapsed = why_collapsed(images)
        size = images.shape[-1]
        images = images.nan_to_num(0.0).clamp(0, 1)
        features = self.extract(images)
        texts = self._encoded([prompt.text for prompt in prompts])
        values = {"clip_score": clip_scores(features["clip"], texts)}
        kept = torch.empty(0, dtype=torch.uint8)
        if self.compares_images:
            # The 8 bits that every extractor sees; the dense images are remembered as such.
            seen = as_bytes(images)
            kept = seen if dense is None else kept
            rounded = seen.float() / 255
            other = rounded if dense is None else dense.float() / 255
            if "ssim" in self.measured:
                values["ssim"] = ssim(rounded, other)
            if self._lpips is not None:
                values["lpips"] = self._lpips(rounded, other)
            for name, metric in self._custom.items():
                try:
                    scores = torch.from_numpy(metric(rounded, [prompt.text for prompt in prompts], other))
                except RaysenseError:
                    if not collapsed:
                        raise
                    scores = torch.full((len(images),), torch.nan, dtype=torch.float64)
                values[name] = scores
        return ScoredImages(values, features, kept, size, (collapsed,) * len(images) if collapsed else ())

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        """Features of float (n, 3, h, w) images in [0, 1], by network."""
        return {"clip": self._clip.images(images), "frechet": self._features.images(images)}

    def truncated(self, prompts: Sequence[str]) -> list[str]:
        """The prompts of which the CLIP model reads only the beginning."""
        return self._clip.truncated(prompts)

    def external_features(self, size: int) -> dict[str, Tensor]:
        """Features of the study's own reference images, cropped and resized to the size of sampled ones."""
        assert self.external.path is not None
        path, limit = Path(self.external.path), self.external.limit
        features = {"frechet": references.reference_features(path, self._features, size, limit)}
        if "cmmd" in self.measured:
            features["clip"] = references.reference_features(path, self._clip, size, limit)
        return features

    def saved_reference(self) -> frechet.Gaussian:
        """The study's saved statistics."""
        assert self.external.path is not None
        return frechet.load(Path(self.external.path), self._features.name)

    @property
    def identity(self) -> list[str]:
        """What the features of an image depend on, beside the image."""
        return [self._clip.name, self._features.name]

    @cached_property
    def contents(self) -> dict[str, str]:
        """Network -> its name and a hash of its weights: what features depend on, beside the images."""
        networks = {"clip": self._clip, "features": self._features, "lpips": self._lpips}
        return {
            name: f"{network.name} {weights_hash(network)}"
            for name, network in networks.items()
            if network is not None
        }

    def estimate(
        self, metric: str, images: ScoredImages, features: Mapping[str, Tensor], gaussian: frechet.Gaussian
    ) -> Estimate:
        """One of `DISTANCES` of a set of images to a reference."""
        if metric == "frechet":
            return frechet.estimate(images.features["frechet"], gaussian)
        if metric == "kid":
            return mmd.estimate(kid.statistics(images.features["frechet"], features["frechet"]))
        return mmd.estimate(cmmd.statistics(images.features["clip"], features["clip"]), cmmd.SCALE)

    def compare(
        self, prompts: Sequence[Prompt], pruned: ScoredImages, dense: ScoredImages, reference: Reference
    ) -> tuple[dict[str, Measure], dict[str, Tensor]]:
        """Measures with their intervals, and the values of each image.

        Args:
            prompts: One an image.
            pruned: The pruned pipeline's images.
            dense: The dense pipeline's, row by row the same prompts and noise.
            reference: What distributions are compared with.
        """
        ids = [prompt.id for prompt in prompts]
        network, clip = self._features.name, self._clip.name
        measures: dict[str, Measure] = {}
        undefined = pruned.undefined
        values = {name: value for name, value in pruned.values.items() if name not in undefined}
        means = {"clip_score": clip, **{name: self._own[name].path for name in self._custom}}
        # Raw features share a large part that makes any two images look alike. The reference's mean is the same
        # for every rung; photographs lie elsewhere, so there the dense images' own mean has to do.
        external = self.external.path is not None
        origin = (dense.features["frechet"] if external else reference.features["frechet"]).mean(dim=0)
        values["closeness"] = feature_closeness(pruned.features["frechet"], dense.features["frechet"], origin)
        for name, extractor_name in means.items():
            if name in values:
                measures[name] = measure(mean_interval(values[name].numpy(), ids), extractor_name)
                up = name not in self._own or self._own[name].up
                better, worse = (dense.values, values) if up else (values, dense.values)
                loss = name + ("_drop" if up else "_rise")
                measures[loss] = measure(
                    paired_drop(better[name].numpy(), worse[name].numpy(), ids), extractor_name
                )
                values[loss] = better[name] - worse[name]
        for name in DISTANCES:
            if name in self.measured:
                after = self.estimate(name, pruned, reference.features, reference.gaussian)
                judge = clip if name == "cmmd" else network
                measures[name] = measure(influence_interval(after, ids), judge)
                measures[f"{name}_rise"] = measure(influence_rise(after, reference.dense[name], ids), judge)
        if {"precision", "recall"} & set(self.measured):
            found = precision_recall_intervals(
                dense.features["frechet"], pruned.features["frechet"], reference.features["frechet"], ids
            )
            measures |= {name: measure(interval, network) for name, interval in found.items()}
        measures |= self._own_of_set(pruned, dense, reference, ids)
        for name, judge in (("closeness", network), ("ssim", "ssim 11x11"), ("lpips", Lpips.name)):
            if name in values:
                measures[name] = measure(mean_interval(values[name].numpy(), ids), judge)
        return measures, values

    def _own_of_set(
        self, pruned: ScoredImages, dense: ScoredImages, reference: Reference, ids: Sequence[str]
    ) -> dict[str, Measure]:
        """The study's own metrics of the set; none that has no value for a set that is broken anyway."""
        measures: dict[str, Measure] = {}
        for name, metric in self._of_set.items():
            up = self._own[name].up
            try:
                value, loss = set_intervals(
                    metric,
                    pruned.features["frechet"],
                    dense.features["frechet"],
                    reference.features["frechet"],  # a study with saved statistics is refused
                    ids,
                    higher_is_better=up,
                )
            except RaysenseError:
                if not pruned.collapsed:
                    raise
                continue
            judge = f"{self._own[name].path} {self._features.name}"
            measures[name] = measure(value, judge)
            measures[name + ("_drop" if up else "_rise")] = measure(loss, judge)
        return measures

    def _encoded(self, prompts: Sequence[str]) -> Tensor:
        """Features of prompts; each is encoded once and alone, so that no batch decides its last bits."""
        for prompt in prompts:
            if prompt not in self._texts:
                self._texts[prompt] = self._clip.texts([prompt])[0]
        return torch.stack([self._texts[prompt] for prompt in prompts])


def weights_hash(network: object) -> str:
    """A hash of all weights in the modules that an object is or holds; of nothing, if it holds none."""
    held = {"": network} if isinstance(network, torch.nn.Module) else vars(network)
    digest = hashlib.sha256()
    for place, module in sorted(held.items()):
        if not isinstance(module, torch.nn.Module):
            continue
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{place}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            if isinstance(tensor, Tensor):
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:DIGITS]


def measure(interval: Interval, extractor_name: str, n: int | None = None) -> Measure:
    """An interval as a measure."""
    return Measure(interval.value, interval.low, interval.high, n or interval.n, extractor_name)
