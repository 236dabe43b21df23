"""Scores images: networks and functions that turn them into features, and features into measures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.hashing import DIGITS
from raysense.metrics import gaussians, references
from raysense.metrics.builtin import SPECS, spec_of
from raysense.metrics.collapsed import why_collapsed
from raysense.metrics.custom import Answers, custom_metric, refuse_other_facts, set_intervals, set_metric
from raysense.metrics.features import ClipFeatures, as_bytes, extractor
from raysense.metrics.intervals import (
    Estimate,
    Interval,
    influence_interval,
    influence_rise,
    mean_interval,
    paired_drop,
    prompt_labels,
    reference_labels,
)
from raysense.metrics.spec import CLIP, FEATURES, Distance, How, OfFeatures, OfPixels, OfPrompt, OfSet
from raysense.names import BUNDLED
from raysense.prompts.sets import Prompt
from raysense.records import Measure
from raysense.study import Study

AnyHow = TypeVar("AnyHow", bound=How)


@dataclass(frozen=True)
class ScoredImages:
    """What is kept of a set of images, row by row the same prompts and seeds as every set of its rung.

    Attributes:
        values: Metric -> (n,) float64, one number an image.
        features: Network (``clip``, ``features``) -> (n, d) float32.
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
        return len(self.features[CLIP])

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
        prompt_ids: (m,) the prompt of each image; None where these are the study's own images.
    """

    gaussian: gaussians.Gaussian
    features: Mapping[str, Tensor]
    dense: Mapping[str, Estimate]
    prompt_ids: Sequence[str] | None = None


class ImageScorer:
    """The networks and functions of a study, loaded.

    Args:
        study: Whose `metrics` and `constraints` say what is measured.
        device: Where the networks run.

    Attributes:
        device: See above.
        measured: The metrics, custom ones left out.
        distances: Those of the whole set with an influence an image.
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
        self._features = extractor(study.metrics.features.extractor, device)
        self.distances = self._hows(Distance)
        self._of_prompt = self._hows(OfPrompt)
        self._of_pixels = {name: how.load(device) for name, how in self._hows(OfPixels).items()}
        self._own, self._own_specs = study.metrics.own, study.own_specs
        for name, own in self._own.items():
            field = f"metrics.custom.{name}"
            refuse_other_facts(own.path, field, higher_is_better=own.up, of_set=own.of_set)
        self._custom = {
            name: custom_metric(own.path, f"metrics.custom.{name}")
            for name, own in self._own.items()
            if not own.of_set
        }
        self._of_set = self._hows(OfSet) | {
            name: OfSet(set_metric(own.path, f"metrics.custom.{name}"))
            for name, own in self._own.items()
            if own.of_set
        }
        self._texts: dict[str, Tensor] = {}
        self.external = study.metrics.reference
        if self.external.path is not None:
            references.check(Path(self.external.path), self.external.limit)
        self.compares_images = bool(self._custom or self._of_pixels)

    def _hows(self, kind: type[AnyHow]) -> dict[str, AnyHow]:
        """Those of raysense's own metrics that the study measures, and that are measured in such a way."""
        hows = {name: SPECS[name].how for name in self.measured}
        return {name: how for name, how in hows.items() if isinstance(how, kind)}

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
        values = {name: how.scores(features[CLIP], texts) for name, how in self._of_prompt.items()}
        kept = torch.empty(0, dtype=torch.uint8)
        if self.compares_images:
            # The 8 bits that every extractor sees; the dense images are remembered as such.
            seen = as_bytes(images)
            kept = seen if dense is None else kept
            rounded = seen.float() / 255
            other = rounded if dense is None else dense.float() / 255
            values |= {name: scores(rounded, other) for name, scores in self._of_pixels.items()}
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
        return {CLIP: self._clip.images(images), FEATURES: self._features.images(images)}

    def truncated(self, prompts: Sequence[str]) -> list[str]:
        """The prompts of which the CLIP model reads only the beginning."""
        return self._clip.truncated(prompts)

    def external_features(self, size: int) -> dict[str, Tensor]:
        """Features of the study's own reference images, cropped and resized to the size of sampled ones."""
        assert self.external.path is not None
        path, limit = Path(self.external.path), self.external.limit
        features = {FEATURES: references.reference_features(path, self._features, size, limit)}
        if any(how.network == CLIP for how in self.distances.values()):
            features[CLIP] = references.reference_features(path, self._clip, size, limit)
        return features

    def saved_reference(self) -> gaussians.Gaussian:
        """The study's saved statistics."""
        assert self.external.path is not None
        return gaussians.load(Path(self.external.path), self._features.name)

    @property
    def identity(self) -> list[str]:
        """What the features of an image depend on, beside the image."""
        return [self._clip.name, self._features.name]

    @cached_property
    def contents(self) -> dict[str, str]:
        """Network -> its name and a hash of its weights: what features depend on, beside the images."""
        found: dict[str, tuple[str, object]] = {
            "clip": (self._clip.name, self._clip),
            "features": (self._features.name, self._features),
        }
        for name, how in self._hows(OfPixels).items():
            if how.weights:
                found[name] = (how.extractor, self._of_pixels[name])
        return {name: f"{judge} {weights_hash(network)}" for name, (judge, network) in found.items()}

    @property
    def downloads(self) -> dict[str, str]:
        """Metric -> the weights that it brings beside the two networks, for a person."""
        return {name: how.weights for name, how in self._hows(OfPixels).items() if how.weights}

    def estimate(
        self, metric: str, images: ScoredImages, prompt_ids: Sequence[str], reference: Reference
    ) -> Estimate:
        """One of `distances` of a set of images, of so many prompts, to a reference."""
        how = self.distances[metric]
        theirs = reference.features.get(how.network, torch.empty(0))
        own = prompt_labels(prompt_ids, len(prompt_ids))
        labels = own, reference_labels(prompt_ids, own, reference.prompt_ids, len(theirs))
        return how.estimate(images.features[how.network], theirs, reference.gaussian, labels)

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
        undefined = pruned.undefined
        values = {name: value for name, value in pruned.values.items() if name not in undefined}
        values |= self._against_dense(pruned, dense, reference)
        measures: dict[str, Measure] = {}
        for name, value in list(values.items()):
            spec, judge = spec_of(name, self._own_specs), self._judge(name)
            measures[name] = measure(mean_interval(value.numpy(), ids), judge)
            if spec.relative:
                before = dense.values[name]
                better, worse = (before, value) if spec.higher_is_better else (value, before)
                loss = name + spec.relative
                measures[loss] = measure(paired_drop(better.numpy(), worse.numpy(), ids), judge)
                values[loss] = better - worse
        for name in self.distances:
            after = self.estimate(name, pruned, ids, reference)
            judge = self._judge(name)
            theirs = reference.prompt_ids
            measures[name] = measure(influence_interval(after, ids, reference_ids=theirs), judge)
            rise = influence_rise(after, reference.dense[name], ids, reference_ids=theirs)
            measures[f"{name}_rise"] = measure(rise, judge)
        measures |= self._of_sets(pruned, dense, reference, ids)
        return measures, values

    def _against_dense(
        self, pruned: ScoredImages, dense: ScoredImages, reference: Reference
    ) -> dict[str, Tensor]:
        """What is known an image once the features of both pipelines' images are there."""
        found = {}
        for name, how in self._hows(OfFeatures).items():
            # Raw features share a large part that makes any two images look alike. The reference's mean is the same
            # for every rung; photographs lie elsewhere, so there the dense images' own mean has to do.
            external = self.external.path is not None
            origin = (dense if external else reference).features[how.network].mean(dim=0)
            found[name] = how.scores(pruned.features[how.network], dense.features[how.network], origin)
        return found

    def _judge(self, metric: str) -> str:
        """What stands beside a metric's value as what it was measured by."""
        networks = {CLIP: self._clip.name, FEATURES: self._features.name}
        if metric in self._own:
            path = self._own[metric].path
            return f"{path} {networks[FEATURES]}" if self._own[metric].of_set else path
        how = SPECS[metric].how
        if isinstance(how, OfPixels):
            return how.extractor
        return networks[CLIP if isinstance(how, OfPrompt) or how is None else how.network]

    def _of_sets(
        self, pruned: ScoredImages, dense: ScoredImages, reference: Reference, ids: Sequence[str]
    ) -> dict[str, Measure]:
        """Metrics of the set with a jackknife's interval; none that has no value for a set that is broken anyway."""
        measures: dict[str, Measure] = {}
        known: dict[object, Answers] = {}
        for name, how in self._of_set.items():
            spec = spec_of(name, self._own_specs)
            try:
                value, loss = set_intervals(
                    how,
                    pruned.features[how.network],
                    dense.features[how.network],
                    reference.features[how.network],  # a study with saved statistics is refused
                    ids,
                    higher_is_better=spec.higher_is_better,
                    known=known.setdefault((how.value, how.network), {}),
                )
            except RaysenseError:
                if not pruned.collapsed:
                    raise
                continue
            measures[name] = measure(value, self._judge(name))
            measures[name + spec.relative] = measure(loss, self._judge(name))
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
    return Measure(interval.value, interval.ci_low, interval.ci_high, n or interval.n, extractor_name)
