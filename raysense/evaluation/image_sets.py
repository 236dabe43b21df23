"""The sets of images of a study, as features: from memory, from the cache, or sampled now, shard by shard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.evaluation.cache import TensorCache, TensorMemory
from raysense.evaluation.identity import Identity
from raysense.evaluation.live_pipeline import LivePipeline
from raysense.evaluation.sampler import Pairs, Sampler, pairs_of, reference_pairs
from raysense.evaluation.scoring import ImageScorer, Reference, ScoredImages, joined
from raysense.evaluation.shards import is_kept, ranges_of, reference_rung
from raysense.hashing import content_key
from raysense.metrics import gaussians
from raysense.metrics.intervals import Estimate
from raysense.metrics.spec import FEATURES
from raysense.records import Shard


class ImageSets:
    """Dense, reference and pruned images of every rung.

    Args:
        live: The pipeline.
        sampler: Samples its images.
        keys: The study's.
        cache: Where dense sets, and shards of pruned ones, are kept for all workers.
        memory: In front of it, for what is not images.
        scorer: Gives the networks that score images.
    """

    def __init__(
        self,
        live: LivePipeline,
        sampler: Sampler,
        keys: Identity,
        cache: TensorCache,
        memory: TensorMemory,
        scorer: Callable[[], ImageScorer],
    ) -> None:
        self._live, self._sampler, self._keys = live, sampler, keys
        self._cache, self._memory, self._scorer = cache, memory, scorer
        self._study = live.study
        self._dense_sets: dict[str, ScoredImages] = {}
        self._references: dict[tuple[str, int], Reference] = {}

    def pairs(self, rung: str, replicate: int) -> Pairs:
        """The prompts and seeds of a rung's images."""
        return pairs_of(self._study, self._live.prompts, rung, replicate)

    def dense(self, rung: str, replicate: int) -> ScoredImages:
        """The dense pipeline on a rung's prompts and seeds; sampled once a study."""
        return self._sampled_once(
            "dense", self.pairs(rung, replicate), ranges_of(self._study, rung), rung, replicate
        )

    def pruned(self, allocation: Allocation, rung: str, replicate: int) -> ScoredImages:
        """The pruned pipeline on a rung's prompts and seeds; what was sampled in shards comes from the cache."""
        if not allocation:
            return self.dense(rung, replicate)
        shards = ranges_of(self._study, rung)
        return joined([self._pruned_shard(allocation, rung, replicate, chosen) for chosen in shards])

    def sample_shard(self, allocation: Allocation, shard: Shard, replicate: int) -> None:
        """Sample a shard of a set of images into the cache."""
        chosen = ranges_of(self._study, shard.rung, shard.reference)[shard.number]
        if shard.reference:
            self._dense_shard("reference", self._reference_pairs(shard.rung), chosen, "", 0)
        elif not allocation:
            self._dense_shard("dense", self.pairs(shard.rung, replicate), chosen, shard.rung, replicate)
        else:
            self._pruned_shard(allocation, shard.rung, replicate, chosen)

    def reference(self, rung: str, replicate: int, dense: ScoredImages) -> Reference:
        """What distribution metrics compare with, and the dense pipeline's own distances to it."""
        if (rung, replicate) not in self._references:
            self._references[rung, replicate] = self._make_reference(rung, replicate, dense)
        return self._references[rung, replicate]

    # --- references -----------------------------------------------------------------------------------

    def _reference_pairs(self, rung: str) -> Pairs:
        return reference_pairs(self._study, self._live.prompts, rung)

    def _dense_reference(self, rung: str) -> ScoredImages:
        """What distributions are compared with, unless the study brings images of its own."""
        shards = ranges_of(self._study, reference_rung(rung), reference=True)
        return self._sampled_once("reference", self._reference_pairs(rung), shards)

    def _make_reference(self, rung: str, replicate: int, dense: ScoredImages) -> Reference:
        scorer, external = self._scorer(), self._scorer().external
        features: Mapping[str, Tensor] = {}
        prompt_ids = None
        if external.is_saved:
            gaussian = scorer.saved_reference()
        else:
            if external.path is None:
                features = self._dense_reference(rung).features
                prompt_ids = [prompt.id for prompt in self._reference_pairs(rung)[0]]
            else:
                features = self._memory.remembered(
                    self._keys.external(dense.size), lambda: scorer.external_features(dense.size)
                )
            gaussian = gaussians.statistics(features[FEATURES])
        metrics = sorted(scorer.distances)
        reference = Reference(gaussian, features, {}, prompt_ids)

        def estimate() -> dict[str, Tensor]:
            ids = [prompt.id for prompt in self.pairs(rung, replicate)[0]]
            return _as_tensors({m: scorer.estimate(m, dense, ids, reference) for m in metrics})

        key = content_key("distances", self._keys.signature, rung, replicate, metrics)
        stored = self._memory.remembered(key, estimate)
        before = {metric: _from_tensors(metric, stored) for metric in metrics}
        return replace(reference, dense=before)

    # --- dense and pruned sets ------------------------------------------------------------------------

    def _sampled_once(
        self, what: str, pairs: Pairs, shards: Sequence[range], rung: str = "", replicate: int = 0
    ) -> ScoredImages:
        """A set of dense images from memory, from the cache, or made now, shard by shard."""
        key = self._dense_key(what, pairs)
        if key not in self._dense_sets:
            self._dense_sets[key] = joined(
                [self._dense_shard(what, pairs, chosen, rung, replicate) for chosen in shards]
            )
        return self._dense_sets[key]

    def _dense_shard(self, what: str, pairs: Pairs, chosen: range, rung: str, replicate: int) -> ScoredImages:
        def sample() -> ScoredImages:
            self._live.stand_at(Allocation())
            scored = self._sampler.scored(pairs, chosen, None, rung, replicate)
            if scored.collapsed:
                raise RaysenseError(
                    f"`pipeline`: the dense pipeline's own images are broken ({scored.collapsed}); check `dtype`, "
                    "`sampling.steps` and the weights"
                )
            return scored

        return self._cached(self._dense_key(what, _some(pairs, chosen)), sample)

    def _pruned_shard(self, allocation: Allocation, rung: str, replicate: int, chosen: range) -> ScoredImages:
        """Some of a rung's images."""
        pairs, dense = self.pairs(rung, replicate), self.dense(rung, replicate)

        def sample() -> ScoredImages:
            self._live.stand_at(allocation)
            return self._sampler.scored(pairs, chosen, dense, rung, replicate)

        if not is_kept(self._study, rung):
            return sample()
        some = _some(pairs, chosen)
        live = self._live
        other = [live.method, live.steps] if live.method or live.steps else []
        key = content_key(
            "shard", self._keys.signature, allocation.key, [p.id for p in some[0]], some[1], *other
        )
        return self._cached(key, sample)

    def _cached(self, key: str, sample: Callable[[], ScoredImages]) -> ScoredImages:
        """Some images' features from the cache, or sampled now and put there."""
        stored = self._cache.get(key)
        if stored is not None:
            return ScoredImages.from_tensors(stored)
        scored = sample()
        self._cache.put(key, scored.to_tensors())
        return scored

    def _dense_key(self, what: str, pairs: Pairs) -> str:
        # Not under the study's signature: studies of one pipeline that share a folder share its dense images.
        return content_key(what, self._keys.dense, [(p.id, p.text) for p in pairs[0]], pairs[1])


def _some(pairs: Pairs, chosen: range) -> Pairs:
    return pairs[0][chosen.start : chosen.stop], pairs[1][chosen.start : chosen.stop]


_PARTS = tuple(field.name for field in fields(Estimate) if field.name != "value")


def _as_tensors(estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
    """Metric -> estimate as named tensors, for the cache."""
    tensors = {}
    for metric, estimate in estimates.items():
        tensors[f"{metric}/value"] = torch.tensor(estimate.value, dtype=torch.float64)
        for part in _PARTS:
            if (values := getattr(estimate, part)) is not None:
                tensors[f"{metric}/{part}"] = torch.from_numpy(values)
    return tensors


def _from_tensors(metric: str, stored: Mapping[str, Tensor]) -> Estimate:
    """One of the estimates that `_as_tensors` was given."""
    parts = {part: stored[f"{metric}/{part}"].numpy() for part in _PARTS if f"{metric}/{part}" in stored}
    return Estimate(float(stored[f"{metric}/value"]), **parts)
