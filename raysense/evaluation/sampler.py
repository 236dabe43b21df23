"""Samples images of the pipeline as it stands, batch by batch, and has them scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.evaluation.footprint import measured_footprint
from raysense.evaluation.live_pipeline import LivePipeline
from raysense.evaluation.scoring import ImageScorer, ScoredImages, joined
from raysense.evaluation.shards import REFERENCE_SEEDS, reference_rung
from raysense.pipelines.sample import call_pipeline, first_seed, refuse_other_scale
from raysense.prompts.sets import Prompt, PromptSets
from raysense.study import ImageRung, Study

Pairs = tuple[list[Prompt], list[int]]
"""Prompts and, for each, a seed."""

Work = TypeVar("Work")

_FIRST_REFERENCE_SEED = 1_000_000
_SEEDS_A_REPLICATE = 1_000


def seed_of(study: Study, replicate: int, number: int) -> int:
    """Seed number `number` of a replicate."""
    return first_seed(study.seed) + replicate * _SEEDS_A_REPLICATE + number


def image_rung(study: Study, name: str) -> ImageRung:
    """A rung that samples images.

    Raises:
        RaysenseError: There is none of this name.
    """
    rung = getattr(study.rungs, name, None)
    if not isinstance(rung, ImageRung):
        raise RaysenseError(
            f"`rungs` has no rung {name!r}; there are layer, probe, preview, score and validation"
        )
    return rung


def pairs_of(study: Study, prompts: PromptSets, name: str, replicate: int) -> Pairs:
    """The prompts and seeds of a rung's images."""
    rung = image_rung(study, name)
    chosen = prompts.of(name, rung.prompts, rung.left_out)
    # Seed by seed, so that a rung with fewer seeds is a prefix of one with more.
    seeds = [seed_of(study, replicate, number) for number in range(rung.seeds) for _ in chosen]
    return list(chosen) * rung.seeds, seeds


def reference_pairs(study: Study, prompts: PromptSets, name: str) -> Pairs:
    """Those of the dense images that a rung's distributions are compared with: seeds that no evaluation uses."""
    largest = reference_rung(name)
    of_largest = image_rung(study, largest)
    chosen = prompts.of(largest, of_largest.prompts, of_largest.left_out)
    seeds = [
        seed_of(study, 0, _FIRST_REFERENCE_SEED + number) for number in range(REFERENCE_SEEDS) for _ in chosen
    ]
    return list(chosen) * REFERENCE_SEEDS, seeds


class Sampler:
    """Samples, and has what was sampled scored.

    Args:
        live: The pipeline.
        scorer: Gives the networks that score images; asked when the first image is there.
    """

    def __init__(self, live: LivePipeline, scorer: Callable[[], ImageScorer]) -> None:
        self._live, self._scorer = live, scorer
        self._sizes_seen: set[int] = set()
        self.forget()

    def forget(self) -> None:
        """Drop what was kept of the last climb, so that the next evaluation samples all of its images."""
        self._seen: tuple[object, dict[tuple[str, int], tuple[ScoredImages, int]]] = (None, {})

    def images(self, pairs: Pairs) -> Tensor:
        """Float32 (n, 3, height, width) in [0, 1], on the CPU."""
        chosen = range(len(pairs[0]))
        return torch.cat([images for _, images in self._batches(pairs, chosen, lambda images, _: images)])

    def scored(
        self, pairs: Pairs, wanted: Sequence[int], dense: ScoredImages | None, rung: str, replicate: int
    ) -> ScoredImages:
        """Sample the wanted ones of some pairs, which ascend, and extract features batch by batch.

        Images of the preview rung are scored apart from the others, in batches of their own: a candidate that
        climbs from preview to score is not sampled twice, and what it gets there is the same to the bit as
        without the preview.

        Args:
            pairs: Prompts and seeds.
            wanted: Which of them.
            dense: The dense pipeline's images of all pairs; None where these are they.
            rung: Whose images; empty for a reference's.
            replicate: Which set of seeds.
        """
        prompts, seeds = pairs
        names = [(prompt.id, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        first = self._previewed(replicate) if rung in ("preview", "score") else set()
        seen = self._seen_now()
        parts: list[ScoredImages] = []
        order: list[int] = []

        def score(images: Tensor, indices: Sequence[int]) -> ScoredImages:
            against = None if dense is None or not len(dense.images) else dense.images[list(indices)]
            return self._scorer().score(images, [prompts[i] for i in indices], against)

        for chosen in (
            [i for i in wanted if names[i] in first],
            [i for i in wanted if names[i] not in first],
        ):
            if chosen and all(names[i] in seen for i in chosen):
                parts += [seen[names[i]][0].rows([seen[names[i]][1]]) for i in chosen]
                order += chosen
                continue
            for indices, scored in self._batches(pairs, chosen, score):
                parts.append(scored)
                order += indices
                if first and names[indices[0]] in first:
                    seen.update({names[i]: (scored, row) for row, i in enumerate(indices)})
        places = sorted(range(len(order)), key=order.__getitem__)
        return joined(parts).rows(places)

    def _previewed(self, replicate: int) -> set[tuple[str, int]]:
        """The preview rung's images, by prompt and seed."""
        pairs = pairs_of(self._live.study, self._live.prompts, "preview", replicate)
        return {(prompt.id, seed) for prompt, seed in zip(*pairs, strict=True)}

    def _seen_now(self) -> dict[tuple[str, int], tuple[ScoredImages, int]]:
        """What was kept of the pipeline as it stands."""
        current = self._live.pruned_as
        if self._seen[0] != current:
            self._seen = (current, {})
        return self._seen[1]

    def _footprint(self, count: int) -> AbstractContextManager[None]:
        """Measures what a batch takes of the GPU, the first time that one of this size is sampled."""
        live = self._live
        if count in self._sizes_seen:
            return nullcontext()
        self._sizes_seen.add(count)
        return measured_footprint(live.disk, live.study, count)

    def _batches(
        self, pairs: Pairs, chosen: Sequence[int], work: Callable[[Tensor, Sequence[int]], Work]
    ) -> Iterator[tuple[list[int], Work]]:
        """Sample the chosen pairs a batch at a time and work on the images; what does not fit is halved for good."""
        live, (prompts, seeds) = self._live, pairs
        start = 0
        while start < len(chosen):
            indices = list(chosen[start : start + live.batch])
            try:
                with self._footprint(len(indices)):
                    with live.stepping():
                        images = call_pipeline(
                            live.pipeline,
                            [prompts[i] for i in indices],
                            [seeds[i] for i in indices],
                            live.study.sampling,
                        )
                    if live.has_moved():
                        continue  # sampled with weights that nobody asked for
                    if not live.standing:
                        refuse_other_scale(live.pipeline, images)
                    done = work(images, indices)
            except torch.OutOfMemoryError:
                live.halve_batch()
                continue
            live.sampled += len(indices)
            yield indices, done
            start += len(indices)
