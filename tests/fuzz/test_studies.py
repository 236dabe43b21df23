"""Studies, changed in structure or byte by byte: read as they are, or refused in one line."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from raysense.errors import RaysenseError
from raysense.study import examine, listed, load, parse, paths, plain_yaml, quickstart
from raysense.study.checks import look
from tests.fuzz.harness import Case, Changed, run

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 8, 10**6, 2**31, 2**63, -(2**64), 10**30, 0.0, -0.0, 0.5, 1e-3, 1e308, math.inf,
    -math.inf, math.nan, "", " ", "no", "1e-3", "2:4", "4:2", "0:0", "auto", "bundled", "a" * 300, "a" * 5000, "é🐈",
    "x\u2028y", "../..", "/dev/zero", "a.b.c", "os.system", "s3://b/c", "\x1b[31m", "[red]", "{x}", "\ufeff", "nan",
    [], [[]], [None], ["unet"], ["unet", "unet"], ["text_encoder", 3], [1, 2], {}, {"a": 1}, {"max_drop": 0.1},
)  # fmt: skip
KEYS = (
    "max_drop",
    "max",
    "min",
    "prompts",
    "seeds",
    "max_layer_sparsity",
    "custom",
    "a",
    "",
    "clip",
    "é",
    "x y",
    "__class__",
    "*",
)
SNIPPETS = (
    "&a ", "*a", "!!int ", "!!python/name:os.system ", "{", "}", "[", "]", ": ", "- ", "\n", "\t", "'", '"', "#", "|\n",
    ">-\n", "%", "@", "`", "<<: *a\n", "---\n", "...\n", "?", "\0", "\x85", "\u2028", "\ufeff", "1e-3", "0o7", "2:4",
    "no", "9" * 5000, "[" * 3000, "2024-01-01", "~", "=", "a: &x [*x]\n", "\r", "é",
)  # fmt: skip

START = {
    **plain_yaml.parse(load().to_yaml()),
    "metrics": {"also": ["ssim"], "custom": {"sharp": "json.dumps"}, "reference": {"limit": 100}},
}


def _places(data: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in entries:
        yield from _places(value, (*place, key))


def _mutated(rng: random.Random) -> Any:
    data = copy.deepcopy(START)
    for _ in range(rng.randint(1, 4)):
        *parents, last = rng.choice(list(_places(data))[1:])
        inner: Any = data
        for key in parents:
            inner = inner[key]
        action = rng.randrange(5)
        if action == 0:
            del inner[last]
        elif action == 1 and isinstance(inner, dict):
            inner[rng.choice(KEYS)] = copy.deepcopy(rng.choice(VALUES))
        elif action == 2 and isinstance(inner, dict):
            inner[rng.choice(KEYS)] = inner.pop(last)
        else:
            inner[last] = copy.deepcopy(rng.choice(VALUES))
    return data


def _differs(given: Any, held: Any) -> bool:
    """Whether something that was given is held as something else; what was not given has its default."""
    if isinstance(given, dict) and isinstance(held, dict):
        return any(key not in held or _differs(value, held[key]) for key, value in given.items())
    if isinstance(given, list) and isinstance(held, list):
        return len(given) != len(held) or any(map(_differs, given, held))
    if type(given) is int and isinstance(held, float):
        given = float(given)
    return given != held or isinstance(given, bool) is not isinstance(held, bool)


def _read(path: Path, given: Any, deep: bool) -> None:
    try:
        study = load(path)
    except RaysenseError:
        if deep:  # the same words, and what can be said beside them
            mistakes, _ = look(examine(path))
            raise RaysenseError(listed(mistakes)) from None
        raise
    held = study.model_dump(mode="json", context={"every_field": True})
    if given is not None:
        paths.make_absolute(given, path.parent, of_file=True)  # which is meant
    if given is not None and _differs(given, held):
        raise Changed(f"{given} is held as {held}")
    if parse(plain_yaml.parse(study.to_yaml())) != study:
        raise Changed(f"{study.to_yaml()} is read as another study")
    if deep and (mistakes := look(examine(path))[0]):
        raise RaysenseError(listed(mistakes))


def structured(folder: Path, count: int) -> list[Case]:
    """Studies with some values, keys and sections changed."""
    found: list[Case] = []
    for number in range(count):
        rng = random.Random(number)
        data, path = _mutated(rng), folder / f"s{number}.yaml"
        # JSON is YAML too, and another writer; it knows no infinity.
        as_json = rng.random() < 0.5 and "Infinity" not in json.dumps(data) and "NaN" not in json.dumps(data)
        path.write_text(json.dumps(data) if as_json else plain_yaml.dump(data), encoding="utf-8")
        found.append((f"{path.name}: {data!r:.2000}", partial(_read, path, data, number % 20 == 0)))
    return found


def by_bytes(folder: Path, count: int) -> list[Case]:
    """The default study with pieces put in, taken out, doubled or turned round."""
    found: list[Case] = []
    for number in range(count):
        rng = random.Random(f"bytes {number}")
        content = bytearray(quickstart().read_bytes())
        for _ in range(rng.randint(1, 5)):
            place = rng.randrange(len(content) + 1)
            match rng.randrange(6):
                case 0 | 1:
                    content[place:place] = rng.choice(SNIPPETS).encode()
                case 2:
                    del content[place : place + rng.randint(1, 30)]
                case 3 if place < len(content):
                    content[place] ^= 1 << rng.randrange(8)
                case 4:
                    content[place:place] = content[rng.randrange(len(content)) :][: rng.randint(1, 200)]
                case _:
                    content[place:place] = rng.randbytes(rng.randint(1, 6))
        path = folder / f"b{number}.yaml"
        path.write_bytes(content)
        found.append((f"{path.name}: {bytes(content)!r:.2500}", partial(_read, path, None, number % 20 == 0)))
    return found


def test_studies(tmp_path: Path) -> None:
    for what, cases in (
        ("studies", structured(tmp_path, 200)),
        ("studies by bytes", by_bytes(tmp_path, 200)),
    ):
        counts = run(what, cases)
        counts.check()
        assert counts.by_outcome["ok"] > 10
        assert counts.by_outcome["refused"] > 10


@pytest.mark.long
def test_many_studies(tmp_path: Path) -> None:
    run("studies", structured(tmp_path, 4000)).check()
    run("studies by bytes", by_bytes(tmp_path, 4000)).check()
