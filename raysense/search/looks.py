"""How often the held-out prompts have been looked at: earlier runs that tested finalists on any of them.

A run is judged again and again until something passes; each time chance may let an unfit one through. So a run counts
the runs before it: `search.earlier_looks` becomes their number, and `raysense.strategies.verdict.look_share` says what
is left of the error. Counted are runs in folders beside the new one's, and the run that `--from` names with those that
it had counted itself: of the same pipeline, with a held-out text in common, with another definition, that have tested
a finalist or are at work. Resuming a study is no other look, nor is running the same one again: it finds the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from raysense.errors import RaysenseError
from raysense.evaluation.inputs import prompts_of
from raysense.prompts.files import normalised
from raysense.prompts.sets import PromptSets, load_prompts
from raysense.results.looks import how_tested, look_in_words
from raysense.search.starts import EVERY_SECONDS, NAME
from raysense.store.disk import Disk
from raysense.store.lock import HOLDER
from raysense.store.store import Store
from raysense.study import Study, parse

AT_WORK = 3 * EVERY_SECONDS
"""A run is taken to be at work while its starts were written so many seconds ago, or fewer."""


@dataclass(frozen=True)
class Look:
    """An earlier run that tested finalists on some of the same held-out prompts.

    Attributes:
        run: Its address.
        signature: Its identity.
    """

    run: str
    signature: str


@dataclass(frozen=True)
class Looks:
    """What is known of earlier looks.

    Attributes:
        found: Earlier runs that count.
        unread: Folders beside the study's whose study could not be read, so that they do not count.
    """

    found: tuple[Look, ...]
    unread: tuple[str, ...] = ()

    def to_fields(self) -> list[dict[str, str]]:
        """As plain JSON-able fields."""
        return [asdict(look) for look in self.found]


FIRST = Looks(())
"""No earlier look."""


def with_looks(
    study: Study, out: str, inputs: Mapping[str, Any] | None = None, source: str | None = None
) -> tuple[Study, Looks]:
    """The study with `search.earlier_looks` counted, and the runs behind the number.

    A run that has tested finalists keeps the number that it was judged by.

    Args:
        study: The study, complete; what it says itself is added to what is counted.
        out: Where it is, or will be, stored.
        inputs: What it is measured on, by content; without, pipelines are told apart by their names.
        source: The run that ``--from`` names.
    """
    stored = Store.open(out, create=True)
    record = stored.study
    if record is not None and _has_looked(stored):
        before = parse(record["definition"])
        if before.identity() == study.identity():
            kept = [Look(**fields) for fields in record.get("looks", [])]
            return _counting(study, before.search.earlier_looks), Looks(tuple(kept))
    looks, unread = dict[str, Look](), list[str]()
    own = cache(lambda: _held_out(load_prompts(study.prompts), study))
    for place in _places(out, source):
        try:
            for look in _of_run(place, study, inputs, own, is_source=place == source, is_own=place == out):
                looks.setdefault(look.signature, look)
        except RaysenseError:
            unread.append(place)
    found = Looks(tuple(looks.values()), tuple(unread))
    return _counting(study, study.search.earlier_looks + len(found.found)), found


def in_words(study: Study, looks: Looks) -> list[str]:
    """What a person should know before the study is run, a sentence each; nothing for a first look."""
    lines = [
        f"`{place}` holds a study that cannot be read; it is not counted among earlier looks."
        for place in looks.unread
    ]
    tests = how_tested(study, [look.run for look in looks.found])
    if words := look_in_words(tests):
        rung = study.rungs.validation
        lines.append(
            f"{words} Fresh prompts make it a first look again: `rungs.validation.skip={rung.skip + rung.prompts}`, "
            "if `prompts` has so many, or another file."
        )
    return lines


def _counting(study: Study, number: int) -> Study:
    if number == study.search.earlier_looks:
        return study
    return study.model_copy(update={"search": study.search.model_copy(update={"earlier_looks": number})})


def _places(out: str, source: str | None) -> Iterator[str]:
    """Addresses of studies that may have looked: where rows come from, what is there, and what is beside it."""
    if source is not None:
        yield source
    if "://" in out:  # a bucket is not listed: it may hold anything
        return
    own = Path(out).resolve()
    named = None if source is None or "://" in source else Path(source).resolve()
    for folder in sorted(own.parent.iterdir()) if own.parent.is_dir() else ():
        if folder != named and (folder / "study.json").is_file():
            # As a person would write it.
            yield out if folder == own else os.path.join(os.path.dirname(out), folder.name)


def _of_run(
    place: str,
    study: Study,
    inputs: Mapping[str, Any] | None,
    own: Callable[[], set[str]],
    *,
    is_source: bool,
    is_own: bool,
) -> Iterator[Look]:
    """The looks of one run: its own, and those that it had counted before where the new one goes on from it.

    There may be many runs: what is cheap to tell comes first, texts are read last.

    Args:
        place: Its address.
        study: The new study.
        inputs: What that is measured on.
        own: Gives the texts that its finalists are tested on.
        is_source: Whether ``--from`` names the run.
        is_own: Whether it is where the new study is stored.

    Raises:
        RaysenseError: It cannot be read.
    """
    store, disk = Store.open(place), Disk(place)
    record = store.study
    assert record is not None
    if not _same_pipeline(record, study, inputs):
        return
    theirs = parse(record["definition"])
    is_same = theirs.identity() == study.identity()
    if is_own and is_same:
        return
    before = [Look(**fields) for fields in record.get("looks", [])] if is_source else []
    is_other = not (is_same and theirs.budget == study.budget)
    if is_other and (_has_looked(store) or _at_work(disk)):
        before.append(Look(place, record["signature"]))
    if before and (
        _same_texts(record, theirs, study, inputs)
        or _held_out(prompts_of(record, theirs, disk), theirs) & own()
    ):
        yield from before


def _same_pipeline(record: Mapping[str, Any], study: Study, inputs: Mapping[str, Any] | None) -> bool:
    if inputs is None:
        return bool(record["definition"].get("pipeline") == study.pipeline)
    return bool(record["inputs"].get("pipeline") == inputs["pipeline"])


def _same_texts(
    record: Mapping[str, Any], theirs: Study, study: Study, inputs: Mapping[str, Any] | None
) -> bool:
    """Whether finalists are tested on the very same texts, as far as that is known without reading any."""
    same = inputs is not None and record["inputs"].get("prompts") == inputs["prompts"]
    return same and theirs.rungs.validation == study.rungs.validation


def _held_out(prompts: PromptSets, study: Study) -> set[str]:
    """The texts that a study's finalists are tested on."""
    rung = study.rungs.validation
    return {normalised(prompt.text) for prompt in prompts.of("validation", rung.prompts, rung.skip)}


def _has_looked(store: Store) -> bool:
    """Whether a finalist was tested on held-out prompts: what a run has of them beside the dense baseline."""
    stages = store.table("evaluations")["stage"]
    return bool(pc.any(pc.equal(stages, "validation")).as_py())


def _at_work(disk: Disk) -> bool:
    """Whether a driver is running the study now, and so may look."""
    files = dict(disk.names("")) if disk.local else {}
    return HOLDER in files and time.time() - files.get(NAME, 0.0) <= AT_WORK
