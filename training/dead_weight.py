"""Weight that does nothing: how much of a pipeline stands at 95 % and is not missed.

A test bed with much of it flatters every search: who finds the dead part wins by that alone. Two questions, asked of
the images: does a large block stand at 95 % alone, and how much do the layers that matter least hold together?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline

from raysense.allocation import Allocation, LevelGrid, block_of
from raysense.metrics.builtin.closeness import feature_closeness
from raysense.metrics.features import FeatureExtractor
from raysense.pipelines.load import modules_of
from raysense.pipelines.sample import call_pipeline
from raysense.prompts.sets import Prompt
from raysense.pruning.layers import Inventory, take_inventory
from raysense.pruning.masks import Masker
from raysense.study import Sampling

SPARSITY = 0.95
HARMLESS = 0.03
"""A loss of closeness to the dense images below this goes unseen."""
LARGE_BLOCK = 0.03
"""The share of its component's prunable weights from which a block must be missed."""
MOST_TOGETHER = 0.15
"""What the layers that matter least may hold of all prunable weights."""


@dataclass(frozen=True)
class DeadWeight:
    """What stands at 95 %.

    Attributes:
        images: Images behind each loss.
        blocks: Large block -> the loss of closeness when it alone stands at 95 %.
        shares: Large block -> its share of its component's prunable weights.
        harmless: The share of all prunable weights in layers that are each harmless at 95 % alone.
        harmless_loss: What all of these cost together.
        together: The largest share that stands at 95 % together, harmlessly: layers in the order of what each costs
            alone.
        together_loss: The loss of closeness of exactly these.
        layers: How many layers these are.
        of_layers: How many there are.
    """

    images: int
    blocks: dict[str, float]
    shares: dict[str, float]
    harmless: float
    harmless_loss: float
    together: float
    together_loss: float
    layers: int
    of_layers: int

    @property
    def dead_blocks(self) -> list[str]:
        """Large blocks that are not missed."""
        return [block for block, loss in self.blocks.items() if loss < HARMLESS]

    @property
    def passes(self) -> bool:
        """Whether every large block is missed and the rest holds little."""
        return not self.dead_blocks and self.together <= MOST_TOGETHER

    def as_json(self) -> dict[str, Any]:
        """All of it, with the verdict."""
        return asdict(self) | {"dead_blocks": self.dead_blocks, "passes": self.passes}


def dead_weight(
    pipeline: DiffusionPipeline,
    components: Sequence[str],
    prompts: Sequence[Prompt],
    network: FeatureExtractor,
    sampling: Sampling,
) -> DeadWeight:
    """Measure a pipeline's dead weight; it is dense again afterwards.

    Args:
        pipeline: Dense.
        components: Which of its components are pruned.
        prompts: One image each; 16 tell 0.03 well, since pruned and dense images share their noise.
        network: Whose features the closeness compares.
        sampling: How images are made.
    """
    inventory = take_inventory(pipeline.components, select=list(components))
    grid = LevelGrid(inventory.sizes, SPARSITY)
    masker = Masker(modules_of(pipeline), inventory, grid)

    def features() -> torch.Tensor:
        return network.images(call_pipeline(pipeline, prompts, [0] * len(prompts), sampling))

    def prune(addresses: Sequence[str]) -> None:
        masker.apply(Allocation({address: grid.top(address) for address in addresses}))

    with torch.inference_mode():
        dense = features()

        def loss(addresses: Sequence[str]) -> float:
            prune(addresses)
            return 1 - float(feature_closeness(features(), dense).mean())

        blocks, shares = _large_blocks(inventory, grid)
        losses = {block: loss(addresses) for block, addresses in blocks.items()}

        alone = {address: loss([address]) for address in grid.addresses}
        ranked = sorted(alone, key=alone.__getitem__)
        harmless = [address for address in ranked if alone[address] < HARMLESS]
        harmless_loss = loss(harmless)
        count, lost = _longest_harmless(ranked, loss)
        masker.restore()
    return DeadWeight(
        images=len(prompts),
        blocks=losses,
        shares=shares,
        harmless=sum(grid.weights(address) for address in harmless) / grid.n,
        harmless_loss=harmless_loss,
        together=sum(grid.weights(address) for address in ranked[:count]) / grid.n,
        together_loss=lost,
        layers=count,
        of_layers=len(ranked),
    )


def _large_blocks(inventory: Inventory, grid: LevelGrid) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Block -> the layers that move, and its share of its component, for blocks of 3 % and more."""
    of_component: dict[str, int] = {}
    blocks: dict[str, list[str]] = {}
    for layer in inventory.layers:
        of_component[layer.component] = of_component.get(layer.component, 0) + layer.n
    for address in grid.addresses:
        blocks.setdefault(block_of(address), []).append(address)
    shares = {
        block: sum(grid.weights(address) for address in addresses) / of_component[block.split(":")[0]]
        for block, addresses in blocks.items()
    }
    large = {block: share for block, share in shares.items() if share >= LARGE_BLOCK}
    return {block: blocks[block] for block in large}, large


def _longest_harmless(ranked: Sequence[str], loss: Callable[[Sequence[str]], float]) -> tuple[int, float]:
    """How many of the first layers cost less than `HARMLESS` together, by bisection, and what they cost."""
    low, high, cost = 0, len(ranked) + 1, 0.0
    while high - low > 1:
        middle = (low + high) // 2
        lost = loss(ranked[:middle])
        if lost < HARMLESS:
            low, cost = middle, lost
        else:
            high = middle
    return low, cost
