"""Credentials: where they may stand, and the one place that masks them wherever text leaves the process."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable
from functools import cache
from types import TracebackType
from urllib.parse import quote, quote_plus

MASK = "***"

_NAMES = re.compile(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|CREDENTIAL|API_KEY", re.IGNORECASE)
_SHORTEST = 6
"""What is shorter than this is no secret, and would be masked in the middle of words."""

_LONGEST_TOKEN = 10_000
"""Characters that are read of the file of a login."""

_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s'\"`<>]*@", re.IGNORECASE)
"""A secret may hold a slash, a plus or an `@`: all up to the last `@` of the address."""

_QUERY = re.compile(
    r"([?&;][^=&\s'\"`<>]*(?:secret|token|password|passwd|pwd|signature|credential|key)[^=&\s'\"`<>]*=)[^&\s'\"`<>]+",
    re.IGNORECASE,
)

_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")


def masked(text: str) -> str:
    """The text without the credentials of addresses, the environment's secrets, and the hub's token of a login."""
    for secret in _secrets():
        if secret in text:
            text = text.replace(secret, MASK)
    if "://" not in text:
        return text
    return _QUERY.sub(rf"\g<1>{MASK}", _USER.sub(rf"\g<1>{MASK}@", text))


def has_credentials(address: str) -> bool:
    """Whether an address holds credentials, or what may be some."""
    scheme, found, rest = address.partition("://")
    if not found or scheme.lower() == "file":
        return False
    # A secret may hold any character, so that what looks like a folder may be the end of one.
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    bucket = scheme.lower().rpartition("=")[2] in _BUCKETS
    return "@" in rest or (bucket and ":" in host) or _QUERY.search(rest) is not None


def refused(what: str) -> str:
    """What is said of an address that holds credentials; it is not shown."""
    return (
        f"{what} holds credentials (or an `@`, or in a bucket's name a `:`). Addresses go into logs, pages and the "
        "list of processes: put AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or for `track.mlflow` "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD or MLFLOW_TRACKING_TOKEN, into the environment of every "
        "machine, or use the cloud's own files and roles, and give the bare address."
    )


def in_arguments(arguments: Iterable[str]) -> str:
    """Which argument of a command line holds credentials, by its key, or an empty text."""
    before = ""
    for argument in arguments:
        if has_credentials(argument):
            key = argument.partition("://")[0].rpartition("=")[0]
            return f"`{key or before}`" if key or before.startswith("-") else "an argument"
        before = argument
    return ""


class Masked(logging.Formatter):
    """A formatter whose lines, exceptions included, hold no credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line."""
        return masked(super().format(record))


def show_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What the interpreter does with an exception that nobody has caught, masked."""
    sys.stderr.write(masked("".join(traceback.format_exception(kind, error, trace))))


def _secrets() -> list[str]:
    """What may not be shown, as it is and as addresses quote it, the longest first."""
    values = {
        v
        for name, v in os.environ.items()
        if _NAMES.search(name) and len(v) >= _SHORTEST and not os.path.exists(v)
    }
    if len(token := _of_login(_token_file())) >= _SHORTEST:
        values.add(token)
    forms = {
        form for value in values for form in (value, quote(value, safe=""), quote(value), quote_plus(value))
    }
    return sorted(forms, key=len, reverse=True)


def _token_file() -> str:
    """Where ``hf auth login`` leaves the hub's token, by the hub library's own rules; that library takes its time."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    return os.path.expanduser(os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token"))


@cache
def _of_login(file: str) -> str:
    try:
        with open(file, encoding="utf-8") as found:
            return found.read(_LONGEST_TOKEN).strip()
    except (OSError, ValueError):
        return ""
