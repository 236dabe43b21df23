"""Every file of a study verified, and what is broken made whole again: `raysense check`."""

from __future__ import annotations

from collections.abc import Iterator

from raysense.errors import OtherVersion, RaysenseError
from raysense.evaluation.cache import TensorCache
from raysense.evaluation.inputs import stored_prompts
from raysense.evaluation.solved_weights import damage_of
from raysense.store.disk import Disk, read_sealed
from raysense.store.repair import Broken, broken_objects, broken_tables, rebuild_tables
from raysense.store.store import Store

_ANEW = ("summary.json", "starts.json", "plugins.json", "sweep.json")
_WHEN_RESUMED = "deleted; the study writes it anew when it is resumed"


def check(uri: str) -> list[Broken]:
    """What is broken of a study: objects, tables, manifest, descriptions, prompts, plug-ins' code, cache are all read.

    Args:
        uri: Its folder or address.

    Raises:
        RaysenseError: There is no study, or another version of raysense wrote it.
    """
    disk = Disk(uri)
    try:
        store = Store.open(uri)
    except OtherVersion:
        raise
    except RaysenseError as error:
        if disk.read("study.json") is None:
            raise
        remedy = "restore it from a copy: it cannot be made anew"
        return [Broken("study.json", str(error), remedy, mendable=False)]
    return [*_descriptions(disk), *broken_objects(disk), *broken_tables(store), *_cache(disk)]


def repair(uri: str, broken: list[Broken]) -> list[str]:
    """Mend what can be; gives a line for each thing done.

    Args:
        uri: The study's folder or address.
        broken: What `check` found.

    Raises:
        RaysenseError: Another driver runs on the study, or it cannot be written.
    """
    disk, done = Disk(uri), []
    store = Store.open(uri)
    single = [b for b in broken if b.mendable and not b.file.startswith(("tables/", "manifest"))]
    with store.lock():
        for entry in single:
            disk.delete([entry.file])
            done.append(f"{entry.file}: {entry.remedy}")
        if any(b.file.startswith(("tables/", "manifest")) for b in broken):
            out = rebuild_tables(disk, store)
            left = len(Store.open(uri).evaluations())
            done.append(
                f"tables: written anew with {left} evaluations; {out} lack a part and are measured again"
            )
    return done


def _descriptions(disk: Disk) -> Iterator[Broken]:
    for name in _ANEW:
        if why := _damage(disk, name):
            yield Broken(name, why, _WHEN_RESUMED)
    for name, _ in disk.names("prompts"):
        if stored_prompts(disk, name.removesuffix(".json")) is None:
            file = f"prompts/{name}"
            yield Broken(file, f"`{disk.path(file)}`: its content is not what its name says", _WHEN_RESUMED)


def _cache(disk: Disk) -> Iterator[Broken]:
    cache = TensorCache(disk)
    for name, _ in disk.names("cache"):
        file = f"cache/{name}"
        if name.endswith(".json"):
            why = _damage(disk, file)
        elif name.endswith(".safetensors"):
            found = damage_of(disk.read(file) or b"", name.removesuffix(".safetensors"))
            why = found and f"`{disk.path(file)}`: {found}"
        else:
            why = (
                ""
                if cache.is_whole(name)
                else f"`{disk.path(file)}`: its content does not match its checksum"
            )
        if why:
            yield Broken(file, why, "deleted; it is made again")


def _damage(disk: Disk, name: str) -> str:
    """Why a sealed file cannot be read, or an empty text."""
    try:
        read_sealed(disk, name, "")
    except RaysenseError as error:
        return str(error).strip()
    return ""
