"""COCO's photographs as the reference: the pictures whose captions `coco-train2017` searches on. No torch here.

`raysense prepare` fetches them, once a machine, into the folder ``coco-train2017`` of raysense's cache. What the server
sends counts only if all of it arrives and decodes as a JPEG; COCO publishes no hashes of single pictures, so the one
that a picture had when it came is recorded beside it (``photographs.sha256``, as `sha256sum -c` reads it), and another
content is fetched anew. Pictures that were put there by hand, out of COCO's train2017.zip, are taken as they are.
Pictures: Flickr's users, under their own licences; Lin et al., "Microsoft COCO: Common Objects in Context" (2014).
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from filelock import FileLock
from PIL import Image

from raysense.errors import RaysenseError
from raysense.prompts import coco

NAME = coco.NAME
"""What `metrics.reference.path` says instead of a path."""

SERVER = "http://images.cocodataset.org/train2017/"
MEAN_BYTES = 163_500
"""Of a picture: train2017.zip has 19.3 GB and 118,287 pictures."""

AT_A_TIME = 4
TRIES = 3
EVERY = 500
"""Pictures between two records of hashes, and between two words about how far it is."""

HASHES = "photographs.sha256"
_LINE = re.compile(r"([0-9a-f]{64})  (\d{12}\.jpg)")


def folder() -> Path:
    """Where the pictures are on this machine."""
    return coco.cache() / NAME


def count(limit: int | None) -> int:
    """How many pictures the reference has.

    Args:
        limit: Of these the first so many; None for all.
    """
    return min(limit or coco.PER_SET, coco.PER_SET)


def names(limit: int | None) -> list[str]:
    """The pictures' files, in the order of their captions, which are downloaded if they are not there.

    Args:
        limit: See `count`.

    Raises:
        RaysenseError: The captions cannot be had.
    """
    searched = [row["id"] for row in coco.rows() if row["split"] == "search"]
    return [f"{int(identity.removeprefix('coco-')):012d}.jpg" for identity in searched[: count(limit)]]


def files(limit: int | None) -> list[Path]:
    """The pictures, all of them there.

    Args:
        limit: See `count`.

    Raises:
        RaysenseError: Some are missing.
    """
    found = [folder() / name for name in names(limit)]
    there = {entry.name for entry in os.scandir(folder())} if folder().is_dir() else set()
    if missing := [file for file in found if file.name not in there]:
        raise RaysenseError(
            f"`metrics.reference.path` {NAME}: {len(missing):,} of {len(found):,} photographs are missing on this "
            f"machine, such as {missing[0]}; fetch them with `raysense prepare STUDY`, once for all machines that "
            "share the folder that RAYSENSE_CACHE names"
        )
    return found


def need(limit: int | None) -> str:
    """What the pictures take, in a sentence; nothing is downloaded to know it.

    Args:
        limit: See `count`.
    """
    n = count(limit)
    there = sum(entry.name.endswith(".jpg") for entry in os.scandir(folder())) if folder().is_dir() else 0
    return (
        f"The reference: {n:,} photographs of COCO, some {n * MEAN_BYTES / 1e9:.2g} GB in {folder()} ({there:,} are "
        "there); `raysense prepare` fetches them."
    )


def fetch(limit: int | None) -> Iterator[int]:
    """Fetch what is missing and check what is there; gives, now and then and at the end, how many pictures are.

    Args:
        limit: See `count`.

    Raises:
        RaysenseError: A picture cannot be had, or there is no room; what came before stays.
    """
    wanted, where = names(limit), folder()
    try:
        where.mkdir(parents=True, exist_ok=True)
        with FileLock(where / ".lock"):  # two studies of one machine
            yield from _fetched(wanted, where)
    except OSError as error:
        raise RaysenseError(
            f"`metrics.reference.path` {NAME}: {where} cannot be written ({error.strerror or error}); mend that, or "
            "set RAYSENSE_CACHE to another folder"
        ) from error


def _fetched(wanted: Sequence[str], where: Path) -> Iterator[int]:
    for left in where.glob("tmp*"):
        left.unlink()  # of a process that was killed
    hashes = _recorded(where)
    _refuse_full_disk(where, sum(not (where / name).exists() for name in wanted))
    pictures, done = _pooch(where, {name: hashes.get(name) for name in wanted}), 0
    workers = ThreadPoolExecutor(AT_A_TIME)
    try:
        asked = {workers.submit(_one, pictures, where, name): name for name in wanted}
        for future in as_completed(asked):
            hashes[asked[future]] = _of(future, len(wanted) - done)
            done += 1
            if done % EVERY == 0 and done < len(wanted):
                _record(where, hashes)
                yield done
    finally:
        workers.shutdown(cancel_futures=True)
        _record(where, hashes)
    yield done


def _pooch(where: Path, hashes: dict[str, str | None]) -> Any:
    """What fetches a file into its place, whole, up to `TRIES` times, unless it is there with its hash."""
    import pooch  # `validate` asks this module for a name only, and shall answer at once

    pooch.get_logger().setLevel(logging.WARNING)  # a line a picture otherwise
    return pooch.create(path=where, base_url=SERVER, registry=hashes, retry_if_failed=TRIES - 1)


def _one(pictures: Any, where: Path, name: str) -> str:
    """Have one picture in its place; gives its hash."""
    import pooch

    download = pooch.HTTPDownloader(timeout=30, chunk_size=1 << 16)

    def whole(url: str, output: str, asker: Any) -> None:
        download(url, output, asker)
        _refuse_damaged(Path(output))

    place = where / name
    if place.exists() and pictures.registry[name] is None:
        try:
            _refuse_damaged(place)
        except ValueError:
            place.unlink()
    pictures.fetch(name, downloader=whole)
    with place.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of(future: Any, left: int) -> str:
    """A picture's hash.

    Raises:
        RaysenseError: It could not be had.
    """
    from requests import RequestException

    try:
        found: str = future.result()
    except (RequestException, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RaysenseError(
            f"`metrics.reference.path` {NAME}: {left:,} photographs are still to come, but {SERVER} does not give them "
            f"({reason}); run `raysense prepare` again where there is a network, it goes on; or copy them, out of "
            f"COCO's train2017.zip for instance, into {folder()}"
        ) from error
    return found


def _refuse_damaged(file: Path) -> None:
    """Raises a ValueError, which is tried again, unless it is one whole JPEG."""
    try:
        with Image.open(file, formats=("JPEG",)) as image:
            image.load()
    except Exception as error:  # Pillow lets out what struct and its own parsers raise
        raise ValueError(f"{file.name}: what came is no whole JPEG ({error})") from error


def _refuse_full_disk(where: Path, missing: int) -> None:
    free, wanted = shutil.disk_usage(where).free, missing * MEAN_BYTES
    if free < wanted:
        raise RaysenseError(
            f"`metrics.reference.path` {NAME}: {missing:,} photographs take some {wanted / 1e9:.2g} GB, but {where} "
            f"has {free / 1e9:.2g} GB left; make room, set RAYSENSE_CACHE to another disk, or lower "
            "`metrics.reference.limit`"
        )


def _recorded(where: Path) -> dict[str, str]:
    """File -> hash, of the pictures that were fetched before.

    Raises:
        RaysenseError: The record is damaged.
    """
    record, found = where / HASHES, {}
    if not record.exists():
        return {}
    for line in record.read_text(encoding="utf-8", errors="replace").splitlines():
        if (parts := _LINE.fullmatch(line)) is None:
            raise RaysenseError(
                f"{record} is damaged ({line[:40]!r}); delete it, and what is there is recorded anew"
            )
        found[parts[2]] = parts[1]
    return found


def _record(where: Path, hashes: dict[str, str]) -> None:
    partial = where / f"{HASHES}.partial"
    partial.write_text("".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)), encoding="utf-8")
    partial.replace(where / HASHES)
