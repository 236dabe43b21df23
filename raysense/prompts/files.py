"""Reads the files that prompts come in: rows of named values, exactly as written, or a refusal. No torch here.

A reader changes nothing on the way: what a format leaves open (a row with more cells than the header, a quote that
is never closed, a key that stands twice) is refused with its place, never guessed.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from raysense import user_files
from raysense.errors import RaysenseError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

Row = Mapping[str, Any]

TEXT_COLUMNS = ("prompt", "prompts", "caption", "captions", "text", "texts", "description", "sentence")
"""Names, in any case, of a column of prompts; `prompt` itself goes before the others."""

LARGEST_BYTES = 1 << 30
LINES_IN_A_CELL = 20
"""More line breaks than that in one prompt of a .csv mean a quote that was closed by accident, rows below."""


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of prompts, in order, under the file's own column names.

    A row of a list without names (`.txt`, a JSON list of strings) has the one column ``prompt``.

    Raises:
        RaysenseError: The file cannot be read, is of another kind, or is damaged; the message says where.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        *others, last = READERS
        raise RaysenseError(
            f"`prompts` must be `bundled`, `coco-train2017` or a {', '.join(others)} or {last} file, but got `{path}`"
        )
    try:
        return READERS[suffix](user_files.read(path, LARGEST_BYTES))
    except OSError as error:
        raise RaysenseError(f"`prompts`: cannot read `{path}`: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RaysenseError(f"`prompts`: `{path}` is damaged or no {suffix} file: {reason[:300]}") from None


def decoded(data: bytes) -> str:
    """Text of UTF-8, with or without a byte order mark.

    Raises:
        ValueError: It is none.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        raise ValueError("it is UTF-16 or UTF-32; save the file as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8; save the file as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"line {line} holds a NUL character: if it is UTF-16, save the file as UTF-8")
    return text


def rows_of_jsonl(data: bytes) -> list[Row]:
    r"""A JSON object, or a string, a line; a line ends at \n or \r\n and nowhere else."""
    return list(_json_lines(decoded(data)))


def _json_lines(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip(" \t\r"):
            continue
        try:
            value = _json(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: {error}") from None
        yield _row(value, f"line {number}")


def rows_of_json(data: bytes) -> list[Row]:
    """A list of strings or objects, a mapping from ids to either, or COCO's file of captions.

    Of COCO's captions the first one of each picture counts: the five of one picture say the same.
    """
    text = decoded(data)
    try:
        content = _json(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        return list(_json_lines(text))  # many call a file of JSON lines .json
    if isinstance(content, list):
        return [_row(value, f"entry {number}") for number, value in enumerate(content, 1)]
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        return _coco(content["annotations"])
    if isinstance(content, dict) and all(isinstance(value, (dict, str)) for value in content.values()):
        return [{"id": key, **_row(value, f"the entry {key!r}")} for key, value in content.items()]
    raise ValueError("it must hold a list, a mapping from ids to prompts, or COCO's `annotations`")


def _coco(annotations: Sequence[Any]) -> list[Row]:
    first: dict[Any, Row] = {}
    for number, annotation in enumerate(annotations, 1):
        if not isinstance(annotation, dict) or not {"image_id", "caption"} <= set(annotation):
            raise ValueError(f"annotation {number} has no `image_id` or no `caption`: no file of captions?")
        picture = annotation["image_id"]
        if not isinstance(picture, (int, str)) or isinstance(picture, bool):
            raise ValueError(f"annotation {number}: `image_id` must be a number or a name")
        first.setdefault(picture, {"id": picture, "prompt": annotation["caption"]})
    return list(first.values())


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _row(value: Any, place: str) -> Row:
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict):
        raise ValueError(f"{place} must be a JSON object or a string")
    return value


def rows_of_txt(data: bytes) -> list[Row]:
    r"""A prompt a line; a line ends at \n or \r\n, and empty lines at the end do not count."""
    lines = decoded(data).replace("\r\n", "\n").rstrip("\n").split("\n")
    for number, line in enumerate(lines, 1):
        if "\r" in line:
            raise ValueError(f"line {number} holds a carriage return; save the file with \\n at line ends")
    return [{"prompt": line} for line in lines] if lines != [""] else []


def rows_of_csv(data: bytes) -> list[Row]:
    """A header, then rows; separated by commas, or by semicolons or tabs if only these give a column of prompts."""
    text = decoded(data)
    header = next(_records(text, ","), [])
    if not any(_names_text(name) for name in header):
        for other in (";", "\t"):
            if any(_names_text(name) for name in next(_records(text, other), [])):
                return _table(text, other)
    return _table(text, ",")


def rows_of_tsv(data: bytes) -> list[Row]:
    """A header, then rows, separated by tabs."""
    return _table(decoded(data), "\t")


def _names_text(name: str) -> bool:
    return name.strip().casefold() in TEXT_COLUMNS


def _table(text: str, separator: str) -> list[Row]:
    records = _records(text, separator)
    header = [name.strip() for name in next(records, [])]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice and any(_names_text(name) or name.casefold() in ("id", "split") for name in twice):
        raise ValueError(f"the header has the column {twice[0]!r} more than once")
    rows: list[Row] = []
    for number, cells in enumerate(records, 1):
        if len(cells) > len(header):
            raise ValueError(
                f"row {number} has {len(cells)} cells, but the header has {len(header)}: put a prompt that holds "
                f"{'commas' if separator == ',' else repr(separator)} in double quotes"
            )
        if len(cells) < len(header):
            raise ValueError(f"row {number} has {len(cells)} cells, but the header has {len(header)}")
        for name, cell in zip(header, cells, strict=True):
            breaks = cell.count("\n")
            if breaks > LINES_IN_A_CELL and _names_text(name):
                raise ValueError(
                    f"row {number} holds {breaks} line breaks in {name!r}: is its double quote closed?"
                )
        rows.append(dict(zip(header, cells, strict=True)))
    return rows


def _records(text: str, separator: str) -> Iterator[list[str]]:
    """The records of a table; empty lines count only where a row is a single cell, which is then empty."""
    before = csv.field_size_limit(len(text) + 1)  # one for the whole process: put back at once
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        records: list[list[str]] = []
        try:
            records.extend(reader)
        except csv.Error as error:
            place = f"row {len(records)}" if records else "the header"
            hint = "its double quote is never closed" if "end of data" in str(error) else f"{error}"
            raise ValueError(f'{place}: {hint}; a double quote inside quotes is written ""') from None
    finally:
        csv.field_size_limit(before)
    while records and not records[-1]:
        records.pop()
    single = bool(records) and len(records[0]) == 1
    return iter([record or [""] for record in records if record or single])


def open_parquet(source: Path | BinaryIO) -> pq.ParquetFile:
    """A Parquet file that somebody else wrote; checksums of pages are compared where it has them.

    Read it with ``use_threads=False``, and nothing ahead, for the reason that `raysense.store.parquet.decode` has.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=True)


def rows_of_parquet(data: bytes) -> list[Row]:
    """The columns of prompts, ids and splits; what else is there, such as images, is not read."""
    import pyarrow as pa

    try:
        file = open_parquet(io.BytesIO(data))
        wanted = {*TEXT_COLUMNS, "id", "split"}
        names = [name for name in file.schema_arrow.names if name.casefold() in wanted]
        if len(set(names)) < len(names):
            raise ValueError(f"a column stands twice: {', '.join(names)}")
        if not any(_names_text(name) for name in names):  # for the message that names what is there
            return [dict.fromkeys(file.schema_arrow.names)]
        rows: list[Row] = file.read(columns=names, use_threads=False).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from None
    return rows


def normalised(text: str) -> str:
    """What two spellings of the same text share: composed characters, no case, single spaces."""
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).split())


READERS: Mapping[str, Callable[[bytes], list[Row]]] = {
    ".jsonl": rows_of_jsonl,
    ".ndjson": rows_of_jsonl,
    ".json": rows_of_json,
    ".csv": rows_of_csv,
    ".tsv": rows_of_tsv,
    ".txt": rows_of_txt,
    ".parquet": rows_of_parquet,
}


def text_column(names: Iterable[str]) -> str:
    """Which column holds the prompts: `prompt`, or else the only one with another usual name.

    Raises:
        ValueError: There is none, or more than one.
    """
    names = list(dict.fromkeys(names))
    found = [name for name in names if _names_text(name)]
    called = [name for name in found if name.strip().casefold() == "prompt"]
    chosen = called or found
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise ValueError(
            f"the columns {' and '.join(map(repr, chosen))} may both be meant; call the one with the prompts `prompt`"
        )
    there = ", ".join(map(repr, names[:12]))[:200] or "none"
    raise ValueError(f"no column is called `prompt`, `caption` or `text` (there: {there})")


def column(names: Iterable[str], wanted: str) -> str | None:
    """The column of this name, in any case; None if there is none.

    Raises:
        ValueError: There is more than one.
    """
    found = [name for name in dict.fromkeys(names) if name.strip().casefold() == wanted]
    if len(found) > 1:
        raise ValueError(f"the columns {' and '.join(map(repr, found))} may both be meant; keep one")
    return found[0] if found else None
