"""Files of prompts, written by other writers, then damaged: read as they are, or refused in one line."""

from __future__ import annotations

import csv
import io
import itertools
import json
import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysense.errors import RaysenseError
from raysense.prompts.sets import PromptSets, load_prompts, normalised
from tests.fuzz.harness import Case, Changed, run

WORDS = (
    "a cat",
    "Une école",
    "zwei Bälle",
    "猫",
    "🐈 on",
    'the "red" one',
    "x, y",
    "tab\there",
    "semi;colon",
)
ODD = ("\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\u00a0", "\u200d", "e\u0301", "'", "\\", "#", "{", "]")
KINDS = ("jsonl", "json", "csv", "tsv", "txt", "parquet")
SNIPPETS = (
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\r\n",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\t",
    b";",
    b"\\",
    b"{",
    b"null",
)


def _rows(rng: random.Random, kind: str) -> list[dict[str, Any]]:
    ids = rng.choice(("none", "numbers", "names"))
    split = rng.random() < 0.3
    rows: list[dict[str, Any]] = []
    for number in range(rng.randint(1, 12)):
        text = f"{rng.choice(WORDS)} {number} " + "".join(rng.choices((*WORDS, *ODD), k=rng.randint(0, 4)))
        if kind not in ("txt",) and rng.random() < 0.1:
            text += "\nsecond line"
        row: dict[str, Any] = {"prompt": text}
        if kind != "txt" and ids != "none":
            row["id"] = number if ids == "numbers" else f"n{number}"
        if kind != "txt" and split:
            row["split"] = rng.choice(("search", "validation"))
        rows.append(row)
    return rows


def _written(rows: list[dict[str, Any]], kind: str) -> bytes:
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=len(rows) % 2 == 0) + "\n" for row in rows).encode()
    if kind == "json":
        return json.dumps(rows).encode()
    if kind == "txt":
        return "".join(row["prompt"] + "\n" for row in rows).encode()
    if kind == "parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        return buffer.getvalue()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter="," if kind == "csv" else "\t")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _damaged(rng: random.Random, data: bytes) -> bytes:
    content = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(content) + 1)
        match rng.randrange(6):
            case 0:
                content[place:place] = rng.choice(SNIPPETS)
            case 1:
                del content[place : place + rng.randint(1, 5)]
            case 2 if place < len(content):
                content[place] ^= 1 << rng.randrange(8)
            case 3:
                del content[place:]
            case 4:
                content[place:place] = content[: rng.randint(0, 60)]
            case _:
                content[place:place] = rng.randbytes(rng.randint(1, 4))
    return bytes(content)


def _in_order(sets: PromptSets) -> list[str]:
    pairs = itertools.zip_longest(sets.search, sets.validation)
    return [prompt.text for pair in pairs for prompt in pair if prompt is not None]


def _sound(sets: PromptSets) -> None:
    """What holds of all prompts, wherever they come from."""
    ids = [prompt.id for prompt in (*sets.search, *sets.validation)]
    assert len(set(ids)) == len(ids)
    assert all(prompt.text.strip() for prompt in (*sets.search, *sets.validation))
    shared = {normalised(p.text) for p in sets.search} & {normalised(p.text) for p in sets.validation}
    assert not shared, shared


def _as_written(path: Path, rows: list[dict[str, Any]]) -> None:
    try:
        sets = load_prompts(str(path))
    except RaysenseError as error:
        raise Changed(f"refused as it was written: {error}") from None
    _sound(sets)
    if "split" in rows[0]:
        for name, prompts in (("search", sets.search), ("validation", sets.validation)):
            if [p.text for p in prompts] != [row["prompt"] for row in rows if row["split"] == name]:
                raise Changed(f"{prompts} of {rows}")
    elif sorted(_in_order(sets)) != sorted(row["prompt"] for row in rows):
        raise Changed(f"{_in_order(sets)} of {rows}")
    if "id" in rows[0]:
        own = {str(row["id"]): row["prompt"] for row in rows}
        if {p.id: p.text for p in (*sets.search, *sets.validation)} != own:
            raise Changed(f"ids of {rows}")


def _still_sound(path: Path, kind: str) -> None:
    """A damaged file may be read if nothing of it is lost: another reader, or counting characters, says so."""
    sets = load_prompts(str(path))
    _sound(sets)
    texts = sorted(prompt.text for prompt in (*sets.search, *sets.validation))
    if kind == "jsonl":
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
        others = [json.loads(line) for line in lines if line.strip()]
        theirs = [row if isinstance(row, str) else next(iter(_named(row))) for row in others]
    elif kind == "txt":
        theirs = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").rstrip("\n").split("\n")
    elif kind in ("csv", "tsv"):
        head, body = (*re.split("\r\n|\r|\n", path.read_bytes().decode("utf-8-sig"), maxsplit=1), "")[:2]
        if any(separator in head for separator in ",;\t"):
            return
        bare = str.maketrans("", "", '"\r\n')
        theirs, texts = sorted(body.translate(bare)), sorted("".join(texts).translate(bare))
    else:
        return
    if sorted(theirs) != texts:
        raise Changed(f"{texts} instead of {sorted(theirs)}")


def _named(row: dict[str, str]) -> list[str]:
    return [text for name, text in row.items() if name.strip().casefold() == "prompt"]


def cases(folder: Path, count: int) -> list[Case]:
    """Every third file as it was written, the others damaged; the same for the same count."""
    found: list[Case] = []
    for number in range(count):
        rng = random.Random(number)
        kind = KINDS[number % len(KINDS)]
        rows = _rows(rng, kind)
        data = _written(rows, kind)
        path = folder / f"{number}.{kind}"
        check: Callable[[], None] = partial(_as_written, path, rows)
        if rng.random() < 2 / 3:
            data = _damaged(rng, data)
            check = partial(_still_sound, path, kind)
        path.write_bytes(data)
        found.append((f"{path.name}: {data[:300]!r}", check))
    return found


def test_prompt_files(tmp_path: Path) -> None:
    counts = run("prompt files", cases(tmp_path, 300))
    counts.check()
    assert counts.by_outcome["ok"] > 100
    assert counts.by_outcome["refused"] > 50


@pytest.mark.long
def test_many_prompt_files(tmp_path: Path) -> None:
    run("prompt files", cases(tmp_path, 6000)).check()
