"""Whether the model hub answers, found out once and quickly: its libraries try for many minutes. No torch here."""

from __future__ import annotations

import os
import socket
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

DEFAULT = "https://huggingface.co"


@cache
def settle_hub() -> str:
    """Keep this process, and those that it starts, from waiting for a hub that does not answer; asked once.

    Best called before the hub's libraries are imported: they read the environment then.

    Returns:
        A sentence if the hub does not answer: then what is in its cache is used, and nothing else. Otherwise nothing.
    """
    patience = os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "10")  # the hub library's own setting
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "10")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return ""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or DEFAULT
    problem = silence(endpoint, float(patience) if patience.isdecimal() else 10.0)
    if not problem:
        return ""
    os.environ["HF_HUB_OFFLINE"] = "1"
    if "huggingface_hub.constants" in sys.modules:
        sys.modules["huggingface_hub.constants"].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    return (
        f"the hub {endpoint} cannot be reached ({problem}); only what is in its cache on this machine is used"
    )


def silence(endpoint: str, seconds: float) -> str:
    """Why a server does not answer, or an empty string: any answer counts, refusals included."""
    problem = [f"no answer within {seconds:g} s"]

    def ask() -> None:
        try:
            request = urllib.request.Request(endpoint, method="HEAD", headers={"User-Agent": "raysense"})
            urllib.request.urlopen(request, timeout=seconds).close()
        except urllib.error.HTTPError:
            pass
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                return
            if not isinstance(error.reason, ssl.SSLError):  # the hub's library brings certificates of its own
                problem[0] = str(getattr(error.reason, "strerror", None) or error.reason)
                return
        except TimeoutError:
            return
        except (OSError, ValueError) as error:
            problem[0] = " ".join(str(error).split())[:200]
            return
        problem[0] = ""

    # A server may send a byte now and then, and a name may take minutes to be looked up: neither holds this up.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return problem[0]


@contextmanager
def limited(seconds: float = 30.0) -> Iterator[None]:
    """While this is open, downloads that set no limit of their own give up after so long without a byte."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
