"""The bundled pipeline's smallest whole study over Ray, killed at random: the rows of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from raysense.store import Store
from raysense.store.schema import TABLES

STUDY = (
    "name=killed", "search.granularity=component", "search.bisections=2", "search.rounds=1", "search.offspring=2",
    "search.levels=3", "search.strategies=[uniform, solver]", "prune.saliency=[wanda, magnitude]",
    "prune.calibration.prompts=2", "rungs.probe={prompts: 2, timesteps: 2}", "rungs.preview.prompts=8",
    "rungs.score.prompts=8", "rungs.validation.prompts=8", "sampling.steps=2", "cluster.images_per_shard=4",
    "constraints={clip_score: {max_drop: 0.5}}",
)  # fmt: skip

NOT_COMPARED = ("seconds", "evaluator", "ray_trial", "created", "nfe", "images")
"""Who measured it, and what that took: what all rows need is painted, and paid for, by whoever comes first."""

ENDS_SECONDS = 300.0
"""Within which a study whose process was killed has gone on to its end, or has said why not."""

VICTIMS = ("ray::EvaluatorActor", "driver", "ray::Evaluat", "ray::EvaluatorActor", "driver", "anyone")


def start(out: Path, log: Path) -> subprocess.Popen[bytes]:
    """`raysense search`, of which nothing is left once it has ended."""
    overrides = [part for value in STUDY for part in ("--set", value)]
    command = [sys.executable, "-m", "raysense.cli", "search", *overrides, "--out", str(out), "--resume"]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def rows(run: Path) -> dict[str, list[str]]:
    """Every row of every table, without what may differ."""
    store = Store.open(str(run), create=True)
    return {
        name: sorted(
            json.dumps({k: v for k, v in row.items() if k not in NOT_COMPARED}, sort_keys=True, default=str)
            for row in store.table(name).to_pylist()
        )
        for name in TABLES
    }


@dataclass
class Kills:
    """Kills, and what became of the studies.

    Attributes:
        folder: For the runs.
        whole: The rows of an undisturbed one.
        seconds: That it took.
        counts: What happened.
        bad: What went wrong.
        last: The name of the process that was killed last.
    """

    folder: Path
    whole: dict[str, list[str]]
    seconds: float
    rng: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    last: str = ""

    def study(self, number: int, kills: int) -> int:
        """One study, killed up to so many times, then left alone until it ends; how often it was killed."""
        out, log = self.folder / f"run-{number}", self.folder / f"log-{number}"
        struck = 0
        for _ in range(kills + 20):
            process, kind, self.last = start(out, log), "", ""
            while struck < kills and process.poll() is None and kind != "driver":
                next_one = VICTIMS[self.counts["kills"] % len(VICTIMS)]
                if not self._strike(process, out, next_one):
                    break
                struck, kind = struck + 1, next_one
                self.counts.update(["kills", f"kills: {kind}"])
            try:
                status = process.wait(ENDS_SECONDS)
            except subprocess.TimeoutExpired:
                self.bad.append(f"run {number}: no end within {ENDS_SECONDS:.0f} s of killing {kind}")
                process.kill()
                status = process.wait()
            self._look(out, log, kind, status, number)
            if status == 0:
                break
        else:
            self.bad.append(f"run {number}: never came to its end")
        self.counts["studies"] += 1
        found = rows(out)
        for table in TABLES:
            if found[table] != self.whole[table]:
                missing = set(self.whole[table]) - set(found[table])
                self.bad.append(f"run {number}: {table} differs, e.g. {sorted(missing)[:1]}")
        return struck

    def _strike(self, process: subprocess.Popen[bytes], out: Path, kind: str) -> bool:
        """SIGKILL at a random moment: of time, or of what is stored; whether the study was still running."""
        until = time.monotonic() + self.rng.uniform(0.0, self.seconds / 3)
        objects = self._objects(out) + self.rng.randint(1, 6)
        by_time = kind == "driver" and self.rng.random() < 0.4  # others once there is something new
        while process.poll() is None:
            victims = self._victims(process.pid, kind)
            due = time.monotonic() > until if by_time else self._objects(out) >= objects
            if due and victims:
                time.sleep(self.rng.random() * 0.3)
                try:
                    self.last = psutil.Process(victim := self.rng.choice(victims)).name()
                    os.kill(victim, signal.SIGKILL)
                except (ProcessLookupError, psutil.NoSuchProcess):
                    continue
                return True
            time.sleep(0.05)
        return False

    def _objects(self, out: Path) -> int:
        return len(list((out / "objects").glob("*.json")))

    def _victims(self, pid: int, kind: str) -> list[int]:
        """Of the study's own processes only."""
        if kind == "driver":
            return [pid]
        found = []
        for process in psutil.Process(pid).children(recursive=True) if psutil.pid_exists(pid) else ():
            try:
                if kind == "anyone" or " ".join(process.cmdline()).startswith(kind):
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found

    def _look(self, out: Path, log: Path, kind: str, status: int, number: int) -> None:
        """Whatever moment it was: what is stored can be read, and is of the undisturbed study's rows."""
        said = log.read_text(errors="replace")
        if "Traceback" in said:
            self.bad.append(f"run {number}: a traceback after killing {kind}: {said[-600:]}")
        if kind != "driver":
            if status not in (0, 2):
                self.bad.append(
                    f"run {number}: status {status} after killing {kind or 'nobody'}: {said[-600:]}"
                )
            self.counts["went on" if status == 0 else "ended with one line"] += bool(kind)
        log.write_text("")
        (self.folder / f"said-{number}").open("a").write(f"--- {kind} ({self.last}) {status}\n{said}\n")
        if not (out / "study.json").exists():
            return
        for table, found in rows(out).items():
            if table in ("evaluations", "measures", "samples") and (
                len(found) != len(set(found)) or not set(found) <= set(self.whole[table])
            ):
                foreign = sorted(row for row in set(found) - set(self.whole[table]) if '"failed": ""' in row)
                if foreign or table != "evaluations":
                    self.bad.append(f"run {number}: rows of {table} twice or foreign {foreign[:1]}")


def undisturbed(folder: Path) -> tuple[dict[str, list[str]], float]:
    """The rows of a study that nobody kills, and the seconds it takes."""
    began = time.monotonic()
    process = start(folder / "whole", folder / "log-whole")
    assert process.wait() == 0, (folder / "log-whole").read_text()
    return rows(folder / "whole"), time.monotonic() - began


def played(folder: Path, kills: int, each: int, seed: int) -> Kills:
    """So many kills, up to `each` a study."""
    whole, seconds = undisturbed(folder)
    story = Kills(folder, whole, seconds, random.Random(seed))
    for number in range(4 * kills):
        if story.counts["kills"] >= kills:
            break
        story.study(number, min(each, kills - story.counts["kills"]))
        print(dict(story.counts), len(story.bad), flush=True)
    print(f"\nkills of a real study: {dict(story.counts)}, bad {len(story.bad)}")
    return story


@pytest.mark.long
@pytest.mark.timeout(0)
def test_fifty_kills_of_a_real_study(tmp_path: Path) -> None:
    story = played(tmp_path, 50, 10, 0)
    assert story.counts["kills"] == 50
    assert not story.bad, "\n".join(story.bad)
