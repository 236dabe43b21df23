"""Whole files on a local disk or an object store: a file is either there and complete, or not there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from raysense.errors import RaysenseError
from raysense.store.sealed import unseal


class Disk:
    """A folder of a `pyarrow.fs` file system, in whole-file operations.

    On an object store a write is one atomic PUT. On a local disk it goes to a name of its own below
    ``partial/`` and becomes visible by one rename, so a kill never leaves a half-written file where readers look.

    Args:
        uri: A local path, or an address such as ``s3://bucket/folder``. S3 takes its credentials and its
            endpoint from the AWS environment variables, or from the address itself:
            ``s3://key:secret@bucket/folder?endpoint_override=127.0.0.1:9000&scheme=http``.

    Attributes:
        uri: The address.
        shown: The same without credentials, for messages.
        root: The folder, as the file system names it.
        local: Whether it is a local path.
    """

    def __init__(self, uri: str) -> None:
        self.uri = str(uri)
        self.shown = re.sub(r"//[^/@]*@", "//", self.uri)  # messages show no credentials
        if "://" in self.uri:
            try:
                fs, root = pafs.FileSystem.from_uri(self.uri)
            except (OSError, ValueError) as error:
                raise RaysenseError(
                    f"store `{self.shown}`: {error}. Give a local path or an address such as s3://bucket/folder."
                ) from error
        else:
            fs, root = pafs.LocalFileSystem(), os.path.abspath(self.uri)
        self._fs: Any = fs
        self.root: str = root.rstrip("/")
        self.local: bool = isinstance(fs, pafs.LocalFileSystem)

    def path(self, name: str) -> str:
        """The full path of `name`, for messages and local access."""
        return f"{self.root}/{name}" if self.local else f"s3://{self.root}/{name}"

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    @contextlib.contextmanager
    def _explained(self, doing: str, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RaysenseError(
                f"store `{self.shown}`: cannot {doing} `{self.path(name)}`: {error}. "
                "Check that the storage is there, not full, and that the credentials allow it."
            ) from error

    def read(self, name: str) -> bytes | None:
        """The file's content, or None if there is no such file."""
        with self._explained("read", name):
            try:
                if self.local:
                    with open(self._at(name), "rb") as file:
                        return file.read()
                with self._fs.open_input_stream(self._at(name)) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """The contents of many files, in order; on an object store several at a time."""
        if self.local or len(names) < 2:
            return [self.read(name) for name in names]
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(self.read, names))

    def write(self, name: str, content: bytes) -> None:
        """Makes the file visible, complete, replacing one that is there."""
        with self._explained("write", name):
            try:
                if not self.local:
                    with self._fs.open_output_stream(self._at(name)) as stream:
                        stream.write(content)
                    return
                partial = self._at(f"partial/{uuid.uuid4().hex}")
                for folder in (os.path.dirname(partial), os.path.dirname(self._at(name))):
                    if not os.path.isdir(folder):
                        os.makedirs(folder, exist_ok=True)
                try:
                    with open(partial, "wb") as file:
                        file.write(content)
                        file.flush()
                        os.fsync(file.fileno())
                    os.replace(partial, self._at(name))
                except OSError:  # a full disk is not to be filled further with what nobody reads
                    with contextlib.suppress(OSError):
                        os.unlink(partial)
                    raise
            except FileNotFoundError as error:  # the folder vanished in between
                raise OSError(str(error)) from error

    def names(self, folder: str) -> list[tuple[str, float]]:
        """Names and modification times (seconds since 1970) in a folder, sorted by name; hidden ones left out."""
        with self._explained("list", folder):
            found = self._fs.get_file_info(pafs.FileSelector(self._at(folder), allow_not_found=True))
        entries = [(f.base_name, f.mtime_ns / 1e9 if f.mtime_ns else 0.0) for f in found if f.is_file]
        return sorted(entry for entry in entries if not entry[0].startswith("."))

    def delete(self, names: Sequence[str]) -> None:
        """Removes files; those already gone are passed over."""

        def one(name: str) -> None:
            with self._explained("delete", name), contextlib.suppress(FileNotFoundError):
                self._fs.delete_file(self._at(name))

        if self.local or len(names) < 2:
            for name in names:
                one(name)
        else:
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(one, names))


def write_file(path: Path, content: bytes) -> None:
    """Writes a file that a user named: whole, or not at all.

    Raises:
        RaysenseError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a device or a pipe is written to, not replaced
            path.write_bytes(content)
            return
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            partial.write_bytes(content)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise RaysenseError(
            f"`--out {path}` cannot be written: {error.strerror or error}; choose a place with room"
        ) from error


def read_json(disk: Disk, name: str, remedy: str) -> dict[str, Any] | None:
    """A JSON object's fields, or None if there is no such file.

    Raises:
        RaysenseError: The file is not a JSON object; names the path and `remedy`.
    """
    raw = disk.read(name)
    if raw is None:
        return None
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RaysenseError(f"`{disk.path(name)}` is damaged ({error}). {remedy}") from error
    if not isinstance(fields, dict):
        raise RaysenseError(f"`{disk.path(name)}` is not a file of raysense. {remedy}")
    return fields


def read_sealed(disk: Disk, name: str, remedy: str) -> dict[str, Any] | None:
    """The fields of a file that `raysense.store.sealed.seal` made, or None if there is no such file.

    Raises:
        RaysenseError: The file is damaged; names the path and `remedy`. Or another raysense wrote it.
    """
    raw = disk.read(name)
    if raw is None:
        return None
    path = disk.path(name)
    try:
        return unseal(raw, f"`{path}`")
    except ValueError as error:
        raise RaysenseError(f"`{path}` is damaged or not a file of raysense ({error}). {remedy}") from error
