"""Prompts: an ordered list for the search and a disjoint, held-out one for validation. No torch here."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from raysense.errors import RaysenseError
from raysense.pipelines import coco
from raysense.study import BUNDLED


@dataclass(frozen=True)
class Prompt:
    """A prompt; its id, together with a seed, fixes the starting noise."""

    id: str
    text: str


@dataclass(frozen=True)
class PromptSets:
    """Disjoint prompts for the search and for validation, in file order."""

    search: tuple[Prompt, ...]
    validation: tuple[Prompt, ...]

    def of(self, rung: str, count: int) -> tuple[Prompt, ...]:
        """The first `count` prompts of the set that `rung` uses; rungs of one set are thus nested.

        Raises:
            RaysenseError: There are fewer.
        """
        name = _set_of(rung)
        pool: tuple[Prompt, ...] = getattr(self, name)
        _check_count(rung, count, len(pool))
        return pool[:count]


def check_counts(source: str, wanted: Mapping[str, int]) -> None:
    """Refuse rungs that want more prompts than `source` has, downloading nothing.

    Args:
        source: See `load_prompts`.
        wanted: Rung -> prompts.

    Raises:
        RaysenseError: There are fewer, or a file cannot be read.
    """
    if source == coco.NAME:
        there = {"search": coco.PER_SET, "validation": coco.PER_SET}
    else:
        sets = load_prompts(source)
        there = {"search": len(sets.search), "validation": len(sets.validation)}
    for rung, count in wanted.items():
        _check_count(rung, count, there[_set_of(rung)])


def _set_of(rung: str) -> str:
    return "validation" if rung == "validation" else "search"


def _check_count(rung: str, count: int, there: int) -> None:
    if count > there:
        raise RaysenseError(
            f"`rungs.{rung}.prompts` must be ≤ {there}, the number of {_set_of(rung)} prompts in `prompts`, "
            f"but got {count}"
        )


def load_prompts(source: str) -> PromptSets:
    """Read prompts from ``bundled``, ``coco-train2017`` or a ``.jsonl``, ``.csv`` or ``.parquet`` file.

    A row has ``prompt`` and, optionally, ``id`` and ``split`` (``search`` or ``validation``). Without splits,
    every second prompt is held out for validation.

    Raises:
        RaysenseError: The file is missing, of another kind, or has no usable rows.
    """
    path = Path(str(files("raysense.bundled") / "prompts.jsonl")) if source == BUNDLED else Path(source)
    rows = list(coco.rows() if source == coco.NAME else _rows(path))
    prompts: dict[str, list[Prompt]] = {"search": [], "validation": []}
    seen: set[str] = set()
    for number, row in enumerate(rows):
        text = row.get("prompt")
        if not isinstance(text, str):
            raise RaysenseError(f"`prompts`: row {number + 1} of `{path}` has no text in the column `prompt`")
        identity = str(row.get("id") or f"{number:06d}")
        if identity in seen:
            raise RaysenseError(
                f"`prompts`: the id {identity!r} stands twice in `{path}`; ids must be unique"
            )
        seen.add(identity)
        split = row.get("split") or ("search", "validation")[number % 2]
        if split not in prompts:
            raise RaysenseError(
                f"`prompts`: row {number + 1} of `{path}`: split must be search or validation, but got {split!r}"
            )
        prompts[split].append(Prompt(identity, text))
    return PromptSets(tuple(prompts["search"]), tuple(prompts["validation"]))


def _rows(path: Path) -> Iterable[Mapping[str, Any]]:
    suffix = path.suffix.lower()
    try:
        if suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("every line must be a JSON object")
            return rows
        if suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                return list(csv.DictReader(file))
        if suffix == ".parquet":
            import pyarrow.parquet as pq

            return list(pq.read_table(path).to_pylist())
    except OSError as error:
        raise RaysenseError(f"`prompts`: cannot read `{path}`: {error.strerror or error}") from None
    except ValueError as error:
        raise RaysenseError(f"`prompts`: `{path}` is damaged or no {suffix} file: {error}") from None
    raise RaysenseError(
        f"`prompts` must be `bundled`, `{coco.NAME}` or a .jsonl, .csv or .parquet file, but got `{path}`"
    )
