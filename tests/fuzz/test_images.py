"""Reference images, tables and statistics with mutated bytes: read as pictures, or refused in one line."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raysense.metrics import gaussians, references
from tests.fuzz.harness import Case, Changed, run

SIZE = 16


def _images() -> dict[str, bytes]:
    """One a format and mode."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8))
    grey16 = Image.fromarray(rng.integers(0, 65536, (20, 24), np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    saved: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "rgb.png": (colour, "PNG", {}),
        "palette.png": (colour.convert("P"), "PNG", {"transparency": 3}),
        "alpha.png": (colour.convert("RGBA"), "PNG", {"exif": exif}),
        "grey16.png": (grey16, "PNG", {}),
        "rgb.jpg": (colour, "JPEG", {"exif": exif}),
        "cmyk.jpg": (colour.convert("CMYK"), "JPEG", {"progressive": True}),
        "rgb.webp": (colour, "WEBP", {"exif": exif}),
        "lossless.webp": (colour.convert("RGBA"), "WEBP", {"lossless": True}),
        "rgb.bmp": (colour, "BMP", {}),
        "palette.bmp": (colour.convert("P"), "BMP", {}),
        "lzw.tif": (colour, "TIFF", {"compression": "tiff_lzw"}),
        "plain.tif": (grey16, "TIFF", {}),
    }
    found = {}
    for name, (image, kind, options) in saved.items():
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        found[name] = stream.getvalue()
    return found


def mutated(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    content = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content) + 1)
        match rng.randrange(7):
            case 0 if place < len(content):
                content[place] ^= 1 << rng.randrange(8)
            case 1:
                content[place : place + rng.randint(1, 8)] = rng.randbytes(rng.randint(0, 8))
            case 2:
                del content[place:]
            case 3:
                content[place : place + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"])
            case 4:
                other = rng.choice(others)
                content[place:] = other[rng.randrange(len(other)) :]
            case 5 if place < len(content):
                content[place] = rng.choice([0, 1, 127, 128, 255])
            case _:
                content[place:place] = content[: rng.randint(0, 40)]
    return bytes(content)


def _decode(name: str, content: bytes, wanted: torch.Tensor) -> None:
    pixels = references.decode(references.Picture(content, "", name), SIZE)
    assert pixels.shape == (3, SIZE, SIZE)
    assert pixels.dtype == torch.float32
    assert bool(((pixels >= 0) & (pixels <= 1)).all())
    if name.endswith(".png") and not torch.equal(pixels, wanted):  # only PNG has checksums
        raise Changed("other pixels")


def _image_cases(count: int, seed: int, change: Callable[..., bytes] = mutated) -> list[Case]:
    images = _images()
    wanted = {
        name: references.decode(references.Picture(data, "", name), SIZE) for name, data in images.items()
    }
    rng, cases = random.Random(seed), list[Case]()
    for number, name in zip(range(count), itertools.cycle(images), strict=False):
        content = change(rng, images[name], list(images.values()))
        # What another PNG has become is a whole picture again; its pixels are not the first one's.
        compared = name if not (name.endswith(".png") and _is_whole_png(content)) else "other"
        cases.append((f"{name} {number}", partial(_decode, compared, content, wanted[name])))
    return cases


def _is_whole_png(content: bytes) -> bool:
    """Whether all chunks match their checksums: the mutation only cut between chunks, or repeated some."""
    try:
        Image.open(io.BytesIO(content), formats=("PNG",)).verify()
    except Exception:
        return False
    return True


def test_mutated_images() -> None:
    run("reference images: bytes mutated", _image_cases(360, 0)).check()


@pytest.mark.long
def test_many_mutated_images() -> None:
    run("reference images: bytes mutated", _image_cases(4_000, 10_000)).check()


# --- tables and statistics --------------------------------------------------------------------------------


def _table(checksums: bool) -> bytes:
    images = [{"bytes": data, "path": None} for data in _images().values()]
    rows = {"image": images, "caption": [f"number {n}, really" for n in range(len(images))]}
    stream = io.BytesIO()
    pq.write_table(pa.table(rows), stream, write_page_checksum=checksums)
    return stream.getvalue()


def _others() -> dict[str, bytes]:
    lines = "".join(f'{{"image": "{n}.png", "caption": "number {n}"}}\n' for n in range(4))
    stream = io.BytesIO()
    np.savez(stream, mu=np.arange(3.0), sigma=np.eye(3), n=10, extractor=np.array("x"))
    return {
        "a.parquet": _table(True),
        "b.parquet": _table(False),
        "c.jsonl": lines.encode(),
        "d.csv": b"image,caption\n" + b"".join(b'%d.png,"number %d, really"\n' % (n, n) for n in range(4)),
        "e.npz": stream.getvalue(),
    }


def _read(folder: Path, name: str, number: int, content: bytes) -> None:
    path = folder / f"{number}{name}"
    path.write_bytes(content)
    try:
        if name.endswith(".npz"):
            found = gaussians.load(path, "x")
            if not np.allclose(found.mean, np.arange(3.0)) or not np.allclose(found.covariance, np.eye(3)):
                raise Changed("other statistics")
        else:
            for picture in references.pictures(path):
                assert isinstance(picture.caption, str)
    finally:
        path.unlink()


def _table_cases(folder: Path, count: int, seed: int) -> list[Case]:
    contents = _others()
    rng = random.Random(seed)
    return [
        (
            f"{name} {n}",
            partial(_read, folder, name, n, mutated(rng, contents[name], list(contents.values()))),
        )
        for n, name in zip(range(count), itertools.cycle(contents), strict=False)
    ]


def test_mutated_tables_and_statistics(tmp_path: Path) -> None:
    run("reference tables and statistics: bytes mutated", _table_cases(tmp_path, 200, 0)).check()


@pytest.mark.long
def test_many_mutated_tables_and_statistics(tmp_path: Path) -> None:
    run("reference tables and statistics: bytes mutated", _table_cases(tmp_path, 2_000, 10_000)).check()
