"""The objects of a store: one evaluation each, immutable, until a compaction takes them in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raysense.errors import RaysenseError
from raysense.records import Evaluation
from raysense.store import rows
from raysense.store.disk import Disk

Entry = tuple[Evaluation, dict[str, int]]
"""An evaluation and its allocation's levels."""

_FAILED = ".failed.json"


class Objects:
    """Objects by name: ``<key>.json``, or ``<key>.failed.json`` of what could not be measured.

    The two differ so that a failure is never written over a measurement, and deleting the one never takes the other.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def put(self, evaluation: Evaluation, levels: Mapping[str, int] | None) -> None:
        """See `Store.put`."""
        self._disk.write(f"objects/{name_of(evaluation)}", rows.to_object(evaluation, levels))

    def get(self, key: str) -> Evaluation | None:
        """The measured evaluation with this key (without `samples`), or None."""
        name = f"{key}.json"
        content = self._disk.read(f"objects/{name}")
        return None if content is None else rows.without_samples(self._parse(name, content)[0])

    def names(self) -> list[str]:
        """Those that are there."""
        return [name for name, _ in self._disk.names("objects")]

    def read(self, names: Sequence[str]) -> list[Entry]:
        """Of these, the ones that are still there.

        Raises:
            RaysenseError: One is damaged.
        """
        contents = self._disk.read_all([f"objects/{name}" for name in names])
        return [
            self._parse(name, content)
            for name, content in zip(names, contents, strict=True)
            if content is not None
        ]

    def delete(self, names: Sequence[str]) -> None:
        """Delete some."""
        self._disk.delete([f"objects/{name}" for name in names])

    def _parse(self, name: str, content: bytes) -> Entry:
        path = self._disk.path(f"objects/{name}")
        try:
            evaluation, levels = rows.from_object(content, f"`{path}`")
        except ValueError as error:
            raise RaysenseError(
                f"`{path}` is damaged or not a file of raysense ({error}). "
                "Delete it; a study measures again what is missing."
            ) from error
        if name_of(evaluation) != name:
            raise RaysenseError(f"`{path}` holds the evaluation {evaluation.key}. Delete the file.")
        return evaluation, levels


def name_of(evaluation: Evaluation) -> str:
    """Of the evaluation's object."""
    return f"{evaluation.key}{_FAILED if evaluation.failed else '.json'}"


def key_of(name: str) -> str:
    """The key of the evaluation in an object."""
    return name.removesuffix(_FAILED).removesuffix(".json")


def is_failed(name: str) -> bool:
    """Whether the object tells of a failure, by its name."""
    return name.endswith(_FAILED)
