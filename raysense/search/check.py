"""Every file of a study verified, and what is broken made whole again: `raysense check`."""

from __future__ import annotations

from collections.abc import Iterator

from raysense.errors import OtherVersion, RaysenseError
from raysense.evaluation.cache import TensorCache
from raysense.evaluation.slices import damage_of
from raysense.store.disk import Disk, read_sealed
from raysense.store.repair import Broken, broken_objects, broken_tables, rebuild_tables
from raysense.store.store import Store

_ANEW = ("summary.json", "starts.json")


def check(uri: str) -> list[Broken]:
    """What is broken of a study: every object, table, manifest, description and cache entry is read.

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
        try:
            read_sealed(disk, name, "")
        except RaysenseError as error:
            yield Broken(name, str(error).strip(), "deleted; the study writes it anew when it is resumed")


def _cache(disk: Disk) -> Iterator[Broken]:
    cache = TensorCache(disk)
    for name, _ in disk.names("cache"):
        if name.endswith(".safetensors"):
            why = damage_of(disk.read(f"cache/{name}") or b"", name.removesuffix(".safetensors"))
        elif name.endswith(".json"):
            continue  # prompts: whoever reads them compares their content with the study's
        else:
            why = "" if cache.is_whole(name) else "its content does not match its checksum"
        if why:
            yield Broken(
                f"cache/{name}", f"`{disk.path(f'cache/{name}')}`: {why}", "deleted; it is made again"
            )
