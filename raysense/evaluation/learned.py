"""What a study's method has learned from the dense pipeline, as the store's cache has it: read without the pipeline."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import lru_cache

from torch import Tensor

from raysense.allocation import LevelGrid
from raysense.evaluation.cache import TensorCache
from raysense.evaluation.solved_weights import SolvedWeights
from raysense.hashing import content_key
from raysense.pipelines.sample import first_seed
from raysense.prompts.sets import PromptSets
from raysense.pruning.layers import Inventory, Layer
from raysense.pruning.masks import pruned
from raysense.pruning.patterns import Pattern
from raysense.pruning.saliency import LayerStats, find_method
from raysense.store.disk import Disk
from raysense.study import Study

CALIBRATION_SEED = 2_000_000
"""Number of the calibration's seed among those of the study."""


class Learned:
    """Names what was learned by what it follows from, and reads it layer by layer.

    Args:
        study: The study.
        inventory: The selected layers.
        grid: Their levels.
        prompts: The study's prompts; the first search prompts were used.
        disk: Where the cache is.
        identity: A hash of the pipeline's weights and of the software.
    """

    def __init__(
        self,
        study: Study,
        inventory: Inventory,
        grid: LevelGrid,
        prompts: PromptSets,
        disk: Disk,
        identity: str = "",
    ) -> None:
        self._study, self._inventory, self._grid = study, inventory, grid
        self._prompts = prompts.search[: study.prune.calibration.prompts]
        self._seed = first_seed(study.seed) + CALIBRATION_SEED
        self._cache = TensorCache(disk)
        self._pattern = Pattern.parse(study.prune.pattern) if study.prune.pattern else None
        self._base = content_key(
            identity,
            study.dtype,
            [(prompt.id, prompt.text) for prompt in self._prompts],
            study.sampling.model_dump(exclude={"batch"}),
            self._seed,
        )
        self._slices = SolvedWeights(
            disk, {layer.address: self._slice_key(layer) for layer in inventory.layers}
        )
        # Layers come block by block, and a block's statistics stand in one file.
        self._block_of_statistics = lru_cache(maxsize=4)(self._read)

    def has_all(self, methods: Collection[str]) -> bool:
        """Whether nothing is left to learn for pruning by these methods."""
        if self._study.prune.updates:
            return all(self._slices.has(layer.address) for layer in self._inventory.layers)
        keys = (
            self._statistic_key(need, block)
            for name in methods
            for need in find_method(name).needs
            for block, _ in self._blocks()
        )
        return all(self._cache.is_whole(key) for key in keys)

    def at_level(self, layer: Layer, weight: Tensor, level: int, method: str) -> Tensor:
        """A layer's weights at a level above 0, as an evaluator gives them, bit for bit.

        Args:
            layer: The layer.
            weight: Its dense weights; they stay as they are.
            level: The level.
            method: What prunes it; `has_all` is true for it.
        """
        if self._study.prune.updates:
            return self._slices.load(layer.address, level).to(weight.dtype)
        statistics = {
            need: (self._block_of_statistics(need, layer.block) or {})[layer.address]
            for need in find_method(method).needs
        }
        stats = LayerStats(layer.address, layer.kind, **statistics, seed=self._study.seed)
        return pruned(layer, weight, level, self._grid, method, stats, self._pattern)

    def _blocks(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Blocks and their layers: what one file of statistics holds, so that no file is large."""
        yield from self._inventory.groups("block").items()

    def _read(self, need: str, block: str) -> dict[str, Tensor] | None:
        return self._cache.get(self._statistic_key(need, block))

    def _statistic_key(self, need: str, block: str) -> str:
        layers = self._inventory.groups("block")[block]
        calls = self._study.prune.calibration.calls if need == "gradients" else 0
        return content_key("statistics", self._base, need, layers, calls, self._study.seed)

    def _slice_key(self, layer: Layer) -> str:
        prune = self._study.prune
        return content_key(
            "slices",
            self._base,
            prune.saliency,
            prune.pattern,
            prune.calibration.damping,
            layer.address,
            self._grid.removed_by_level(layer.address),
        )
