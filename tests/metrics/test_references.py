from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.metrics import frechet, references

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


def test_statistics_are_read_or_computed(folder: Path) -> None:
    network = Shrunk()
    computed = references.reference_statistics(folder, network, size=32)
    features = references.reference_features(folder, network, size=32)
    assert computed.n == len(features) == 6
    assert frechet.distance(computed, frechet.statistics(features)) == pytest.approx(0, abs=1e-9)
    frechet.save(computed, folder / "saved.npz", network.name)
    read = references.reference_statistics(folder / "saved.npz", network, size=32)
    assert frechet.distance(computed, read) == pytest.approx(0, abs=1e-9)
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
