"""The little world the bundled pipeline paints: emoji objects, two sizes, a coloured sky and floor.

A scene is fixed by (object, size, sky colour, floor colour); its caption says exactly that, and
nothing else varies but small jitter. Some (object, attributes) combinations are held out: no model
of the project ever trains on them, and every quality figure is taken on them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RESOLUTION = 32
SIZES = {"big": 29, "small": 20}  # pixels
COLOURS = {
    "red": (214, 48, 49),
    "orange": (243, 146, 42),
    "yellow": (252, 226, 84),
    "green": (58, 164, 84),
    "blue": (45, 104, 214),
    "purple": (134, 72, 180),
    "white": (246, 246, 246),
    "black": (26, 26, 32),
}
HELD_OUT_PERCENT = 10
HERE = Path(__file__).parent


@dataclass(frozen=True, order=True)
class Scene:
    """What a caption says: one object of one size before one or two colours."""

    object: str
    size: str
    sky: str
    floor: str

    @property
    def caption(self) -> str:
        """The caption, e.g. ``a small goat between a purple sky and a yellow floor``."""
        sky, floor = (("an " if colour[0] in "aeiou" else "a ") + colour for colour in (self.sky, self.floor))
        if self.sky == self.floor:
            return f"a {self.size} {self.object} on {sky} background"
        return f"a {self.size} {self.object} between {sky} sky and {floor} floor"

    @property
    def held_out(self) -> bool:
        """Whether no training may see this combination (decided by a hash, so for good)."""
        digest = hashlib.sha256(self.caption.encode()).digest()
        return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


@cache
def objects() -> dict[str, str]:
    """Object name -> file name of its emoji (``training/objects.json``)."""
    return dict(json.loads((HERE / "objects.json").read_text()))


@cache
def attributes() -> list[tuple[str, str, str]]:
    """Every (size, sky, floor), 128 of them."""
    return [(size, sky, floor) for size in SIZES for sky in COLOURS for floor in COLOURS]


@cache
def scenes(held_out: bool) -> list[Scene]:
    """All training scenes, or all held-out ones."""
    every = [Scene(name, *rest) for name in objects() for rest in attributes()]
    return [scene for scene in every if scene.held_out is held_out]


class Painter:
    """Paints scenes as uint8 arrays.

    Args:
        emoji_dir: The folder with the 64×64 PNGs of npm's ``emoji-datasource-google``.
    """

    def __init__(self, emoji_dir: Path) -> None:
        self._sprites: dict[tuple[str, int], NDArray[np.float32]] = {}
        for name, file in objects().items():
            with Image.open(emoji_dir / file) as opened:
                image = opened.convert("RGBA")
            for base in SIZES.values():
                for pixels in (base - 1, base, base + 1):
                    small = image.resize((pixels, pixels), Image.Resampling.BOX, reducing_gap=None)
                    self._sprites[name, pixels] = np.asarray(small, dtype=np.float32)

    def paint(self, scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Paint one scene.

        Args:
            scene: What to paint.
            rng: Draws the jitter: colour ±6 levels, size and place ±1 pixel, horizon ±1 pixel.

        Returns:
            uint8 array of shape (32, 32, 3).
        """
        canvas = np.empty((RESOLUTION, RESOLUTION, 3), dtype=np.float32)
        horizon = RESOLUTION // 2 + int(rng.integers(-1, 2))
        jitter = rng.uniform(-6, 6, size=(2, 3))
        if scene.sky == scene.floor:
            jitter[1] = jitter[0]
        canvas[:horizon] = np.asarray(COLOURS[scene.sky]) + jitter[0]
        canvas[horizon:] = np.asarray(COLOURS[scene.floor]) + jitter[1]
        pixels = SIZES[scene.size] + int(rng.integers(-1, 2))
        slack = RESOLUTION - pixels
        left, top = (int(np.clip(slack // 2 + rng.integers(-1, 2), 0, slack)) for _ in range(2))
        sprite = self._sprites[scene.object, pixels]
        alpha = sprite[..., 3:] / 255
        window = canvas[top : top + pixels, left : left + pixels]
        window[:] = window * (1 - alpha) + sprite[..., :3] * alpha
        painted: NDArray[np.uint8] = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
        return painted

    def batch(self, chosen: list[Scene], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Paint several scenes: uint8 array of shape (len(chosen), 32, 32, 3)."""
        return np.stack([self.paint(scene, rng) for scene in chosen])
