"""Choose the objects of the little world: emoji with plain names that differ clearly at 20 pixels.

Farthest-point selection in pixels: each next object is the one whose nearest
chosen neighbour is farthest away. Writes ``training/objects.json``; run once, the result is committed.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

CATEGORIES = {"Animals & Nature", "Food & Drink", "Objects", "Travel & Places", "Activities"}
EXTRA = {"skull", "ghost", "robot face", "alien monster", "brain", "tooth", "ear", "nose", "mouth", "imp"}
SKIP = re.compile(
    r"symbol|sign$|smoking|pistol|dagger|bomb|briefs|toilet|kaaba|mosque|church|temple|synagogue|shrine|"
    r"coffin|headstone|urn|syringe|cigarette|oncoming|lower|minidisc|dvd|low |open |spiral notepad|"
    r"square|black|white|[0-9:*'()]|purple|orange book|blue book|green book|red |green "
)
COUNT = 240


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path, help="unpacked npm package emoji-datasource-google")
    package = parser.parse_args().package
    candidates: dict[str, str] = {}
    for row in sorted(json.loads((package / "emoji.json").read_text()), key=lambda r: r["sort_order"]):
        name = row["name"].lower().removesuffix(" face")
        known = row["category"] in CATEGORIES or row["name"].lower() in EXTRA
        if known and len(name.split()) <= 2 and not SKIP.search(name) and name not in candidates:
            candidates[name] = row["image"]
    names = list(candidates)
    views = []
    for name in names:
        with Image.open(package / "img/google/64" / candidates[name]) as opened:
            image = opened.convert("RGBA")
        sides = []
        for grey in (60, 200):
            background = Image.new("RGBA", image.size, (grey, grey, grey, 255))
            background.alpha_composite(image)
            sides.append(np.asarray(background.convert("RGB").resize((10, 10), Image.Resampling.BOX)))
        views.append(np.stack(sides).ravel())
    pixels = torch.tensor(np.stack(views)).float() / 255
    distance = torch.cdist(pixels, pixels)
    # Two greys shine through where an emoji is transparent: one that fills little of its square is hard to see
    # at 20 pixels, one that fills it all hides the background that the caption names.
    spread = (pixels.view(len(names), 2, -1)[:, 0] - pixels.view(len(names), 2, -1)[:, 1]).abs().mean(1)
    visible = (spread < 0.33) & (spread > 0.1)
    chosen = [names.index("elephant")]
    nearest = distance[chosen[0]].clone()
    nearest[~visible] = -1
    while len(chosen) < COUNT:
        following = int(nearest.argmax())
        chosen.append(following)
        nearest = torch.minimum(nearest, distance[following])
        nearest[following] = -1
    result = {names[i]: candidates[names[i]] for i in sorted(chosen)}
    print(f"{len(names)} candidates, {int(visible.sum())} visible, {len(result)} chosen")
    Path(__file__).with_name("objects.json").write_text(json.dumps(result, indent=0) + "\n")


if __name__ == "__main__":
    main()
