"""Prompts: an ordered list for the search and a disjoint, held-out one for validation. No torch here."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from raysense.errors import RaysenseError
from raysense.names import BUNDLED
from raysense.prompts import coco
from raysense.prompts.files import Row, column, normalised, read_rows, text_column

SETS = ("search", "validation")
_UNSEEN = ("Cc", "Cf", "Zs", "Zl", "Zp")
"""Unicode's categories of characters that show nothing."""


@dataclass(frozen=True)
class Prompt:
    """A prompt; its id, together with a seed, fixes the starting noise."""

    id: str
    text: str


@dataclass(frozen=True)
class PromptSets:
    """Prompts for the search and for validation, in file order; no text stands in both.

    Attributes:
        search: For the search.
        validation: Held out.
        notes: What is worth knowing about them, a sentence each.
    """

    search: tuple[Prompt, ...]
    validation: tuple[Prompt, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)

    def of(self, rung: str, count: int, skip: int = 0) -> tuple[Prompt, ...]:
        """The first `count` prompts of the set that `rung` uses, after `skip`; rungs of one set are thus nested.

        Raises:
            RaysenseError: There are fewer.
        """
        name = _set_of(rung)
        pool: tuple[Prompt, ...] = getattr(self, name)
        if mistake := _too_few(rung, count, len(pool), skip):
            raise RaysenseError(mistake)
        return pool[skip : skip + count]


def check_counts(
    source: str, wanted: Mapping[str, int], skipped: Mapping[str, int] | None = None
) -> PromptSets | None:
    """Refuse rungs that want more prompts than `source` has, downloading nothing.

    Args:
        source: See `load_prompts`.
        wanted: Rung -> prompts.
        skipped: Rung -> prompts that are left out before them; none where missing.

    Returns:
        The prompts; None for those of COCO, which are not looked at.

    Raises:
        RaysenseError: There are fewer, or a file cannot be read.
    """
    sets = None if source == coco.NAME else load_prompts(source)
    there = {name: coco.PER_SET if sets is None else len(getattr(sets, name)) for name in SETS}
    left_out = skipped or {}
    mistakes = [
        _too_few(rung, count, there[_set_of(rung)], left_out.get(rung, 0)) for rung, count in wanted.items()
    ]
    if any(mistakes):
        raise RaysenseError("; ".join(filter(None, mistakes)))
    return sets


def _set_of(rung: str) -> str:
    return "validation" if rung == "validation" else "search"


def _too_few(rung: str, count: int, there: int, skip: int = 0) -> str:
    if count + skip <= there:
        return ""
    if not there:
        return (
            f"`rungs.{rung}.prompts` is {count}, but `prompts` has no {_set_of(rung)} prompts: where no row has a "
            "split, every second text that differs from those before it is held out; give more texts, or rows of the "
            f"split {_set_of(rung)}"
        )
    if skip:
        return (
            f"`rungs.{rung}.skip` {skip} and `rungs.{rung}.prompts` {count} need {skip + count} {_set_of(rung)} "
            f"prompts, but there are {there} in `prompts`; give a file with more, or lower one of them"
        )
    return (
        f"`rungs.{rung}.prompts` must be ≤ {there}, the number of {_set_of(rung)} prompts in `prompts`, "
        f"but got {count}"
    )


def load_prompts(source: str) -> PromptSets:
    """Read prompts from ``bundled``, ``coco-train2017`` or a file; docs/explanation/evaluation.md says which.

    A row has a text (`prompt`, or another usual name) and, optionally, ``id`` and ``split`` (``search`` or
    ``validation``). Without splits, every second text is held out for validation.

    Raises:
        RaysenseError: The file is missing, of another kind, has no usable rows, or its sets share a text.
    """
    path = Path(str(files("raysense.bundled") / "prompts.jsonl")) if source == BUNDLED else Path(source)
    rows: Sequence[Row] = coco.rows() if source == coco.NAME else read_rows(path)
    try:
        return prompt_sets(rows)
    except ValueError as error:
        raise RaysenseError(f"`prompts`: `{source if source == coco.NAME else path}`: {error}") from None


def prompt_sets(rows: Sequence[Row]) -> PromptSets:
    """Rows as prompts.

    Raises:
        ValueError: A row is not usable; the message says which, and why.
    """
    if not rows:
        raise ValueError("there are no prompts in it")
    names = dict.fromkeys(name for row in rows for name in row)
    text_name, id_name, split_name = text_column(names), column(names, "id"), column(names, "split")
    texts = [_text(row.get(text_name), number, text_name) for number, row in enumerate(rows, 1)]
    ids = _ids([row.get(id_name) if id_name else None for row in rows])
    splits = _splits([row.get(split_name) if split_name else None for row in rows], texts)
    found: dict[str, list[Prompt]] = {name: [] for name in SETS}
    for identity, text, split in zip(ids, texts, splits, strict=True):
        found[split].append(Prompt(identity, text))
    return PromptSets(tuple(found["search"]), tuple(found["validation"]), _notes(texts))


def _text(value: Any, number: int, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"row {number} has no text in the column `{name}`, but {value!r:.40}")
    if all(unicodedata.category(character) in _UNSEEN for character in value):
        raise ValueError(f"row {number}: the prompt is blank; take the row out")
    for character, words in (("\0", "a NUL character"), ("\ufeff", "a byte order mark")):
        if character in value:
            raise ValueError(f"row {number}: the prompt holds {words}; take it out")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"row {number}: the prompt holds half of a surrogate pair; mend it") from None
    return value


def _ids(values: Sequence[Any]) -> list[str]:
    first: dict[str, int] = {}
    for number, value in enumerate(values, 1):
        identity = _id(value, number)
        if identity in first:
            raise ValueError(
                f"the id {identity!r} stands twice, in rows {first[identity]} and {number}; ids must be unique"
            )
        first[identity] = number
    return list(first)


def _id(value: Any, number: int) -> str:
    """An id as text; a row without one is called by its place."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # what data frames make of integers as soon as one is missing
    if value is None or value == "" or value != value:
        return f"{number - 1:06d}"
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"row {number}: an id must be a text or an integer, but is {value!r:.40}")
    try:
        return str(value).encode().decode()
    except UnicodeEncodeError:
        raise ValueError(f"row {number}: the id holds half of a surrogate pair; mend it") from None


def _splits(values: Sequence[Any], texts: Sequence[str]) -> list[str]:
    """The set of each row; without splits, every second text is held out, and equal texts stay together."""
    empty = [number for number, value in enumerate(values, 1) if value is None or value == ""]
    if len(empty) == len(values):
        order: dict[str, int] = {}
        return [SETS[order.setdefault(normalised(text), len(order)) % 2] for text in texts]
    if empty:
        raise ValueError(f"row {empty[0]} has no split, but others have; give every row one, or none")
    splits = [value.strip().casefold() if isinstance(value, str) else value for value in values]
    for number, split in enumerate(splits, 1):
        if split not in SETS:
            raise ValueError(
                f"row {number}: split must be search or validation, but got {values[number - 1]!r:.40}; "
                "rename it, or leave the column out"
            )
    _refuse_shared(splits, texts)
    return splits


def _refuse_shared(splits: Sequence[str], texts: Sequence[str]) -> None:
    first: dict[str, dict[str, int]] = {name: {} for name in SETS}
    for number, (split, text) in enumerate(zip(splits, texts, strict=True), 1):
        first[split].setdefault(normalised(text), number)
    search, held_out = (first[name] for name in SETS)
    shared = [text for text in search if text in held_out]
    if shared:
        examples = "; ".join(
            f"{texts[search[text] - 1]!r:.60} in rows {search[text]} and {held_out[text]}"
            for text in shared[:3]
        )
        raise ValueError(
            f"{len(shared)} {'texts stand' if len(shared) > 1 else 'text stands'} both in the search and in the "
            f"held-out validation prompts ({examples}); what was searched on cannot validate: take "
            "them out of one of the two"
        )


def _notes(texts: Sequence[str]) -> tuple[str, ...]:
    counts = Counter(normalised(text) for text in texts)
    again = len(texts) - len(counts)
    broken = sum("\n" in text or "\r" in text for text in texts)
    notes = []
    if again:
        notes.append(
            f"`prompts`: {again} of {len(texts)} prompts repeat the text of another one of the same set; intervals "
            "take prompts for independent"
        )
    if broken:
        notes.append(f"`prompts`: {broken} of {len(texts)} prompts hold line breaks; is that meant?")
    return tuple(notes)
