"""Whole objects of a bucket, by obstore: S3 and what speaks it, Google Cloud Storage, Azure.

Object stores have no locks. What they have is the conditional write: this content, but only if the object is still the
version that was read (``If-Match`` on its ETag), or only if there is none yet (``If-None-Match: *``). Everything that
must have one writer goes through `Bucket.write_if`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from raysense.errors import RaysenseError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

Version = Mapping[str, str]
"""Which content of a name was read or written; an empty one stands for no content at all."""

ABSENT: Version = {}

PATIENCE_SECONDS = 120.0
"""How long a storage that has answered before may be out of reach: a network comes back."""

FIRST_WAIT_SECONDS = 0.5
"""Before a storage that is out of reach is asked again; then twice as long each time, up to ten seconds."""

SCHEMES = ("s3", "gs", "az")

_PARALLEL = 16
_IN_ADDRESS = ("endpoint_override", "scheme", "region")


class Moved(Exception):
    """The object is not the version that was to be replaced."""


class Bucket:
    """Objects below a prefix of a bucket.

    Args:
        store: obstore's store for the prefix.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._answered = False

    @classmethod
    def at(cls, address: str) -> Bucket:
        """The place of an address such as ``s3://bucket/folder``.

        Raises:
            RaysenseError: The address cannot be one of a bucket.
        """
        from obstore.exceptions import BaseError
        from obstore.store import from_url

        parts = urlsplit(address)
        given = dict(parse_qsl(parts.query))
        if unknown := sorted(set(given) - set(_IN_ADDRESS)):
            raise RaysenseError(
                f"store `{parts.scheme}://{parts.netloc}{parts.path}`: unknown {', '.join(unknown)} after the `?`; an "
                f"address takes {', '.join(_IN_ADDRESS)}. Credentials belong in the environment "
                "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)."
            )
        if parts.scheme not in SCHEMES or not parts.netloc:
            raise RaysenseError(
                f"store `{address}`: no such kind of storage. Give a local path or an address such as "
                "s3://bucket/folder."
            )
        options: dict[str, Any] = {} if parts.scheme != "s3" else _of_s3(given)
        try:
            store = from_url(
                f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}",
                client_options={
                    "timeout": timedelta(seconds=60),
                    "connect_timeout": timedelta(seconds=5),
                    "allow_http": str(options.get("endpoint")).startswith("http://"),
                },
                retry_config={
                    "max_retries": 3,
                    "retry_timeout": timedelta(seconds=20),
                    "backoff": {
                        "init_backoff": timedelta(milliseconds=100),
                        "max_backoff": timedelta(seconds=2),
                        "base": 2,
                    },
                },
                **options,
            )
        except (BaseError, ValueError) as error:
            raise RaysenseError(
                f"store `{address}`: {_line(error)}. Give a local path or an address such as s3://bucket/folder."
            ) from error
        return cls(store)

    def read(self, name: str) -> tuple[bytes, Version] | None:
        """An object's content and its version; None if there is none."""
        import obstore
        from obstore.exceptions import NotFoundError

        def get() -> tuple[bytes, Version] | None:
            try:
                found = obstore.get(self._store, name)
                return bytes(found.bytes()), _version(found.meta)
            except (NotFoundError, FileNotFoundError):
                return None

        return self._patiently(get)

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """The contents of many objects, in order, several at a time."""

        def one(name: str) -> bytes | None:
            found = self.read(name)
            return found and found[0]

        if len(names) < 2:
            return [one(name) for name in names]
        with ThreadPoolExecutor(_PARALLEL) as pool:
            return list(pool.map(one, names))

    def write(self, name: str, content: bytes) -> None:
        """One atomic PUT, whatever was there."""
        import obstore

        self._patiently(lambda: obstore.put(self._store, name, content, use_multipart=False))

    def write_if(self, name: str, content: bytes, version: Version) -> Version:
        """One atomic PUT, if the object is still of this version.

        Args:
            name: Of the object.
            content: Must differ from whatever another writer may write, so that a write whose answer was lost can
                be told from another's.
            version: What was read, or `ABSENT`.

        Returns:
            The new version.

        Raises:
            Moved: It is of another version.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotFoundError, PreconditionError

        def put() -> Version:
            try:
                mode: Any = dict(version) or "create"
                done = obstore.put(self._store, name, content, mode=mode, use_multipart=False)
                return _version(done)
            except (AlreadyExistsError, PreconditionError, NotFoundError, FileNotFoundError) as error:
                found = self.read(name)  # an earlier try may have arrived although its answer did not
                if found is not None and found[0] == content:
                    return found[1]
                raise Moved(name) from error

        return self._patiently(put)

    def names(self, folder: str) -> list[tuple[str, float]]:
        """Names in a folder and when they were written, in seconds since 1970 by the storage's clock; sorted."""
        import obstore

        def entries() -> list[tuple[str, float]]:
            found = obstore.list_with_delimiter(self._store, folder)["objects"]
            return sorted((str(o["path"]).rsplit("/", 1)[-1], o["last_modified"].timestamp()) for o in found)

        return self._patiently(entries)

    def delete(self, names: Sequence[str]) -> None:
        """Removes objects; those already gone are passed over."""
        import obstore
        from obstore.exceptions import NotFoundError

        def one(name: str) -> None:
            def gone() -> None:
                with contextlib.suppress(NotFoundError, FileNotFoundError):
                    obstore.delete(self._store, name)

            self._patiently(gone)

        if len(names) < 2:
            for name in names:
                one(name)
            return
        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(one, names))

    def _patiently(self, operation: Callable[[], T]) -> T:
        """Tries again while the storage is out of reach; not where it says no, and not before its first answer.

        Raises:
            OSError: It stays out of reach, or it says no.
        """
        from obstore.exceptions import BaseError, GenericError

        began, wait = time.monotonic(), FIRST_WAIT_SECONDS
        while True:
            try:
                done = operation()
            except Moved:
                self._answered = True
                raise
            except BaseError as error:
                refused = not isinstance(error, GenericError) or "403" in str(error)
                if refused or not self._answered or time.monotonic() - began > PATIENCE_SECONDS:
                    raise OSError(_line(error)) from error
            except FileNotFoundError as error:  # obstore raises Python's own where a bucket is missing
                raise OSError(_line(error)) from error
            else:
                self._answered = True
                return done
            time.sleep(wait)
            wait = min(2 * wait, 10.0)


def _version(of: Any) -> Version:
    """What obstore wants to see again to replace just this content."""
    return {key: str(of[key]) for key in ("e_tag", "version") if of.get(key) is not None}


def _line(error: BaseException) -> str:
    """An error of the storage's in one line; obstore's go on with how it was built."""
    text = " ".join(str(error).split("\n\nDebug source")[0].split())
    return text[:500] or type(error).__name__


def _of_s3(given: Mapping[str, str]) -> dict[str, Any]:
    """What obstore is told of an S3: the address's own words before the environment's."""
    config: dict[str, Any] = {}
    endpoint = given.get("endpoint_override")
    if endpoint:
        config["endpoint"] = endpoint if "://" in endpoint else f"{given.get('scheme', 'https')}://{endpoint}"
    else:
        config["endpoint"] = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config["region"] = (
        given.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    )
    options: dict[str, Any] = {key: value for key, value in config.items() if value is not None}
    if (provider := _from_profile()) is not None:
        options["credential_provider"] = provider
    return options


def _from_profile() -> Any:
    """Credentials of ``~/.aws``, where nothing in the environment goes before them and boto3 is there to read them."""
    if os.environ.get("AWS_ACCESS_KEY_ID") or importlib.util.find_spec("boto3") is None:
        return None
    named = os.environ.get("AWS_PROFILE"), os.environ.get("AWS_SHARED_CREDENTIALS_FILE")
    if not any(named) and not (Path.home() / ".aws" / "credentials").exists():
        return None
    from obstore.auth.boto3 import Boto3CredentialProvider

    return Boto3CredentialProvider()
