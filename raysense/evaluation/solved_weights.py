"""Weights of a layer at each of its levels, for methods that update what stays: made once, memory-mapped after."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.store.disk import Disk, write_whole
from raysense.temporary_folders import own_folder


class SolvedWeights:
    """One file a layer, in which each level is one tensor.

    A file is named by what its content follows from. A study on a local folder is mapped in place; from an object
    store a file is first copied to this node, once for all evaluators of the node. The processes of a node
    share the pages. A slice's SHA-256 is checked the first time that this object reads it.

    Args:
        disk: The study's store.
        keys: Layer address -> name of its file.
    """

    def __init__(self, disk: Disk, keys: Mapping[str, str]) -> None:
        self._disk, self._keys = disk, dict(keys)
        self._checked: set[tuple[str, int]] = set()

    def has(self, address: str) -> bool:
        """Whether the layer's file is there and readable."""
        path = self._local(address)
        if path is None:
            return False
        try:
            with safe_open(path, framework="pt") as file:
                return bool(_checked(file.metadata(), self._keys[address]))
        except (SafetensorError, OSError):
            return False

    def put(self, address: str, levels: Mapping[int, Tensor], note: str = "") -> None:
        """Store a layer's weights at each level, and what departed from the plan when they were made."""
        tensors = {str(level): weight.cpu().contiguous() for level, weight in levels.items()}
        digests = {name: _digest(tensor) for name, tensor in tensors.items()}
        about = {"key": self._keys[address], "note": note, "sha256": json.dumps(digests)}
        self._disk.write(self._name(address), save(tensors, {**about, _OWN: _sum(about)}))

    def load(self, address: str, level: int) -> Tensor:
        """A layer's weights at a level above 0: a view of the mapped file, not to be written to.

        Raises:
            RaysenseError: The file is missing or damaged.
        """
        path = self._local(address)
        if path is not None:
            try:
                with safe_open(path, framework="pt") as file:
                    tensor: Tensor = file.get_tensor(str(level))
                    if (address, level) not in self._checked:
                        about = _checked(file.metadata(), self._keys[address])
                        if json.loads(about["sha256"])[str(level)] != _digest(tensor):
                            raise OSError("its content does not match its hash")
                        self._checked.add((address, level))
                    return tensor
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                reason = f"is damaged ({error})"
        else:
            reason = "is gone"
        raise RaysenseError(
            f"slices: {address} at level {level}: `{path or self._disk.path(self._name(address))}` {reason}; delete "
            "it and resume, then the layer is solved again"
        )

    def note(self, address: str) -> str:
        """What departed from the plan when this layer was solved, or an empty text."""
        path = self._local(address)
        if path is None:
            return ""
        try:
            with safe_open(path, framework="pt") as file:
                return _checked(file.metadata(), self._keys[address])["note"]
        except (SafetensorError, OSError) as error:
            raise RaysenseError(
                f"slices: {address}: `{path}` is damaged ({error}); delete it and resume: the layer is solved again"
            ) from error

    def _name(self, address: str) -> str:
        return f"cache/{self._keys[address]}.safetensors"

    def _local(self, address: str) -> str | None:
        """The path of the layer's file on this machine, copied here if need be."""
        name = self._name(address)
        if self._disk.local:
            path = self._disk.path(name)
            return path if os.path.exists(path) else None
        try:
            here = own_folder("raysense-slices") / os.path.basename(name)
            if not here.exists():
                content = self._disk.read(name)
                if content is None:
                    return None
                write_whole(here, content)
        except OSError as error:
            raise RaysenseError(
                f"slices: {address}: no copy can be kept on this machine ({error}); set TMPDIR to a folder with room"
            ) from error
        return str(here)


def damage_of(content: bytes, key: str) -> str:
    """What is wrong with the content of a layer's file, or an empty text.

    Args:
        content: Of the file.
        key: What it is named by.
    """
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        digests = json.loads(_checked(header["__metadata__"], key)["sha256"])
        wrong = [level for level, tensor in load(content).items() if digests[level] != _digest(tensor)]
    except OSError as error:
        return str(error)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"it is damaged ({error})"
    return f"level {wrong[0]} does not match its hash" if wrong else ""


def _checked(metadata: Mapping[str, str] | None, key: str) -> dict[str, str]:
    """What stands in a file's header beside the tensors.

    Raises:
        OSError: It is not what was written under this key.
    """
    about = dict(metadata or {})
    if about.pop(_OWN, None) != _sum(about) or about["key"] != key:
        raise OSError("its header does not match its hash, or it is another layer's")
    return about


_OWN = "sha256 of these"
"""Name of the header's own checksum."""


def _sum(about: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _digest(tensor: Tensor) -> str:
    # As bytes: numpy has no bfloat16.
    return hashlib.sha256(tensor.flatten().view(torch.uint8).numpy().data).hexdigest()
