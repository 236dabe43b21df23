"""Two sets of images, row by row the same prompt and noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysense.errors import RaysenseError

if TYPE_CHECKING:
    from torch import Tensor


def pair(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    """Refuse two tensors that do not pair up row by row."""
    if a.shape != b.shape:
        raise RaysenseError(
            f"`{name_a}` {tuple(a.shape)} and `{name_b}` {tuple(b.shape)} must pair up image by image."
        )
