"""Real images of both bundled pipelines as a population: studies draw prompts from it, with a reference of their own.

Painted once: the first held-out and search prompts, dense under one seed and under more for references, and pruned by
one ratio at several sparsities; kept are the features. A study draws prompts with replacement, so that they are
independent draws from a population whose every mean is known, and for each prompt two of its reference seeds: a
reference drawn anew. What is measured of a draw, the product's own `ImageScorer.compare` measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raysense.allocation import Allocation
from raysense.evaluation.evaluator import Evaluator
from raysense.evaluation.scoring import ImageScorer, Reference, ScoredImages, joined
from raysense.evaluation.shards import REFERENCE_SEEDS
from raysense.metrics import gaussians
from raysense.metrics.spec import FEATURES
from raysense.prompts.sets import Prompt
from raysense.records import Measure
from raysense.study import Study, load

BEDS = {"bundled": ("text_encoder", "unet"), "bundled-transformer": ("text_encoder", "transformer")}
"""Pipeline -> its components that are pruned."""

SPARSITIES = (0.15, 0.25, 0.3, 0.35, 0.45)
SEEDS = REFERENCE_SEEDS + 1
"""Dense images of a prompt that references are drawn from."""

FIRST_SEED = 7_000_000


@dataclass(frozen=True)
class Size:
    """How much is painted.

    Attributes:
        prompts: Of the population.
        steps: Denoising steps.
        sparsities: Of the pruned pipelines.
    """

    prompts: int = 240
    steps: int = 4
    sparsities: tuple[float, ...] = SPARSITIES


QUICK = Size(24, 2, (0.3,))


class Pool:
    """The population.

    Args:
        bed: One of `BEDS`.
        size: How much is painted.
        folder: Where it is kept.

    Attributes:
        levels: Sparsities of the pruned pipelines, ascending.
    """

    def __init__(self, bed: str, size: Size, folder: Path) -> None:
        self.levels = size.sparsities
        study = load(
            overrides=[
                f"pipeline={bed}",
                f"prune.components=[{', '.join(BEDS[bed])}]",
                f"sampling.steps={size.steps}",
                "constraints={clip_score: {max_drop: 0.01}, kid: {max_rise: 0.03}}",
            ]
        )
        self.scorer = ImageScorer(study)
        # The Fréchet distance of 1,280 features takes a second each time, and nothing here bounds it.
        self.scorer.distances = {"kid": self.scorer.distances["kid"]}
        name = f"pool-{bed}-{size.prompts}-{size.steps}-{'-'.join(f'{s:g}' for s in size.sparsities)}.pt"
        file = folder / name
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(painted(study, size, str(folder)), file)
        stored: Mapping[str, Mapping[str, Tensor]] = torch.load(file)
        sets = {what: ScoredImages.from_tensors(tensors) for what, tensors in stored.items()}
        self._dense = sets["dense"]
        self._references = [sets[f"reference {number}"] for number in range(SEEDS)]
        self._pruned = [sets[f"{sparsity:g}"] for sparsity in size.sparsities]
        self.prompts = len(self._dense)

    def drawn(self, rng: np.random.Generator, count: int) -> Drawn:
        """So many prompts, drawn independently, each with reference images of its own."""
        chosen = rng.integers(self.prompts, size=count).tolist()
        seeds = np.stack([rng.permutation(SEEDS)[:REFERENCE_SEEDS] for _ in range(count)])
        references = [
            joined([self._references[int(s)].rows([i]) for i, s in zip(chosen, seeds[:, place], strict=True)])
            for place in range(REFERENCE_SEEDS)
        ]
        return Drawn(self, chosen, joined(references))

    def mean_drop(self, level: int) -> float:
        """The population's drop of the CLIP score."""
        values = self._dense.values["clip_score"] - self._pruned[level].values["clip_score"]
        return float(values.mean())

    def rows(self, level: int | None, chosen: Sequence[int]) -> ScoredImages:
        """Images of some prompts; dense without a level."""
        return (self._dense if level is None else self._pruned[level]).rows(chosen)


class Drawn:
    """A draw of prompts with its dense images and its reference: what a rung's evaluations of one study share."""

    def __init__(self, pool: Pool, chosen: Sequence[int], references: ScoredImages) -> None:
        self._pool, self._chosen = pool, list(chosen)
        # Two draws of one prompt are two draws: an independent sample may hold a text twice.
        self._prompts = [Prompt(str(place), "") for place in range(len(self._chosen))]
        self._references = references
        self._parts: dict[int, tuple[ScoredImages, Reference]] = {}
        self._known: dict[tuple[int, int], dict[str, Measure]] = {}

    def measures(self, level: int, count: int | None = None) -> dict[str, Measure]:
        """What an evaluator would say of one of the pruned pipelines on the first `count` of the prompts."""
        n = len(self._chosen) if count is None else count
        if (level, n) not in self._known:
            dense, reference = self._compared_with(n)
            pruned = self._pool.rows(level, self._chosen[:n])
            self._known[level, n] = self._pool.scorer.compare(self._prompts[:n], pruned, dense, reference)[0]
        return self._known[level, n]

    def _compared_with(self, n: int) -> tuple[ScoredImages, Reference]:
        """The dense images and the reference, of all prompts of the draw as a rung's is of its largest."""
        if n not in self._parts:
            dense = self._pool.rows(None, self._chosen[:n])
            features = self._references.features
            ids = [prompt.id for prompt in self._prompts]
            reference = Reference(
                gaussians.statistics(features[FEATURES]), features, {}, ids * REFERENCE_SEEDS
            )
            own = self._pool.scorer.estimate("kid", dense, ids[:n], reference)
            self._parts[n] = (
                dense,
                Reference(reference.gaussian, features, {"kid": own}, reference.prompt_ids),
            )
        return self._parts[n]


def painted(study: Study, size: Size, folder: str) -> dict[str, dict[str, Tensor]]:
    """All sets of images, as features."""
    evaluator = Evaluator(study, folder)
    half = size.prompts // 2
    prompts = [*evaluator.prompts.validation[:half], *evaluator.prompts.search[: size.prompts - half]]

    def sampled(allocation: Allocation, seed: int) -> dict[str, Tensor]:
        evaluator.live.stand_at(allocation)
        pairs = prompts, [seed] * len(prompts)
        return evaluator.sampler.scored(pairs, range(len(prompts)), None, "", 0).to_tensors()

    found = {"dense": sampled(Allocation(), FIRST_SEED)}
    for number in range(SEEDS):
        found[f"reference {number}"] = sampled(Allocation(), FIRST_SEED + 1 + number)
    for sparsity in size.sparsities:
        found[f"{sparsity:g}"] = sampled(evaluator.grid.uniform(sparsity), FIRST_SEED)
    return found
