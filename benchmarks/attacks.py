"""The attacks against which raysense was mended, repeated on today's code: how many were tried, how many went wrong.

    python -m benchmarks.attacks                     # all in full: hours on two cores
    python -m benchmarks.attacks --quick             # a few of each: a minute or two
    python -m benchmarks.attacks --only studies s3   # some

Wrong is: a traceback, an end, a hang, or a message of several lines where one is due; other rows than were written; a
row lost or there twice; two drivers that write; a secret shown; an open door. The attacks are those of the
tests, which run some of each every time. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

os.environ.setdefault("AWS_ACCESS_KEY_ID", "test")  # of the S3 server on loopback
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "secret-of-the-tests")

Result = tuple[int, list[str]]
"""How many were tried, and what went wrong."""


def _fuzzed(what: str, cases: Sequence[Any]) -> Result:
    from tests.fuzz.harness import run

    counts = run(what, cases)
    return counts.by_outcome.total(), [" | ".join(entry) for entry in counts.bad]


def studies(count: int, folder: Path) -> Result:
    """Studies changed in structure."""
    from tests.fuzz.test_studies import structured

    return _fuzzed("studies", structured(folder, count))


def studies_by_bytes(count: int, folder: Path) -> Result:
    """Studies changed byte by byte."""
    from tests.fuzz.test_studies import by_bytes

    return _fuzzed("studies by bytes", by_bytes(folder, count))


def prompts(count: int, folder: Path) -> Result:
    """Prompt files of all kinds."""
    from tests.fuzz.test_prompts import cases

    return _fuzzed("prompt files", cases(folder, count))


def images(count: int, folder: Path) -> Result:
    """Reference images."""
    from tests.fuzz.test_images import _image_cases

    return _fuzzed("images", _image_cases(count, 50_000))


def pipelines(count: int, folder: Path) -> Result:
    """Pipeline folders, loaded and sampled."""
    from tests.fuzz.test_pipeline_folders import _cases
    from tests.pruning.families import FAMILIES

    FAMILIES["sd1"].build().save_pretrained(folder / "pipeline")
    return _fuzzed("pipelines", _cases(folder / "pipeline", folder, count, 50_000))


def _store(folder: Path) -> Path:
    """A real study with objects that no compaction has taken in yet."""
    from tests.fuzz.test_store_files import whole_store

    return whole_store(folder / "store")


def store_files(count: int, folder: Path) -> Result:
    """Files of a store damaged in seven ways, then read."""
    from tests.fuzz.test_store_files import WAYS, _cases

    return _fuzzed("store files", list(_cases(_store(folder), folder, WAYS, count, 50_000)))


def parquet_bits(count: int, folder: Path) -> Result:
    """Single bits of Parquet files."""
    from tests.fuzz.test_store_files import _cases, flipped

    cases = _cases(_store(folder), folder, [flipped], 4 * count, 60_000)
    return _fuzzed("Parquet", [case for case in cases if ".parquet" in case[0]][:count])


def cache_entries(count: int, folder: Path) -> Result:
    """Entries of the cache."""
    from tests.fuzz.test_store_files import _cache_cases

    return _fuzzed("cache", _cache_cases(folder, count, 50_000))


def crashes(count: int, folder: Path) -> Result:
    """A crash at a write or delete of a driver's life; every one of them from a certain count on."""
    import pytest

    from tests.faults.test_disks import entry
    from tests.store.test_store import stopped_at_every_step

    with pytest.MonkeyPatch.context() as patch:
        return stopped_at_every_step(folder, entry, patch, max(1, 100 // count)), []


def full_disks(count: int, folder: Path) -> Result:
    """Real full disks: from each write on, of every size, without files left."""
    import pytest

    from tests.faults.disks import small_disk
    from tests.faults.test_disks import at_every_size, at_every_write

    with pytest.MonkeyPatch.context() as patch, small_disk(folder / "disk") as disk:
        step = max(1, 90 // count)
        counts = at_every_write(disk, patch, step) + at_every_size(disk, "size", step)
        return (counts + at_every_size(disk, "nr_inodes", step)).total(), []


def kills(count: int, folder: Path) -> Result:
    """SIGKILL of a driver that compacts."""
    from tests.faults.test_network import killed_while_compacting

    return killed_while_compacting(str(folder / "store"), count, 2)["killed while compacting"], []


def study_kills(count: int, folder: Path) -> Result:
    """SIGKILL of any process of a real study over Ray; rows as of an undisturbed one."""
    from tests.faults.test_kills import played

    story = played(folder, count, 10, 0)
    return story.counts["kills"], story.bad


def s3(count: int, folder: Path) -> Result:
    """Studies on S3 by a faulty way; counted are the faults."""
    import pytest

    from raysense.store import bucket
    from tests.faults.proxy import Weather, faulty_way
    from tests.faults.test_network import stories
    from tests.s3 import s3_server

    weather = Weather(random.Random(0))
    with pytest.MonkeyPatch.context() as patch, s3_server() as pattern, faulty_way(pattern, weather) as way:
        patch.setattr(bucket, "FIRST_WAIT_SECONDS", 0.02)
        counts = stories((way, weather), range(1000, 1000 + count), 0.3)
    passed = ("passed", "studies", "lives that gave up")
    return sum(number for kind, number in counts.items() if kind not in passed), []


def drivers(count: int, folder: Path) -> Result:
    """Stories of two drivers on one bucket, interleaved request by request."""
    import pytest

    from raysense.store import parquet
    from tests.store.drivers import Memory, World

    bad = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "decode", lru_cache(512)(parquet.decode))
        for seed in range(count):
            try:
                World(seed, Memory()).run(160)
            except Exception as error:
                bad.append(f"{seed}: {error!r:.300}")
    return count, bad


class _Elements(HTMLParser):
    """Elements with the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))


EVIL = (
    "<script>hacked()</script>", "</script><script>hacked()//", "<img src=x onerror=hacked()>", "<!--", "]]><b>",
    '"><svg onload=hacked()>', "' onmouseover='hacked()", "{{ 7 * 7 }}{% raw %}", "&lt;b&gt;", "\u2028<b>",
    "${hacked()}", "</style>",
)  # fmt: skip
SLOTS = ("revision", "trial", "group", "extractor")


def html(count: int, folder: Path) -> Result:
    """HTML in everything that users name: the page has the elements of one with harmless names."""
    import shutil

    from raysense.results.page import build
    from raysense.results.run import Run
    from tests.conftest import REFERENCE
    from tests.tables import column, edit, rewrite

    def page(text: str, slot: str) -> list[tuple[str, tuple[str, ...]]]:
        run = Path(shutil.copytree(REFERENCE, folder / "run", dirs_exist_ok=True))
        if slot == "revision":
            edit(run / "study.json", lambda record: record["definition"].update(revision=text))
        else:
            table = {"trial": "evaluations", "group": "layers", "extractor": "measures"}[slot]
            named = f"search/{text.replace('/', '|')}" if slot == "trial" else text
            rewrite(run, table, lambda rows: column(rows, slot, [named] * len(rows)))
        try:
            return _Elements(build(Run(str(run)), images=0, paint=False)).found
        finally:
            shutil.rmtree(run)

    pairs = [(text, slot) for text in EVIL for slot in SLOTS][:count]
    harmless = {slot: page("harmless", slot) for slot in {slot for _, slot in pairs}}
    return len(pairs), [f"{text} as {slot}" for text, slot in pairs if page(text, slot) != harmless[slot]]


def secrets(count: int, folder: Path) -> Result:
    """Credentials in the addresses that commands take."""
    from raysense.cli import main
    from tests.test_secrets import OF, PLACES, SECRETS

    tried, bad = 0, []
    with contextlib.chdir(folder):
        for command, words in OF.items():
            for secret in SECRETS[:count]:
                said = io.StringIO()
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    for place in PLACES:
                        main([command, *(word.format(place.format(secret)) for word in words)])
                tried += len(PLACES)
                if secret in said.getvalue() or list(folder.iterdir()):
                    bad.append(f"{command} shows {secret}")
    return tried, bad


def doors(count: int, folder: Path) -> Result:
    """Sockets of a local Ray: which listen on more than loopback?"""
    import psutil
    import pytest

    from raysense.errors import RaysenseError
    from raysense.execution.ray.connection import connected

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(connected(None))
        except RaysenseError as error:  # of a machine that is too busy
            pytest.skip(str(error))
        import ray

        kind: Any = ray.remote(num_cpus=0)(_Worker)
        workers = [kind.remote() for _ in range(2)]
        ray.get([worker.here.remote() for worker in workers])
        me = psutil.Process()
        found = [
            f"{process.name()} on {one.laddr.ip}"
            for process in (me, *me.children(recursive=True))
            for one in process.net_connections("inet")
            if one.status == psutil.CONN_LISTEN
        ]
    return len(found), [one for one in found if not re.search(r" on (::ffff:)?127\.|::1$", one)]


class _Worker:
    def here(self) -> bool:
        return True


@dataclass(frozen=True)
class Attack:
    """A row of the table.

    Attributes:
        run: Tries so many.
        full: How many.
        quick: How many with `--quick`; 0 for none.
    """

    run: Callable[[int, Path], Result]
    full: int
    quick: int


ATTACKS = {
    "studies": Attack(studies, 3000, 60),
    "studies_by_bytes": Attack(studies_by_bytes, 2500, 60),
    "prompts": Attack(prompts, 600, 60),
    "images": Attack(images, 3000, 60),
    "pipelines": Attack(pipelines, 120, 4),
    "store_files": Attack(store_files, 1745, 21),
    "parquet_bits": Attack(parquet_bits, 1000, 20),
    "cache_entries": Attack(cache_entries, 400, 21),
    "crashes": Attack(crashes, 100, 5),
    "full_disks": Attack(full_disks, 90, 6),
    "kills": Attack(kills, 21, 2),
    "study_kills": Attack(study_kills, 50, 0),
    "s3": Attack(s3, 20, 1),
    "drivers": Attack(drivers, 10_000, 10),
    "html": Attack(html, 48, 2),
    "secrets": Attack(secrets, 6, 2),
    "doors": Attack(doors, 1, 1),
}


def attempts(names: Sequence[str], quick: bool) -> Iterator[tuple[str, int | None, list[str]]]:
    """Name, how many were tried (None: cannot be tried here), what went wrong."""
    import pytest

    for name in names:
        attack = ATTACKS[name]
        count = attack.quick if quick else attack.full
        if not count:
            continue
        with tempfile.TemporaryDirectory(prefix="raysense-attack-") as folder:
            found: tuple[int | None, list[str]]
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    found = attack.run(count, Path(folder))
            except pytest.skip.Exception as reason:
                found = None, [str(reason)]
            except Exception:
                found = count, [traceback.format_exc(limit=-3)]
        yield name, *found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs and prints the counts, then the result as JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a few of each")
    parser.add_argument("--only", nargs="+", choices=list(ATTACKS), default=list(ATTACKS), metavar="ATTACK")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # Pillow's, of damaged images
    figures: dict[str, Any] = {}
    for name, tried, bad in attempts(args.only, args.quick):
        print(f"{name:<18} tried {tried if tried is not None else f'none: {bad[0]}'}", end="", flush=True)
        print(f", bad {len(bad)}" if tried is not None else "", flush=True)
        for line in bad[:5] if tried is not None else ():
            print(f"    {line}", flush=True)
        figures[name] = {"tried": tried, "bad": len(bad)} if tried is not None else {"not tried": bad[0]}
    holds = all(found.get("bad", 0) == 0 for found in figures.values())
    print(json.dumps({"benchmark": "attacks", "figures": figures, "bar": {"bad": 0}, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
