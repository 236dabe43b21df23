"""Folders of pipelines, damaged: loaded and sampled, or refused in one line. Weights that differ are another pipeline:
which one was measured, a study knows by content."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from raysense.evaluation.inputs import pipeline_content
from raysense.pipelines.load import load_pipeline, modules_of
from raysense.pipelines.sample import call_pipeline
from raysense.prompts.sets import Prompt
from raysense.pruning.layers import take_inventory
from raysense.search.try_once import said_in_one_line
from raysense.study import Sampling
from tests.fuzz.harness import Case, Changed, run
from tests.pruning.families import FAMILIES

Damage = Callable[[random.Random, Path, Sequence[Path]], None]
SAMPLING = Sampling(steps=2, guidance=2.0, height=32, width=32)
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**30,
    1e300,
    "",
    "x" * 200,
    "../..",
    [],
    {},
    [[]],
    "torch",
    float("nan"),
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "pipeline"
    FAMILIES["sd1"].build().save_pretrained(folder)
    return folder


# --- ways to damage ---------------------------------------------------------------------------------------


def value_changed(rng: random.Random, file: Path, _files: Sequence[Path]) -> None:
    fields = json.loads(file.read_text())
    place: Any = fields
    while isinstance(place, dict) and place:
        name = rng.choice(list(place))
        if not isinstance(place[name], dict) or not place[name] or rng.random() < 0.3:
            match rng.randrange(3):
                case 0:
                    del place[name]
                case 1:
                    place[name] = rng.choice(ODD)
                case _:
                    place[f"{name}_"] = place.pop(name)
            break
        place = place[name]
    file.write_text(json.dumps(fields))


def bytes_changed(rng: random.Random, file: Path, _files: Sequence[Path]) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(min(len(content), rng.choice([8, 200, len(content)])))
        content[start : start + rng.randint(1, 4)] = rng.randbytes(rng.randint(0, 6))
    file.write_bytes(content)


def truncated(rng: random.Random, file: Path, _files: Sequence[Path]) -> None:
    os.truncate(file, rng.randrange(file.stat().st_size))


def deleted(_rng: random.Random, file: Path, _files: Sequence[Path]) -> None:
    file.unlink()


def replaced(rng: random.Random, file: Path, _files: Sequence[Path]) -> None:
    file.write_bytes(
        rng.choice([b"", b"null", b"[]", b"{}", b"[" * 50_000, b"\xff\xfe{", rng.randbytes(200)])
    )


def swapped(rng: random.Random, file: Path, files: Sequence[Path]) -> None:
    other = rng.choice([path for path in files if path != file])
    one, two = file.read_bytes(), other.read_bytes()
    file.write_bytes(two)
    other.write_bytes(one)


WAYS: Sequence[Damage] = (value_changed, bytes_changed, truncated, deleted, replaced, swapped)


def _load(original: Path, scratch: Path, way: Damage, name: str, seed: int) -> None:
    torch.set_num_threads(1)  # this process was forked
    copy = Path(shutil.copytree(original, scratch / f"{os.getpid()}-{seed}"))
    try:
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        way(random.Random(seed), copy / name, files)
        other = pipeline_content(str(copy), None) != pipeline_content(str(original), None)
        pipeline = load_pipeline(str(copy))
        if not other and way not in (deleted,) and (copy / name).suffix in (".json", ".safetensors"):
            changed = (copy / name).read_bytes() != (original / name).read_bytes()
            if changed:
                raise Changed("read as the same pipeline as before")
        names = [name for name in ("text_encoder", "unet") if name in modules_of(pipeline)]
        assert take_inventory(pipeline.components, select=names).n_selected > 0
        with said_in_one_line(str(copy)):
            images = call_pipeline(pipeline, [Prompt("1", "a cat")], [0], SAMPLING)
        assert images.shape == (1, 3, 32, 32)
    finally:
        shutil.rmtree(copy)


def _cases(original: Path, scratch: Path, count: int, seed: int) -> list[Case]:
    names = sorted(str(path.relative_to(original)) for path in original.rglob("*") if path.is_file())
    pairs = [(n, way) for way in WAYS for n in names if way is not value_changed or n.endswith(".json")]
    random.Random(seed).shuffle(pairs)
    return [
        (f"{way.__name__} {name} {seed + n}", partial(_load, original, scratch, way, name, seed + n))
        for n, (name, way) in zip(range(count), itertools.cycle(pairs), strict=False)
    ]


def test_damaged_pipelines(original: Path, tmp_path: Path) -> None:
    run("pipeline folders: files damaged", _cases(original, tmp_path, 24, 0)).check()


@pytest.mark.long
def test_many_damaged_pipelines(original: Path, tmp_path: Path) -> None:
    run("pipeline folders: files damaged", _cases(original, tmp_path, 1_000, 10_000)).check()
