"""Tell output that is broken from output that is merely worse.

Past the cliff a pipeline paints NaN, black, one colour or the same picture for every prompt. Fréchet
distances and CLIP scores saturate there and no longer order models, so such allocations are flagged and kept
out of curves and choices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raysense.errors import RaysenseError

TOLERANCE = 1e-3
"""How far outside [0, 1] rounding may push a pixel."""

BLACK = 0.02
"""Mean brightness below which an image is black: about 5 of 255."""

CONSTANT = 0.01
"""Standard deviation over an image's pixels, channel by channel, below which it is one colour."""

ALIKE = 0.01
"""Standard deviation over the images, averaged over pixels, below which all show the same."""


def why_collapsed(
    images: Tensor, black: float = BLACK, constant: float = CONSTANT, alike: float = ALIKE
) -> str:
    """Say why these images are broken, if they are.

    Args:
        images: (n, 3, h, w) float, meant to lie in [0, 1]; different prompts.
        black: An image is black below this mean brightness.
        constant: An image is one colour below this standard deviation over its pixels.
        alike: All images are the same below this standard deviation over images.

    Returns:
        A few words, or an empty string when more than half of the images are sound.

    Raises:
        RaysenseError: If the shape is not that of images.

    Example:
        >>> why_collapsed(torch.zeros(4, 3, 8, 8))
        'black: 4 of 4 images'
    """
    if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise RaysenseError(f"`images` must be (n, 3, h, w) with n ≥ 1, but got {tuple(images.shape)}.")
    x = images.float()
    n = len(x)
    broken = int((~torch.isfinite(x).flatten(1).all(dim=1)).sum())
    if broken:
        return f"NaN or infinite: {broken} of {n} images"
    outside = int(((x < -TOLERANCE) | (x > 1 + TOLERANCE)).flatten(1).any(dim=1).sum())
    if outside:
        reach = f"{float(x.min()):.3g} to {float(x.max()):.3g}"
        return f"off-scale: {outside} of {n} images leave [0, 1], reaching from {reach}"
    dark = int((x.mean(dim=(1, 2, 3)) < black).sum())
    if 2 * dark > n:
        return f"black: {dark} of {n} images"
    flat = int((x.var(dim=(2, 3), correction=0).mean(dim=1).sqrt() < constant).sum())
    if 2 * flat > n:
        return f"constant: {flat} of {n} images"
    if n > 1 and float(x.std(dim=0, correction=0).mean()) < alike:
        return f"all alike: {n} images"
    return ""
