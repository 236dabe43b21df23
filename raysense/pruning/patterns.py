"""N:M patterns: of every m weights along the input channels, the n with the highest scores stay."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raysense.allocation import LevelGrid
from raysense.errors import RaysenseError
from raysense.pruning.layers import Inventory, Layer


@dataclass(frozen=True)
class Pattern:
    """Keep `keep` of every `of` weights."""

    keep: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read ``2:4`` or ``4:8``.

        Raises:
            RaysenseError: Not two numbers with 0 < n < m.
        """
        parts = text.split(":")
        if len(parts) == 2 and all(part.isdigit() for part in parts) and 0 < int(parts[0]) < int(parts[1]):
            return cls(int(parts[0]), int(parts[1]))
        raise RaysenseError(f"pattern: {text!r} must be n:m with 0 < n < m, such as 2:4 or 4:8")

    def removed(self, layer: Layer) -> int:
        """Weights that a layer loses; input channels beyond the last whole m stay unpruned."""
        inputs = layer.shape[0] if layer.kind == "transformers_conv1d" else layer.shape[1]
        return layer.n // inputs * (inputs // self.of) * (self.of - self.keep)


def pattern_grid(inventory: Inventory, pattern: Pattern) -> LevelGrid:
    """One level for each layer: the pattern, exactly.

    Raises:
        RaysenseError: No selected layer has as many input channels as the pattern is long.
    """
    removed = {layer.address: pattern.removed(layer) for layer in inventory.layers}
    if not any(removed.values()):
        raise RaysenseError(
            f"pattern: no selected layer has {pattern.of} input channels; choose a shorter one"
        )
    return LevelGrid.fixed(inventory.sizes, removed)


def pattern_prune_levels(scores: Tensor, kind: str, pattern: Pattern) -> Tensor:
    """The byte of each weight: 0 where the pattern removes it, 255 where it stays. uint8, scores' shape."""
    by_input = scores if kind == "transformers_conv1d" else scores.movedim(1, 0)
    whole = by_input.shape[0] // pattern.of * pattern.of
    sets = by_input[:whole].reshape(whole // pattern.of, pattern.of, math.prod(by_input.shape[1:]))
    ranks = sets.argsort(dim=1, stable=True).argsort(dim=1)
    prune_level = torch.full(by_input.shape, 255, dtype=torch.uint8, device=scores.device)
    prune_level[:whole].masked_fill_(
        (ranks < pattern.of - pattern.keep).reshape(whole, *by_input.shape[1:]), 0
    )
    return prune_level if kind == "transformers_conv1d" else prune_level.movedim(0, 1)
