"""COCO captions as prompts: the ones that Stable Diffusion 2 was pruned with first. No torch here.

Ramesh & Zhao (arXiv 2411.15113) take the first caption of every picture of COCO train2017 and let
``numpy.random.seed(0)`` choose 10,000 of them. The same 10,000, in the same order, are the search prompts here; the
next 10,000 of the same shuffle whose text is none of these are held out for validation. Captions: Lin et al.,
"Microsoft COCO: Common Objects in Context" (2014), CC BY 4.0.
"""

from __future__ import annotations

import itertools
import json
import os
import zipfile
from pathlib import Path

from filelock import FileLock

from raysense.errors import RaysenseError
from raysense.prompts.files import normalised

NAME = "coco-train2017"
PER_SET = 10_000
"""Prompts in each of the two sets."""

ARCHIVE = "http://images.cocodataset.org/annotations/annotations_trainval2017.zip"
SHA1 = "8551ee4bb5860311e79dace7e79cb91e432e78b3"
"""Of the archive, 241 MB, as data-set tools have published it; what does not match is refused."""

_MEMBER = "annotations/captions_train2017.json"


def cache() -> Path:
    """The folder of what is downloaded once a machine: RAYSENSE_CACHE, or the user's own."""
    return Path(os.environ.get("RAYSENSE_CACHE", Path.home() / ".cache" / "raysense"))


def rows() -> list[dict[str, str]]:
    """The 20,000 prompts as rows with ``id``, ``prompt`` and ``split``, downloaded once per machine.

    Raises:
        RaysenseError: The archive cannot be had, or is not the one that was published.
    """
    folder = cache()
    kept = folder / f"{NAME}-disjoint.jsonl"  # an earlier version kept captions that both sets shared
    try:
        if not kept.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f"{NAME}.lock"):  # the evaluators of one machine start together
                if not kept.exists():
                    _fetch(kept)
        return [json.loads(line) for line in kept.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise RaysenseError(
            f"`prompts` {NAME}: {ARCHIVE} cannot be had as {kept} ({error}); check the network or give a file"
        ) from error


def choose(annotations: dict[str, list[dict[str, object]]], per_set: int = PER_SET) -> list[dict[str, str]]:
    """Search and validation prompts out of COCO's file of captions.

    Args:
        annotations: The file's content; each of ``annotations`` has ``image_id`` and ``caption``.
        per_set: Prompts in each set.
    """
    import numpy as np  # `validate` asks this module for a number only, and shall answer at once

    first: dict[object, str] = {}
    for annotation in annotations["annotations"]:
        first.setdefault(annotation["image_id"], str(annotation["caption"]).strip())
    captions = list(first.items())
    # `numpy.random.seed(0); numpy.random.choice(n, k, replace=False)` is the head of this very permutation.
    order = np.random.RandomState(0).permutation(len(captions)).tolist()
    chosen = order[:per_set]
    searched = {normalised(captions[index][1]) for index in chosen}
    apart = (index for index in order[per_set:] if normalised(captions[index][1]) not in searched)
    held_out = list(itertools.islice(apart, per_set))
    return [
        {"id": f"coco-{captions[index][0]}", "prompt": captions[index][1], "split": split}
        for split, indices in (("search", chosen), ("validation", held_out))
        for index in indices
    ]


def _fetch(kept: Path) -> None:
    import pooch  # `validate` asks this module for a number only, and shall answer at once

    archive = Path(
        pooch.retrieve(
            ARCHIVE,
            known_hash=f"sha1:{SHA1}",
            path=kept.parent,
            fname=f"{NAME}.zip",
            downloader=pooch.HTTPDownloader(timeout=30),
        )
    )
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(_MEMBER) as member:
            chosen = choose(json.load(member))
    finally:
        archive.unlink()
    partial = kept.with_suffix(".partial")
    partial.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen), encoding="utf-8"
    )
    partial.replace(kept)
