"""What images are compared with: a folder or a table of images, COCO's photographs, or saved statistics.

A table is Parquet, JSON lines or CSV with a column of captions and one of images: a path (relative to the
table), encoded bytes, or the struct of both that Hugging Face `datasets` writes. Whatever the source,
reference images are cropped to the middle and resized with antialiasing to the size of the sampled ones: a
resize without it moves a Fréchet distance by 6 and more (Parmar, Zhang & Zhu, "On Aliased Resizing and
Surprising Subtleties in GAN Evaluation", 2022).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from raysense import user_files
from raysense.errors import RaysenseError
from raysense.metrics import gaussians, photographs
from raysense.metrics.features import BATCH, FeatureExtractor
from raysense.prompts.files import open_parquet, rows_of_csv, rows_of_jsonl

IMAGES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
"""What is decoded, whatever a file is called: other decoders of Pillow run programs or read no photographs."""
OTHER_IMAGES = {
    ".avif", ".eps", ".gif", ".heic", ".heif", ".ico", ".jfif", ".jp2", ".jxl", ".pbm", ".pgm", ".ppm", ".ps", ".tga",
}  # fmt: skip
"""Files that are pictures to whoever made the folder, but are not read."""
TABLES = {".csv", ".jsonl", ".parquet"}
STATISTICS = ".npz"
LARGEST_TABLE, LARGEST_IMAGE = 1 << 33, 1 << 31
"""Bytes that are read of a table of captions and paths, and of one image."""


@dataclass(frozen=True)
class Picture:
    """An image that is not decoded yet.

    Attributes:
        image: Its file, or its encoded bytes.
        caption: What it shows, or an empty string.
        where: How to name it in an error.
    """

    image: Path | bytes
    caption: str
    where: str


def check(path: Path, limit: int | None = None) -> None:
    """Refuse a reference that cannot be one, before anything is loaded.

    Raises:
        RaysenseError: It does not exist, or is neither a folder, a table nor saved statistics; photographs are missing.
    """
    if str(path) == photographs.NAME:
        photographs.files(limit)
        return
    known = [*sorted(TABLES), STATISTICS]
    if not path.exists():
        raise RaysenseError(f"`metrics.reference.path`: there is no {path}; give a folder or one of {known}")
    if not path.is_dir() and (path.suffix.lower() not in known or not path.is_file()):
        raise RaysenseError(f"`metrics.reference.path` must be a folder or one of {known}, but got {path}")


def captions(path: Path, column: str = "caption") -> list[str]:
    """The captions of a table, in order.

    Args:
        path: A .parquet, .jsonl or .csv file.
        column: The column that holds them.

    Raises:
        RaysenseError: If the table cannot be read, is empty or lacks the column.
    """
    found = [str(cell(row, column, where)) for row, where in rows(path, [column])]
    if not found:
        raise RaysenseError(f"captions {path}: there are none; give a table with at least one row.")
    return found


def pictures(path: Path, limit: int | None = None) -> Iterator[Picture]:
    """The images of a folder (sub-folders included, sorted by name) or of a table, one after the other.

    Args:
        path: A folder, a .parquet, .jsonl or .csv file, or the name of COCO's photographs.
        limit: Only the first so many.

    Raises:
        RaysenseError: If there is nothing there, or no such columns.
    """
    return islice(_all(path, limit), limit)


def _all(path: Path, limit: int | None) -> Iterator[Picture]:
    if str(path) == photographs.NAME:
        for file in photographs.files(limit):
            yield Picture(file, "", str(file))
        return
    if path.is_dir():
        there = sorted(path.rglob("*"))
        files = [file for file in there if file.suffix.lower() in IMAGES]
        if unread := [file for file in there if file.suffix.lower() in OTHER_IMAGES]:
            raise RaysenseError(
                f"reference {unread[0]}: {len(unread)} file(s) of this folder are images of a kind that is not read; "
                f"convert them to one of {sorted(IMAGES)}, or take them out."
            )
        if not files:
            raise RaysenseError(f"reference {path}: holds no image; give a folder with {sorted(IMAGES)}.")
        for file in files:
            yield Picture(file, "", str(file))
        return
    empty = True
    for row, where in rows(path, ["image", "caption"]):
        empty = False
        yield Picture(
            source(cell(row, "image", where), path.parent, where), str(cell(row, "caption", where)), where
        )
    if empty:
        raise RaysenseError(f"reference {path}: the table is empty; give at least two rows.")


def rows(path: Path, columns: list[str]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The rows of a table with how to name each in an error; of Parquet only these columns are read."""
    if path.suffix.lower() not in TABLES:
        raise RaysenseError(f"reference {path}: must be a folder or one of {sorted(TABLES)}, {STATISTICS}.")
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            found: Iterable[Mapping[str, Any]] = parquet_rows(path, columns)
        else:
            found = (rows_of_csv if kind == ".csv" else rows_of_jsonl)(user_files.read(path, LARGEST_TABLE))
        for number, row in enumerate(found, start=1):
            yield row, f"{path}, row {number}"
    except RaysenseError:
        raise
    except Exception as error:  # a damaged Parquet file alone raises a dozen types
        raise RaysenseError(f"reference {path}: cannot be read ({_reason(error)}).") from error


def parquet_rows(path: Path, columns: list[str]) -> Iterator[Mapping[str, Any]]:
    """The rows of a Parquet file, a few at a time in memory."""
    with open_parquet(path) as file:
        present = [column for column in columns if column in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=BATCH, columns=present, use_threads=False):
            yield from batch.to_pylist()


def cell(row: Mapping[str, Any], column: str, where: str) -> Any:
    """One cell of a row.

    Raises:
        RaysenseError: If the column is missing or empty there.
    """
    if row.get(column) is None:
        raise RaysenseError(f"reference {where}: has no `{column}`; its columns are {sorted(row)}.")
    return row[column]


def source(value: Any, folder: Path, where: str) -> Path | bytes:
    """An image's file or bytes from a cell: a path, bytes, or a mapping with ``bytes`` or ``path``."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value:
        return folder / value
    raise RaysenseError(
        f"reference {where}: its image is {type(value).__name__}; give a path or encoded bytes."
    )


def decode(picture: Picture, size: int) -> Tensor:
    """Decode, turn upright, lay on white, crop to the middle square and resize: (3, size, size) in [0, 1].

    Raises:
        RaysenseError: If it is no readable image, or one that could be read in more than one way.
    """
    try:
        upright = ImageOps.exif_transpose(_eight_bits(_loaded(picture.image))).convert("RGBA")
    except Exception as error:  # a dozen types: Pillow lets out what struct, zlib and its own parsers raise
        raise RaysenseError(
            f"reference {picture.where}: cannot be read as an image ({_reason(error)})."
        ) from error
    on_white = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
    fitted = ImageOps.fit(on_white, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255


def _reason(error: Exception) -> str:
    """Why, in one line; `user_files` has no number for its reasons."""
    return " ".join(str(error).removeprefix("[Errno 0] ").split())[:300] or type(error).__name__


def _loaded(image: Path | bytes) -> Image.Image:
    """The pixels of an image with one frame.

    Raises:
        Exception: It is damaged, of another format, or has several frames.
    """
    content = user_files.read(image, LARGEST_IMAGE) if isinstance(image, Path) else image
    try:
        opened = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"it is none of {', '.join(FORMATS)}, or damaged") from None
    # Some phones put a second picture (depth, brightness) behind a JPEG; the first one is the photograph.
    if opened.format != "MPO" and (frames := getattr(opened, "n_frames", 1)) > 1:
        raise ValueError(f"it has {frames} frames; give one picture a file")
    if opened.format == "PNG":  # decoding alone passes over the checksums of the pixels
        opened.verify()
        opened = Image.open(io.BytesIO(content), formats=FORMATS)
    opened.load()
    return opened


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel; Pillow's own conversion of 16 bits makes everything above 255 white.

    Raises:
        ValueError: Its pixels have no known range.
    """
    transparent = image.info.get("transparency")
    if not image.mode.startswith(("I", "F")):
        if isinstance(transparent, tuple) and max(transparent) > 255:
            raise ValueError("a transparent colour of 16 bits; save it with an alpha channel")
        return image
    tags = getattr(image, "tag_v2", {})
    bits, white_is_zero = tags.get(_BITS, (16,)), tags.get(_PHOTOMETRIC) == 0
    known = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if not known or bits != (16,) or white_is_zero:
        raise ValueError(
            f"its pixels (Pillow's mode {image.mode}) have no known range; save it with 8 or 16 bits a channel"
        )
    values = np.asarray(image).astype(np.float64)
    grey = Image.fromarray((values / 257).round().astype(np.uint8))
    alpha = np.full(values.shape, 255, np.uint8)
    if isinstance(transparent, int):
        alpha[values == transparent] = 0
    result = Image.merge("LA", (grey, Image.fromarray(alpha)))
    result.info["exif"] = image.info.get("exif", b"")
    return result


_BITS, _PHOTOMETRIC = 258, 262
"""TIFF's tags."""


def batches(found: Iterable[Picture], size: int, batch: int = BATCH) -> Iterator[Tensor]:
    """Decoded pictures, (n ≤ batch, 3, size, size) float32 in [0, 1] at a time."""
    left = iter(found)
    while some := list(islice(left, batch)):
        yield torch.stack([decode(picture, size) for picture in some])


def reference_features(
    path: Path, extractor: FeatureExtractor, size: int, limit: int | None = None
) -> Tensor:
    """Features of a folder's or a table's images.

    Args:
        path: See `pictures`.
        extractor: Which network.
        size: Side of the sampled images, in pixels.
        limit: Use only the first so many.

    Returns:
        (m, d) float32.

    Raises:
        RaysenseError: See `pictures` and `decode`.
    """
    return torch.cat([extractor.images(part) for part in batches(pictures(path, limit), size)])


def reference_statistics(
    path: Path, extractor: FeatureExtractor, size: int, limit: int | None = None
) -> gaussians.Gaussian:
    """Statistics for the Fréchet distance: read if saved (.npz), else computed as in `reference_features`."""
    if path.suffix.lower() == STATISTICS:
        return gaussians.load(path, extractor.name)
    return gaussians.statistics(reference_features(path, extractor, size, limit))
