"""Drivers on one bucket, interleaved request by request: the real code, a scheduler that decides who goes on.

Every driver, every lease's renewal and every reader is a greenlet that stops before each request to the storage until
the scheduler lets it go on, so that a seed decides the whole run. Time is the scheduler's too: each process has a
clock of its own, with its own offset and speed. A process may be suspended with everything it has under way, may be
killed, may have an answer lost although the request arrived, or a request that never does. All have the same host name
and process number, as two containers may.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from greenlet import getcurrent, greenlet

from raysense.errors import RaysenseError
from raysense.records import Evaluation, Measure
from raysense.store import Store
from raysense.store.bucket import ABSENT, Bucket, Moved, Version
from raysense.store.disk import Disk
from raysense.store.lock import RENEW_SECONDS, Holders, Lease, LockLost

SIGNATURE = "a"
CALM = 0.6
"""The share of interleavings in which nothing is lost on the way, nobody killed."""


class Killed(BaseException):
    """The process is gone: no `except` or `finally` of it reaches the storage any more."""


@dataclass
class Process:
    """One machine's view: its clock, and whether it runs.

    Attributes:
        offset: Seconds by which its clock differs.
        speed: Of its clock.
        until: Suspended up to this moment of the scheduler's time.
        dead: Killed.
    """

    offset: float
    speed: float
    until: float = 0.0
    dead: bool = False


class Actor:
    """A thread of a process that runs only between two calls of the scheduler: a greenlet."""

    def __init__(self, world: World, process: Process, script: Callable[[Actor], None]) -> None:
        self.world, self.process, self.script = world, process, script
        self.wake = 0.0
        self.risky = False  # about to do what another driver may have made wrong
        self.thread = greenlet(self._run)
        world.actors.append(self)

    @property
    def over(self) -> bool:
        return bool(self.thread.dead)

    def _run(self) -> None:
        try:
            if not self.process.dead:
                self.script(self)
        except Killed:
            pass
        except BaseException as error:
            self.world.failures.append(error)

    def go(self) -> None:
        """Run up to the next turn."""
        CURRENT.clear()
        CURRENT.append(self)
        self.thread.switch()

    def turn(self) -> None:
        """Wait until it is this actor's turn."""
        if not self.process.dead:
            self.world.scheduler.switch()
        if self.process.dead:
            raise Killed

    def sleep(self, seconds: float) -> None:
        """Until so many seconds have passed by the process's clock."""
        self.wake = self.world.now + seconds / self.process.speed
        self.turn()


CURRENT: list[Actor] = []
"""The actor that runs."""


class ProcessClock:
    """What the running actor's process takes for the time."""

    def monotonic(self) -> float:
        process: Process = CURRENT[0].process
        return process.offset + process.speed * float(CURRENT[0].world.now)

    def sleep(self, seconds: float) -> None:
        CURRENT[0].sleep(seconds)


class Mutex:
    """Keeps threads of one process apart; whoever waits lets the scheduler go on."""

    def __init__(self) -> None:
        self._taken = False

    def __enter__(self) -> None:
        while self._taken:
            CURRENT[0].turn()
        self._taken = True

    def __exit__(self, *_: object) -> None:
        self._taken = False


class Memory(Bucket):
    """A bucket in this process, which answers at once; that it answers as a server does is tested."""

    def __init__(self) -> None:
        self._objects: dict[str, tuple[bytes, Version]] = {}
        self._written = 0

    def read(self, name: str) -> tuple[bytes, Version] | None:
        return self._objects.get(name)

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        return [self._objects[name][0] if name in self._objects else None for name in names]

    def write(self, name: str, content: bytes) -> None:
        self._written += 1
        self._objects[name] = content, {"e_tag": str(self._written)}

    def write_if(self, name: str, content: bytes, version: Version) -> Version:
        found = self._objects.get(name)
        if (ABSENT if found is None else found[1]) != version:
            if found is not None and found[0] == content:
                return found[1]
            raise Moved(name)
        self.write(name, content)
        return self._objects[name][1]

    def names(self, folder: str) -> list[tuple[str, float]]:
        of = [name.rpartition("/") for name in self._objects]
        return sorted((last, 0.0) for parent, _, last in of if parent == folder)

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            self._objects.pop(name, None)


class Requests(Bucket):
    """A bucket whose every request waits for its turn, and may get lost."""

    def __init__(self, inner: Bucket) -> None:
        self._inner = inner

    def _asked(self, request: Callable[[], Any], *, writes: bool = False, risky: bool = False) -> Any:
        world: World = CURRENT[0].world
        CURRENT[0].risky = risky
        CURRENT[0].turn()
        CURRENT[0].risky = False
        world.counts["requests"] += 1
        fate = world.rng.random() if not world.calm else 1.0
        if fate < 0.01:
            world.counts["requests lost"] += 1
            raise OSError("no route to host")
        done = request()
        if writes and fate < 0.03:
            world.counts["answers lost"] += 1
            raise OSError("connection reset")
        return done

    def read(self, name: str) -> tuple[bytes, Version] | None:
        found: tuple[bytes, Version] | None = self._asked(lambda: self._inner.read(name))
        return found

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        found = [self.read(name) for name in names]
        return [entry and entry[0] for entry in found]

    def write(self, name: str, content: bytes) -> None:
        self._asked(lambda: self._inner.write(name, content), writes=True)

    def write_if(self, name: str, content: bytes, version: Version) -> Version:
        def request() -> Version:
            done = self._inner.write_if(name, content, version)
            fields = json.loads(content)
            world: World = CURRENT[0].world
            if name == "manifest.json":
                world.switches.append(fields["driver"])
                before = world.held[:-1]  # who has held the lease, but does no more
                if fields["driver"] in before:
                    world.failures.append(
                        AssertionError("a driver wrote although another one holds the lease")
                    )
            elif name == "driver.lock":
                world.leases.append(fields["token"])
            return done

        done: Version = self._asked(request, writes=True, risky=name == "manifest.json")
        return done

    def names(self, folder: str) -> list[tuple[str, float]]:
        found: list[tuple[str, float]] = self._asked(lambda: self._inner.names(folder))
        return found

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            self._asked(lambda name=name: self._inner.delete([name]), writes=True, risky=True)  # type: ignore[misc]


def evaluation(number: int, failed: str = "") -> Evaluation:
    return Evaluation(
        key=f"{number:016x}",
        trial=f"search/solver/{number}",
        stage="search",
        allocation=f"{number % 5:016x}",
        rung="score",
        measures={} if failed else {"m": Measure(number / 7, 0.0, 1.0, 16, "x")},
        zeros=number,
        images=0 if failed else 16,
        nfe=0 if failed else 32,
        seconds=0.0,
        failed=failed,
    )


@dataclass
class World:
    """One run of two drivers.

    Attributes:
        seed: Decides everything.
        bucket: The storage that all see.
        counts: What has happened.
        acknowledged: Numbers of evaluations whose writing was acknowledged.
        switches: Tokens of the drivers that switched the manifest, in order.
        leases: Tokens of those that wrote the lease, in order.
        held: Tokens of those that were given it, in order.
        failures: What went wrong.
    """

    seed: int
    bucket: Bucket
    counts: Counter[str] = field(default_factory=Counter)
    acknowledged: set[int] = field(default_factory=set)
    switches: list[str] = field(default_factory=list)
    leases: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.calm = self.rng.random() < CALM
        self.now, self.numbers = 0.0, 0
        self.actors: list[Actor] = []
        self.scheduler = getcurrent()
        self.uri = f"s3://studies/{self.seed}"

    def run(self, steps: int = 900) -> None:
        """Run it, then look at what is left of it.

        Raises:
            AssertionError: A row is lost or there twice, or two drivers wrote at once.
        """
        for _ in range(2):
            self._driver()
        Actor(self, self._process(), self._read)
        for _ in range(steps):
            if not self._step():
                break
        for actor in self.actors:
            actor.process.dead = True
        for actor in self.actors:
            if not actor.over:
                actor.go()
        assert not self.failures, f"seed {self.seed}: {self.failures[0]!r}"
        self._check()

    def _process(self) -> Process:
        return Process(self.rng.uniform(-1e6, 1e6), self.rng.choice([1, 1, 1, 0.9, 1.1, 6]))

    def _step(self) -> bool:
        waiting = [a for a in self.actors if not a.over]
        ready = [a for a in waiting if max(a.wake, a.process.until) <= self.now]
        if not ready:
            later = [max(a.wake, a.process.until) for a in waiting]
            if not later:
                return False
            self.now = min(later)
            ready = [a for a in waiting if max(a.wake, a.process.until) <= self.now]
        actor = self.rng.choice(ready)
        if self.rng.random() < (0.15 if actor.risky else 0.02):
            self.counts["suspended"] += 1
            actor.process.until = self.now + self.rng.choice([1, 30, 100, 100, 400])
            return True
        if not self.calm and self.rng.random() < 0.004 and actor.script != self._read:
            self.counts["killed"] += 1
            actor.process.dead = True
            self._driver()  # somebody starts it again
        self.now += self.rng.choice([0.0, 0.01, 0.1, 1.0])
        actor.go()
        return True

    def _driver(self) -> None:
        Actor(self, self._process(), self._drive)

    def _store(self, holders: Holders | None = None) -> Store:
        return Store(Disk(self.uri, Requests(self.bucket)), holders or Holders())

    def _drive(self, actor: Actor) -> None:
        """A driver that starts again whatever happens to it."""
        while True:
            holders = Holders(ProcessClock(), renews=False, alone=Mutex)
            try:
                self._live(actor, self._store(holders), holders)
            except LockLost:
                self.counts["stopped: lease or manifest lost"] += 1
            except RaysenseError as error:
                taken = "is running this study" in str(error)
                self.counts["refused: another one runs" if taken else "stopped: storage"] += 1
            actor.sleep(self.rng.uniform(0, 60))

    def _live(self, actor: Actor, store: Store, holders: Holders) -> None:
        life = store.lock()
        with life:
            (lease,) = holders.locks.values()
            assert isinstance(lease, Lease)
            self.counts["lives"] += 1
            self.held.append(lease._token)
            Actor(self, actor.process, lambda own: self._renew(own, lease))
            store.begin({"name": "s"}, signature=SIGNATURE, denominators={"n_selected": 7})
            store.write_table("layers", pa.table({"layer": ["unet:a"], "step": [5]}))
            store.forget_failed()
            for _ in range(self.rng.randint(1, 4)):
                for _ in range(self.rng.randint(0, 3)):
                    self._measure(store)
                life.refuse_if_lost()
                if self.rng.random() < 0.3:
                    actor.sleep(self.rng.uniform(0, 50))
                self.counts["rows compacted"] += store.compact()

    def _measure(self, store: Store) -> None:
        again = self.rng.random() < 0.3 and self.numbers
        number = self.rng.randrange(self.numbers) if again else self.numbers
        self.numbers += not again
        if self.rng.random() < 0.2:
            store.put(evaluation(number, failed="no such file"), {"unet:a": number})
            return
        store.put(evaluation(number), {"unet:a": number})
        self.acknowledged.add(number)

    def _renew(self, actor: Actor, lease: Lease) -> None:
        """What the lease's own thread does."""
        while not lease._ended.is_set():
            actor.sleep(RENEW_SECONDS)
            if lease._ended.is_set():
                return
            try:
                lease.renew()
            except LockLost:
                return
            except RaysenseError:
                self.counts["renewals failed"] += 1

    def _read(self, actor: Actor) -> None:
        """A reader finds every row that was acknowledged before it began, once, at any moment."""
        while True:
            actor.sleep(self.rng.uniform(0, 40))
            wanted = set(self.acknowledged)
            try:
                found = [e.zeros for e in self._store().evaluations() if not e.failed]
                rows = self._store().table("evaluations").to_pylist()
            except RaysenseError:
                continue  # the storage was out of reach
            self.counts["reads"] += 1
            table = [row["zeros"] for row in rows if not row["failed"]]
            for seen in (found, table):
                assert len(seen) == len(set(seen)), f"twice: {sorted(seen)}"
                assert wanted <= set(seen), f"lost: {sorted(wanted - set(seen))}"

    def _check(self) -> None:
        store = Store(Disk(self.uri, self.bucket), Holders())
        for _ in range(2):
            rows = [e.zeros for e in store.evaluations() if not e.failed]
            assert len(rows) == len(set(rows)), f"seed {self.seed}: twice"
            lost = self.acknowledged - set(rows)
            assert not lost, f"seed {self.seed}: lost {sorted(lost)}"
            table = [r["zeros"] for r in store.table("evaluations").to_pylist() if not r["failed"]]
            assert sorted(table) == sorted(rows)
            measured = [r["key"] for r in store.table("measures").to_pylist()]
            assert len(measured) == len(set(measured)) == len(rows)
            store = Store(Disk(self.uri, self.bucket), Holders())
        for who, tokens in (("manifest", self.switches), ("lease", self.leases)):
            blocks = [t for n, t in enumerate(tokens) if n == 0 or tokens[n - 1] != t]
            assert len(blocks) == len(set(blocks)), f"seed {self.seed}: two writers of the {who}"
        self.counts["interleavings"] += 1
        self.counts["rows"] += len(self.acknowledged)
        self.counts["switches"] += len(self.switches)
        self.counts["drivers that held the lease"] += len(set(self.leases))
