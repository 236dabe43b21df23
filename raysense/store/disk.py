"""Whole files on a local disk or an object store: a file is either there and complete, or not there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from raysense.errors import RaysenseError
from raysense.secrets import has_credentials, refused
from raysense.store.bucket import ABSENT, Bucket, Moved, Version
from raysense.store.checksummed_json import unseal


class Disk:
    """A folder on a local disk or in a bucket, in whole-file operations.

    On an object store a write is one atomic PUT. On a local disk it goes to a name of its own below
    ``partial/`` and becomes visible by one rename, so a kill never leaves a half-written file where readers look.

    Args:
        uri: A local path, or an address such as ``s3://bucket/folder``. Credentials come from the AWS environment
            variables, the cloud's own files or the machine's role, never from the address; the endpoint from
            ``AWS_ENDPOINT_URL`` or from the address:
            ``s3://bucket/folder?endpoint_override=127.0.0.1:9000&scheme=http``.
        bucket: The bucket, where it is at hand already.

    Attributes:
        uri: The address.
        root: The folder, without what follows a ``?``.
        local: Whether it is a local path.

    Raises:
        RaysenseError: The address holds credentials, or is none of a storage.
    """

    def __init__(self, uri: str, bucket: Bucket | None = None) -> None:
        self.uri = str(uri)
        if has_credentials(self.uri):
            raise RaysenseError(refused("the study's address"))
        self._bucket = bucket
        if "://" not in self.uri:
            self.root = os.path.abspath(self.uri).rstrip("/")
        elif self.uri.startswith("file://"):
            self.root = unquote(urlsplit(self.uri).path).rstrip("/")
        else:
            self._bucket = bucket or Bucket.at(self.uri)
            self.root = self.uri.partition("?")[0].rstrip("/")
        self.local: bool = self._bucket is None

    def path(self, name: str) -> str:
        """The full path of `name`, for messages and local access."""
        return f"{self.root}/{name}"

    @contextlib.contextmanager
    def _explained(self, doing: str, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RaysenseError(
                f"store `{self.uri}`: cannot {doing} `{self.path(name)}`: {error}. "
                "Check that the storage is there, not full, and that the credentials allow it."
            ) from error

    def read(self, name: str) -> bytes | None:
        """The file's content, or None if there is no such file."""
        return self.read_version(name)[0]

    def read_version(self, name: str) -> tuple[bytes | None, Version]:
        """The file's content and its version for `write_if`; None and `ABSENT` if there is no such file."""
        with self._explained("read", name):
            if self._bucket is not None:
                found = self._bucket.read(name)
                return (None, ABSENT) if found is None else found
            try:
                with open(self.path(name), "rb") as file:
                    content = file.read()
            except FileNotFoundError:
                return None, ABSENT
            return content, _version(content)

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """The contents of many files, in order; on an object store several at a time."""
        if self._bucket is None:
            return [self.read(name) for name in names]
        with self._explained("read", names[0] if names else ""):
            return self._bucket.read_all(names)

    def write(self, name: str, content: bytes) -> None:
        """Makes the file visible, complete, replacing one that is there."""
        with self._explained("write", name):
            if self._bucket is not None:
                self._bucket.write(name, content)
                return
            try:
                self._write_locally(name, content)
            except FileNotFoundError:  # a clock jumped, and what was being written looked like nobody's
                try:
                    self._write_locally(name, content)
                except FileNotFoundError as error:  # the folder is gone
                    raise OSError(str(error)) from error

    def _write_locally(self, name: str, content: bytes) -> None:
        partial = self.path(f"partial/{uuid.uuid4().hex}")
        for folder in (os.path.dirname(partial), os.path.dirname(self.path(name))):
            if not os.path.isdir(folder):
                os.makedirs(folder, exist_ok=True)
        try:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path(name))
        except OSError:  # a full disk is not to be filled further with what nobody reads
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise

    def write_if(self, name: str, content: bytes, version: Version) -> Version:
        """Makes the file visible if it is still of this version; for who holds the driver's lock.

        One atomic operation on an object store; on a local disk the lock is what makes it one.

        Args:
            name: Of the file.
            content: Must differ from whatever another writer may write.
            version: What `read_version` gave, or an earlier `write_if`.

        Returns:
            The new version.

        Raises:
            Moved: It is of another version.
        """
        if self._bucket is not None:
            with self._explained("write", name):
                return self._bucket.write_if(name, content, version)
        if self.read_version(name)[1] != version:
            raise Moved(name)
        self.write(name, content)
        return _version(content)

    def names(self, folder: str) -> list[tuple[str, float]]:
        """Names and modification times (seconds since 1970) in a folder, sorted by name; hidden ones left out."""
        with self._explained("list", folder):
            if self._bucket is not None:
                found = self._bucket.names(folder)
            else:
                try:
                    with os.scandir(self.path(folder)) as entries:
                        found = [(e.name, _modified(e)) for e in entries if e.is_file(follow_symlinks=False)]
                except FileNotFoundError:
                    found = []
        return sorted(entry for entry in found if not entry[0].startswith("."))

    def now(self) -> float:
        """The time by the clock that stamps this local disk's files, which a network file system has of its own."""
        name = f"partial/{uuid.uuid4().hex}"
        with self._explained("write", name), open(self.path(name), "wb") as file:
            modified = os.fstat(file.fileno()).st_mtime
        self.delete([name])
        return modified

    def delete(self, names: Sequence[str]) -> None:
        """Removes files; those already gone are passed over."""
        for name in names if self._bucket is None else ():
            with self._explained("delete", name), contextlib.suppress(FileNotFoundError):
                os.unlink(self.path(name))
        if self._bucket is not None and names:
            with self._explained("delete", names[0]):
                self._bucket.delete(names)


def _version(content: bytes) -> Version:
    return {"sha256": hashlib.sha256(content).hexdigest()}


def _modified(entry: os.DirEntry[str]) -> float:
    with contextlib.suppress(FileNotFoundError):
        return entry.stat(follow_symlinks=False).st_mtime
    return float("inf")  # gone meanwhile: old to nobody


def write_file(path: Path, content: bytes, option: str = "--out") -> None:
    """Writes a file that a user named with an option: whole, or not at all.

    Raises:
        RaysenseError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a device or a pipe is written to, not replaced
            path.write_bytes(content)
            return
        write_whole(path, content)
    except OSError as error:
        raise RaysenseError(
            f"`{option} {path}` cannot be written: {error.strerror or error}; choose a place with room"
        ) from error


def write_whole(path: Path, content: bytes) -> None:
    """Writes a local file: whole, or not at all.

    Raises:
        OSError: It cannot be written; nothing is left of it.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_sealed(disk: Disk, name: str, remedy: str) -> dict[str, Any] | None:
    """The fields of a file that `raysense.store.checksummed_json.seal` made, or None if there is no such file.

    Raises:
        RaysenseError: The file is damaged; names the path and `remedy`. Or another raysense wrote it.
    """
    return read_sealed_version(disk, name, remedy)[0]


def read_sealed_version(disk: Disk, name: str, remedy: str) -> tuple[dict[str, Any] | None, Version]:
    """See `read_sealed`; also the version, for `Disk.write_if`."""
    raw, version = disk.read_version(name)
    if raw is None:
        return None, version
    path = disk.path(name)
    try:
        return unseal(raw, f"`{path}`"), version
    except ValueError as error:
        raise RaysenseError(f"`{path}` is damaged or not a file of raysense ({error}). {remedy}") from error
