"""What a driver has to know of a pipeline's weights, without ever holding them.

A process of its own loads the pipeline, says which layers there are, counts their scores for the rules of one threshold
(`allocation_rules.BY_THRESHOLD`) while the study already begins, and ends. What it found is kept in the study's cache,
so that a study that is resumed loads nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

import torch

from raysense.child_process import Child, Say, Tell, answer
from raysense.errors import RaysenseError
from raysense.evaluation.cache import TensorCache
from raysense.evaluation.identity import inventory_of
from raysense.hashing import content_key
from raysense.pipelines.load import load_for, modules_of
from raysense.pruning.allocation_rules import BY_THRESHOLD, Counts, counts_below
from raysense.pruning.layers import Inventory, Layer
from raysense.store.disk import Disk
from raysense.study import Study, parse

_ELSEWHERE = ("sampling", "metrics", "constraints", "rungs", "search", "seed")
"""Parts of a study that no weight depends on."""


class Weights:
    """The layers of a study's pipeline, and the counts of their scores; a context manager.

    Args:
        study: The study.
        directory: Its store.
        inputs: What it is measured on, see `inputs.inputs_of`.
        tell: Called with a line now and then while something is waited for.

    Raises:
        RaysenseError: The pipeline cannot be had; from `inventory`.
    """

    def __init__(self, study: Study, directory: str, inputs: Mapping[str, Any], tell: Tell) -> None:
        self._study, self._directory, self._tell = study, directory, tell
        identity = {part: value for part, value in study.identity().items() if part not in _ELSEWHERE}
        self._key = content_key("weights", identity, inputs["pipeline"], inputs["versions"])
        self._blobs = TensorCache(Disk(directory))
        self._child: Child | None = None

    def __enter__(self) -> Weights:
        keys = (self._key, *(self._counts_key(rule) for rule in self.rules))
        if not all(self._blobs.is_whole(key) for key in keys):
            self._begin()  # whoever asks first has something else to do meanwhile
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.end()

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules whose counts the study's strategies need."""
        sweep = self._study.sweep
        wanted = {*self._study.search.strategies, *(sweep.rules if sweep else ())}
        return tuple(rule for rule in BY_THRESHOLD if rule in wanted)

    def inventory(self) -> Inventory:
        """The selected layers and the denominators, as the loaded pipeline has them."""
        stored = None if self._child else self._blobs.get(self._key)
        if stored is not None:
            return _inventory_from(json.loads(bytes(stored["inventory"].tolist())))
        found = self._awaited("inventory")
        text = json.dumps(found).encode()
        self._blobs.put(self._key, {"inventory": torch.frombuffer(bytearray(text), dtype=torch.uint8)})
        return _inventory_from(found)

    @cache  # noqa: B019 (as many objects as studies)
    def counts(self, rule: str) -> Counts:
        """What `allocation_rules.counts_below` gives of the dense weights; waits until they are counted."""
        stored = self._blobs.get(self._counts_key(rule))
        if stored is None:
            self._awaited(rule)
            stored = self._blobs.get(self._counts_key(rule))
        if stored is None:
            raise RaysenseError(f"the cache of `{self._directory}` lost what was counted for {rule}; resume")
        found: Counts = stored["counts"].numpy()
        return found

    def _counts_key(self, rule: str) -> str:
        return content_key("counts", self._key, rule)

    def _awaited(self, what: str) -> Any:
        child = self._child or self._begin()
        return child.awaited(what, self._tell, "Loading the pipeline for its layers …")

    def _begin(self) -> Child:
        order = {
            "study": self._study.model_dump(mode="json"),
            "directory": self._directory,
            "counts": {rule: self._counts_key(rule) for rule in self.rules},
        }
        self._child = Child(__name__, order)
        return self._child


def _inventory_from(plain: Mapping[str, Any]) -> Inventory:
    layers = tuple(Layer(**{**layer, "shape": tuple(layer["shape"])}) for layer in plain["layers"])
    return Inventory(**{**plain, "layers": layers})


def main(order: Mapping[str, Any], say: Say) -> None:
    """Says the inventory, then counts for one rule after the other; the counts go to the cache."""
    study, cache = parse(order["study"]), TensorCache(Disk(order["directory"]))
    pipeline = load_for(study)
    inventory = inventory_of(study, pipeline.components)
    say("inventory", asdict(inventory))
    total = len(inventory.layers)
    for rule, key in order["counts"].items():

        def tell(count: int, rule: str = rule) -> None:
            if count % 50 == 0:
                say("progress", f"Counting weights for {rule}: {count} of {total} layers …")

        cache.put(
            key, {"counts": torch.from_numpy(counts_below(rule, inventory, modules_of(pipeline), tell))}
        )
        say(rule, True)


if __name__ == "__main__":
    answer(main)
