"""Parquet with checksums: of every page, and of the file, which is its name."""

from __future__ import annotations

import hashlib
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq


def encode(table: pa.Table) -> bytes:
    """A table as the content of a Parquet file, a checksum with every page."""
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def decode(content: bytes) -> pa.Table:
    """The table.

    Raises:
        ValueError: The content is damaged.
    """
    try:
        # In this thread: Arrow's own may still hold the bytes when the interpreter ends, which then aborts.
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        return file.read(use_threads=False)
    except Exception as error:  # Arrow raises a dozen types for damage, OSError and MemoryError among them
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def digest(content: bytes) -> str:
    """What a file with this content is called: page checksums cover neither footer nor page headers."""
    return hashlib.sha256(content).hexdigest()
