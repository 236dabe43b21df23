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

from raysense.errors import RaysenseError

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
    endpoint = hub_address()
    problem = silence(endpoint, float(patience) if patience.isdecimal() else 10.0)
    if not problem:
        return ""
    os.environ["HF_HUB_OFFLINE"] = "1"
    if "huggingface_hub.constants" in sys.modules:
        sys.modules["huggingface_hub.constants"].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    return (
        f"the hub {endpoint} cannot be reached ({problem}); only what is in its cache on this machine is used"
    )


def pipeline_index(repository: str, revision: str | None) -> str:
    """The file ``model_index.json`` of a pipeline on the hub, from this machine's cache or fetched.

    Raises:
        RaysenseError: It cannot be had; says why and what to do.
    """
    silent = settle_hub()
    from huggingface_hub import errors, hf_hub_download

    token = "bring your token (HF_TOKEN, or `hf auth login`)"
    try:
        return str(hf_hub_download(repository, "model_index.json", revision=revision))
    except errors.GatedRepoError:
        why = f"`{repository}` is gated on the hub: accept its licence at {hub_address()}/{repository} and {token}"
    except errors.RevisionNotFoundError:
        why = f"`revision`: `{repository}` has no {revision!r}; give a commit, branch or tag that it has"
    except errors.RepositoryNotFoundError:
        why = (
            f"the hub {hub_address()} has no repository `{repository}`, or it is private: check the name (withdrawn "
            f"ones are gone), or {token}"
        )
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        why = (
            "must be `bundled`, a folder in diffusers' format, a single .safetensors file or a hub id within reach, "
            f"but there is no folder `{repository}`, as a hub id it is not in this machine's cache, and "
            f"{silent or 'the hub is not asked (HF_HUB_OFFLINE)'}: check the name and the network, or run `raysense "
            "prepare` where there is one"
        )
    except errors.EntryNotFoundError:
        why = (
            f"`{repository}` has no model_index.json, so it is no pipeline in diffusers' format; give one that is, or "
            "download a single .safetensors file of it and give that"
        )
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        why = f"the hub could not give `{repository}`: {' '.join(str(error).split())[:160]}"
    raise RaysenseError(why if why.startswith("`revision`") else f"`pipeline`: {why}")


def hub_address() -> str:
    """Where the hub is."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or DEFAULT


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
