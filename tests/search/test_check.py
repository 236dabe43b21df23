"""`raysense check`: what is broken is named; repaired, a study reads, and has lost only what was in the broken file."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raysense.cli import main
from raysense.evaluation import footprint
from raysense.evaluation.cache import TensorCache
from raysense.evaluation.footprint import Footprint
from raysense.evaluation.inputs import keep_prompts
from raysense.evaluation.solved_weights import SolvedWeights
from raysense.prompts.sets import Prompt, PromptSets
from raysense.records import Evaluation
from raysense.results.run import Run
from raysense.store import Store
from raysense.store.checksummed_json import seal
from raysense.store.disk import Disk
from raysense.study import parse
from tests.store.drivers import evaluation
from tests.tables import edit


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def measured(number: int) -> Evaluation:
    """With a row an image, as every evaluation by images has them."""
    sample = {"prompt_id": 1, "prompt": "a cat", "seed": number, "m": 0.3}
    return replace(evaluation(number), samples=(sample,))


@pytest.fixture
def study(reference: Path) -> Path:
    """A finished study with an object and cache entries, no table of which is one file only."""
    store = Store.open(str(reference))
    layer = store.table("layers")["layer"][0].as_py()
    for number in range(3):
        store.put(measured(number), {layer: number + 1})
    store.compact()
    store.put(measured(3), {layer: 9})
    disk = Disk(str(reference))
    TensorCache(disk).put("0" * 16, {"a": torch.arange(5.0)})
    SolvedWeights(disk, {"unet:a": "f" * 16}).put("unet:a", {1: torch.ones(3)})
    keep_prompts(disk, PromptSets((Prompt("0", "a cat"),), (Prompt("1", "a dog"),)))
    disk.write("plugins.json", seal({"folders": [], "files": {"own.py": "A = 1"}}))
    footprint.keep(disk, parse(Store.open(str(reference)).study["definition"]), Footprint(7, 2, "a GPU"))
    return reference


def checked(study: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    status = main(["check", str(study), *more])
    return status, "".join(capsys.readouterr())


def keys(study: Path) -> set[str]:
    return {e.key for e in Store.open(str(study)).evaluations()}


def test_a_whole_study_is_whole(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in study.rglob("*") if p.is_file()}
    assert checked(study, capsys) == (0, "everything is whole\n")
    assert {p: p.stat().st_mtime_ns for p in study.rglob("*") if p.is_file()} == before


def test_every_file(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, whole, wanted = random.Random(0), {}, keys(study)
    for path in sorted(study.rglob("*")):
        if path.is_file() and path.name not in ("driver.lock", "driver.json"):
            whole[path] = path.read_bytes()
    for path, way in zip(whole, itertools.cycle(["flipped", "truncated", "deleted"]), strict=False):
        content = whole[path]
        if way == "deleted":
            path.unlink()
        elif way == "truncated":
            path.write_bytes(content[: len(content) // 2])
        else:
            place = rng.randrange(len(content))
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        status, said = checked(study, capsys)
        name = str(path.relative_to(study))
        optional = name.startswith(("objects", "cache", "prompts", "summary.json", "plugins.json"))
        may_be_gone = way == "deleted" and optional
        if name == "study.json":
            assert status == (2 if way == "deleted" else 1)
        elif may_be_gone:
            assert status == 0
        else:
            assert (status, name in said) == (1, True), (name, way, said)
            assert checked(study, capsys, "--repair")[0] == 0
            left = keys(study)
            assert left <= wanted
            if not name.startswith("tables/"):
                assert left == wanted - ({path.stem} if name.startswith("objects/") else set())
            else:
                assert len(left) >= 1  # of the other files' evaluations, and the object
            run = Run(str(study))
            measured = set(run.store.table("measures")["key"].to_pylist())
            assert measured <= left
        for extra in set(study.rglob("*")) - set(whole):
            if extra.is_file():
                extra.unlink()
        for other, bytes_ in whole.items():
            other.write_bytes(bytes_)


def test_rows_of_a_table_that_is_gone_with_the_manifest_are_not_made_up(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing says any more that there were measures: their evaluations are measured again, not left without any."""
    compacted = len(keys(study)) - 1
    (study / "manifest.json").unlink()
    for file in study.glob("tables/measures/*"):
        file.unlink()
    status, said = checked(study, capsys, "--repair")
    assert (status, f"{compacted} lack a part" in said) == (0, True)
    left = Store.open(str(study)).evaluations()
    assert [e.key for e in left] == [measured(3).key]  # of an object
    assert all(e.measures for e in left)
    assert checked(study, capsys) == (0, "everything is whole\n")


@pytest.mark.parametrize("also", [[], ["manifest.json"]])
@pytest.mark.parametrize("table", ["measures", "samples"])
def test_what_has_lost_a_part_is_measured_again_and_nothing_else(
    study: Path, capsys: pytest.CaptureFixture[str], table: str, also: list[str]
) -> None:
    """A shard has neither measures nor samples; what its shards painted has samples, and no images of its own."""
    store = Store.open(str(study))
    store.compact()
    whole = keys(study)
    files = set((study / "tables" / table).iterdir())
    lost = replace(measured(8), rung="validation", images=0)
    shard = replace(evaluation(9), rung="shard", measures={})
    for entry in (lost, shard):
        store.put(entry, {store.table("layers")["layer"][0].as_py(): 1})
    store.compact()
    (file,) = set((study / "tables" / table).iterdir()) - files
    for name in [file, *(study / other for other in also)]:
        name.unlink()
    assert checked(study, capsys, "--repair")[0] == 0
    assert lost.key not in keys(study)
    assert {shard.key, *whole} == keys(study)


@pytest.mark.parametrize("kind", ["plugins.json", "prompts/*.json", "cache/*.json"])
@pytest.mark.parametrize(
    "damaged", [lambda content: content.replace(b"a", b"b", 1), lambda content: b"[" * 100_000]
)
def test_what_lies_beside_the_rows_is_read_too(
    study: Path, capsys: pytest.CaptureFixture[str], kind: str, damaged: Callable[[bytes], bytes]
) -> None:
    (file,) = study.glob(kind)
    file.write_bytes(damaged(file.read_bytes()))
    status, said = checked(study, capsys)
    assert (status, str(file.relative_to(study)) in said) == (1, True)
    assert checked(study, capsys, "--repair")[0] == 0
    assert not file.exists()
    assert checked(study, capsys) == (0, "everything is whole\n")


def test_an_older_schema_is_refused_in_one_sentence(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(study / "study.json", lambda fields: fields.update(schema_version=1))
    status, said = checked(study, capsys)
    assert status == 2
    assert "written by an older raysense" in said
    assert len(said.splitlines()) == 1


def test_a_damaged_schema_version_is_damage(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = study / "study.json"
    record.write_bytes(record.read_bytes().replace(b'"schema_version"', b'"schema_versioo"'))
    status, said = checked(study, capsys)
    assert (status, "study.json" in said) == (1, True)
