from __future__ import annotations

import csv
import io
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.hashing import file_hash
from raysense.metrics import gaussians, references

from .conftest import paint


class Shrunk:
    """An extractor that is cheap: the image at 3 × 3."""

    name = "shrunk"

    def images(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 3).flatten(1)


def picture(image: Tensor) -> Image.Image:
    return Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def png(image: Tensor) -> bytes:
    stream = io.BytesIO()
    picture(image).save(stream, "png")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, image in enumerate(paint(6, seed=0)):
        target = tmp_path / "pictures" / str(index % 2) / f"{index}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        picture(image).save(target)
    (tmp_path / "pictures" / "notes.txt").write_text("no image")
    return tmp_path / "pictures"


def write_csv(folder: Path) -> Path:
    with (folder / "t.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "caption"])
        writer.writerows([f"0/{i}.png", f"number {i}, really"] for i in (0, 2, 4))
    return folder / "t.csv"


def write_jsonl(folder: Path) -> Path:
    lines = [json.dumps({"image": f"0/{i}.png", "caption": f"number {i}, really"}) for i in (0, 2, 4)]
    (folder / "t.jsonl").write_text("\n".join(lines) + "\n\n")
    return folder / "t.jsonl"


def write_parquet_of_paths(folder: Path) -> Path:
    table = {
        "image": [f"0/{i}.png" for i in (0, 2, 4)],
        "caption": [f"number {i}, really" for i in (0, 2, 4)],
    }
    pq.write_table(pa.table(table), folder / "p.parquet")
    return folder / "p.parquet"


def write_parquet_of_bytes(folder: Path) -> Path:
    images = [{"bytes": png(paint(6, seed=0)[i]), "path": None} for i in (0, 2, 4)]
    table = {"image": images, "caption": [f"number {i}, really" for i in (0, 2, 4)], "other": [1, 2, 3]}
    pq.write_table(pa.table(table), folder / "b.parquet")
    return folder / "b.parquet"


WRITERS = [write_csv, write_jsonl, write_parquet_of_paths, write_parquet_of_bytes]


@pytest.mark.parametrize("write", WRITERS)
def test_tables_give_captions_and_images(folder: Path, write: Callable[[Path], Path]) -> None:
    path = write(folder)
    assert references.captions(path) == ["number 0, really", "number 2, really", "number 4, really"]
    found = list(references.pictures(path))
    assert [one.caption for one in found] == references.captions(path)
    decoded = torch.cat(list(references.batches(found, size=32, batch=2)))
    assert torch.allclose(decoded, paint(6, seed=0)[[0, 2, 4]], atol=0.5 / 255 + 1e-6)


def test_a_folder_is_read_in_order_of_names(folder: Path) -> None:
    found = torch.cat(list(references.batches(references.pictures(folder), size=32)))
    assert torch.allclose(found, paint(6, seed=0)[[0, 2, 4, 1, 3, 5]], atol=0.5 / 255 + 1e-6)


def test_images_are_cropped_and_shrunk_with_antialiasing(tmp_path: Path) -> None:
    stripes = torch.zeros(3, 64, 96)
    stripes[:, :, ::2] = 1.0  # finer than the smaller image can show: must turn grey
    picture(stripes).save(tmp_path / "s.png")
    [small] = references.batches(references.pictures(tmp_path), size=16)
    assert small.shape == (1, 3, 16, 16)
    assert float((small - 0.5).abs().max()) < 0.05


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    [image] = references.batches(references.pictures(tmp_path), size=8)
    assert (image == 1).all()


GREY = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
COLOUR = np.stack([GREY, GREY.T, 255 - GREY], axis=-1)
GREY_PIXELS = np.repeat(GREY[..., None], 3, axis=-1)


def decoded(image: bytes | Path, size: int = 8) -> np.ndarray[Any, Any]:
    pixels = references.decode(references.Picture(image, "", "it"), size)
    return (pixels.permute(1, 2, 0).numpy() * 255).round().astype(np.int64)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _sixteen(kind: str, byte_order: str = "<") -> bytes:
    return saved(Image.fromarray((GREY.astype(np.uint16) * 257).astype(f"{byte_order}u2")), kind)


def _png_16(colour: int, pixels: np.ndarray[Any, Any], transparent: bytes = b"") -> bytes:
    """A PNG with 16 bits a channel, which Pillow itself does not write in colour."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + checksum

    rows = (pixels.astype(np.uint16) * 257).astype(">u2").reshape(8, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = (8).to_bytes(4, "big") * 2 + bytes([16, colour, 0, 0, 0])
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    if transparent:
        parts.insert(1, chunk(b"tRNS", transparent))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _half_clear(mode: str) -> Image.Image:
    """Colour under an alpha that is 0 in the left half."""
    alpha = np.full((8, 8), 255, np.uint8)
    alpha[:, :4] = 0
    base = Image.fromarray(GREY if mode == "LA" else COLOUR)
    base.putalpha(Image.fromarray(alpha))
    return base


def _on_white(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    found = pixels.astype(np.int64)
    found[:, :4] = 255
    return found


@pytest.mark.parametrize(
    ("image", "wanted", "tolerance"),
    [
        pytest.param(lambda: _sixteen("PNG"), GREY_PIXELS, 0, id="16-bit grey PNG"),
        pytest.param(lambda: _sixteen("TIFF"), GREY_PIXELS, 0, id="16-bit grey TIFF"),
        pytest.param(lambda: _sixteen("TIFF", ">"), GREY_PIXELS, 0, id="16-bit grey TIFF, big-endian"),
        pytest.param(lambda: _png_16(0, GREY), GREY_PIXELS, 0, id="16-bit grey PNG by hand"),
        pytest.param(lambda: _png_16(2, COLOUR), COLOUR, 0, id="16-bit RGB PNG"),
        pytest.param(lambda: _png_16(4, np.stack([GREY, np.full_like(GREY, 255)], -1)), GREY_PIXELS, 0, id="16-bit LA"),
        pytest.param(lambda: _png_16(0, GREY, b"\0\0"), None, 0, id="16-bit grey, black is transparent"),
        pytest.param(lambda: saved(Image.fromarray(GREY), "PNG"), GREY_PIXELS, 0, id="L"),
        pytest.param(lambda: saved(Image.fromarray(GREY), "BMP"), GREY_PIXELS, 0, id="L in BMP"),
        pytest.param(lambda: saved(Image.fromarray(GREY > 127), "PNG"), (GREY_PIXELS > 127) * 255, 0, id="1"),
        pytest.param(lambda: saved(Image.fromarray(COLOUR), "TIFF"), COLOUR, 0, id="RGB in TIFF"),
        pytest.param(lambda: saved(Image.fromarray(COLOUR), "WEBP", lossless=True), COLOUR, 0, id="WebP"),
        pytest.param(lambda: saved(Image.fromarray(GREY).convert("P"), "PNG"), GREY_PIXELS, 0, id="P"),
        pytest.param(lambda: saved(_half_clear("LA"), "PNG"), _on_white(GREY_PIXELS), 0, id="LA"),
        pytest.param(lambda: saved(_half_clear("RGBA"), "PNG"), _on_white(COLOUR), 0, id="RGBA"),
        pytest.param(lambda: saved(_half_clear("RGBA"), "WEBP", lossless=True), _on_white(COLOUR), 0, id="WebP, alpha"),
        pytest.param(
            lambda: saved(Image.fromarray(COLOUR).convert("CMYK"), "TIFF"), COLOUR, 1, id="CMYK in TIFF"
        ),
        pytest.param(
            lambda: saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100),
            np.full((8, 8, 3), (255, 0, 0)), 3, id="CMYK in JPEG is red",
        ),
        pytest.param(lambda: saved(Image.new("L", (8, 8), 77), "JPEG"), np.full((8, 8, 3), 77), 1, id="grey JPEG"),
    ],
)  # fmt: skip
def test_every_kind_of_pixel_is_read_right(
    image: Callable[[], bytes], wanted: np.ndarray[Any, Any] | None, tolerance: int
) -> None:
    if wanted is None:
        wanted = GREY_PIXELS.copy()
        wanted[GREY == 0] = 255
    assert np.abs(decoded(image()) - wanted.astype(np.int64)).max() <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("sixteen", [False, True])
def test_a_picture_is_turned_upright(kind: str, sixteen: bool) -> None:
    if sixteen and kind not in ("PNG", "TIFF"):
        pytest.skip("has no 16 bits")
    lying = np.zeros((16, 16), np.uint16 if sixteen else np.uint8)
    lying[:, :8] = 65535 if sixteen else 255  # bright on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise makes left top
    upright = decoded(saved(Image.fromarray(lying), kind, exif=exif), 16)
    assert upright[:6].min() > 240
    assert upright[10:].max() < 15


def _frames(kind: str) -> bytes:
    first, second = Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)
    return saved(first, kind, save_all=True, append_images=[second])


@pytest.mark.parametrize(
    ("image", "words"),
    [
        pytest.param(
            lambda: saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "no known range", id="F"
        ),
        pytest.param(lambda: saved(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "no known range", id="I"),
        pytest.param(lambda: _frames("PNG"), "2 frames", id="animated PNG"),
        pytest.param(lambda: _frames("TIFF"), "2 frames", id="TIFF of two pages"),
        pytest.param(lambda: _frames("WEBP"), "2 frames", id="animated WebP"),
        pytest.param(lambda: saved(Image.fromarray(COLOUR), "GIF"), "it is none of", id="GIF"),
        pytest.param(lambda: saved(Image.fromarray(COLOUR), "EPS"), "it is none of", id="EPS"),
        pytest.param(lambda: saved(Image.fromarray(COLOUR), "PPM"), "it is none of", id="PPM"),
        pytest.param(
            lambda: _png_16(2, COLOUR, b"\xff\xff\0\0\0\0"), "16 bits", id="a transparent 16-bit colour"
        ),
        pytest.param(lambda: b"", "it is none of", id="empty"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(image: Callable[[], bytes], words: str) -> None:
    with pytest.raises(RaysenseError, match=f"reference it: cannot be read as an image.*{words}"):
        decoded(image())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
def test_a_truncated_picture_is_refused(kind: str) -> None:
    rng = np.random.default_rng(0)
    whole = saved(Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)), kind)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(RaysenseError, match="reference it: cannot be read as an image"):
            decoded(whole[: int(len(whole) * share)])


def test_a_flipped_bit_of_a_png_is_refused() -> None:
    whole = saved(Image.fromarray(COLOUR), "PNG")
    wanted = decoded(whole)
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert (decoded(bytes(flipped)) == wanted).all()
        except RaysenseError:
            continue


def test_pictures_of_a_kind_that_is_not_read_are_not_passed_over(folder: Path) -> None:
    (folder / "0" / "x.GIF").write_bytes(b"")
    with pytest.raises(RaysenseError, match=r"x\.GIF: 1 file\(s\) of this folder are images of a kind"):
        list(references.pictures(folder))


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl", "folder/r.png"])
@pytest.mark.parametrize("endless", ["device", "pipe"])
def test_what_may_never_end_is_refused(name: str, endless: str, tmp_path: Path) -> None:
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    if endless == "device":
        place.symlink_to("/dev/zero")
    else:
        os.mkfifo(place)
    path = place.parent if place.suffix == ".png" else place
    with pytest.raises(RaysenseError, match=r"r\.\w+: cannot be read [a-z ]*\(it is no plain file\)"):
        list(references.batches(references.pictures(path), size=16))
    with pytest.raises(RaysenseError, match="it is no plain file"):
        file_hash(place)
    if path is place:
        with pytest.raises(RaysenseError, match="must be a folder or one of"):
            references.check(path)


def test_statistics_are_read_or_computed(folder: Path) -> None:
    network = Shrunk()
    computed = references.reference_statistics(folder, network, size=32)
    features = references.reference_features(folder, network, size=32)
    assert computed.n == len(features) == 6
    assert gaussians.distance(computed, gaussians.statistics(features)) == pytest.approx(0, abs=1e-9)
    gaussians.save(computed, folder / "saved.npz", network.name)
    read = references.reference_statistics(folder / "saved.npz", network, size=32)
    assert gaussians.distance(computed, read) == pytest.approx(0, abs=1e-9)
    assert references.reference_statistics(folder, network, size=32, limit=4).n == 4


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: write(path / "sub" / "a.txt", "x").parent, "holds no image"),
        (lambda path: write(path / "a.xlsx", "x"), "must be a folder or one of"),
        (lambda path: path / "none.csv", "cannot be read"),
        (lambda path: write(path / "a.parquet", "x"), "cannot be read"),
        (lambda path: write(path / "a.jsonl", "{"), "cannot be read"),
        (lambda path: write(path / "a.csv", "image,caption\n"), "the table is empty"),
        (lambda path: write(path / "a.csv", "image,text\nx.png,cat\n"), r"row 1: has no `caption`.*text"),
        (
            lambda path: write(path / "a.csv", "image,caption\nx.png,cat\n"),
            "row 1: cannot be read as an image",
        ),
        (lambda path: write(path / "a.jsonl", '{"image": 3, "caption": "cat"}'), "its image is int"),
        (lambda path: write(path / "a.jsonl", '{"image": {}, "caption": "cat"}'), "its image is NoneType"),
    ],
)
def test_errors_say_what_and_where(make: Callable[[Path], Path], words: str, tmp_path: Path) -> None:
    with pytest.raises(RaysenseError, match=words):
        list(references.batches(references.pictures(make(tmp_path)), size=8))


def test_a_table_without_captions_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RaysenseError, match="there are none"):
        references.captions(write(tmp_path / "a.jsonl", "\n"))
