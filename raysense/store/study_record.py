"""What a store records of its study: `study.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import raysense
from raysense.errors import RaysenseError
from raysense.feasibility import Budget
from raysense.store.bucket import ABSENT, Moved, Version
from raysense.store.checksummed_json import seal
from raysense.store.differences import refusal
from raysense.store.disk import Disk, read_sealed_version
from raysense.store.lock import LockLost


class StudyRecord:
    """The study of a store, read once."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._study: dict[str, Any] | None = None
        self._version: Version = ABSENT

    def read(self) -> dict[str, Any] | None:
        """The record; None if there is no study yet.

        Raises:
            RaysenseError: The file is damaged, or no study of raysense.
        """
        if self._study is None:
            remedy = "Restore it from a copy, or start the study in another folder."
            study, version = read_sealed_version(self._disk, "study.json", remedy)
            if study is not None:
                missing = {"signature", "definition", "denominators", "inputs"} - set(study)
                if missing:
                    raise RaysenseError(
                        f"`{self._disk.path('study.json')}` is not a study of raysense "
                        f"(no {sorted(missing)}). {remedy}"
                    )
            self._study, self._version = study, version
        return self._study

    def begin(
        self,
        plain: dict[str, Any],
        signature: str,
        denominators: Mapping[str, int],
        extensions: Sequence[str],
        inputs: Mapping[str, Any],
        budget: Budget | None,
        looks: Sequence[Mapping[str, str]],
        before: Callable[[str], None],
    ) -> None:
        """Record what the study is, or check that it is still the same.

        Args:
            plain: The definition, as JSON knows it.
            signature: See `Store.begin`.
            denominators: See `Store.begin`.
            extensions: See `Store.begin`.
            inputs: See `Store.begin`.
            budget: See `Store.begin`.
            looks: See `Store.begin`.
            before: Called with the stored signature before the record is written.

        Raises:
            RaysenseError: Another study is stored; shows each differing field.
        """
        self._study = None  # another driver may have begun it since it was read
        study = self.read()
        if study is None:
            study = {
                "signature": signature,
                "raysense_version": raysense.__version__,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "denominators": {},
            }
        elif study["signature"] != signature:
            raise RaysenseError(refusal(self._disk.uri, study, plain, extensions, inputs))
        new = {
            **study,
            "definition": plain,
            "inputs": json.loads(json.dumps(inputs)),
            "budget": budget.to_fields() if budget else None,
            "denominators": {**study["denominators"], **{k: int(v) for k, v in denominators.items()}},
        }
        if looks:
            new["looks"] = [dict(look) for look in looks]
        if new != study:
            before(study["signature"])
            try:
                self._version = self._disk.write_if("study.json", seal(new, indent=1), self._version)
            except Moved:
                raise LockLost(
                    f"store `{self._disk.uri}`: another driver has begun a study there meanwhile. Nothing is lost; "
                    "start again."
                ) from None
            self._study = new
