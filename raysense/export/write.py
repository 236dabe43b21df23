"""A study's allocation as a pruned pipeline on disk, plain or compressed.

The plain form is a folder that ``DiffusionPipeline.from_pretrained`` loads unchanged. In the compressed form every
pruned tensor is a bit mask and the values that stay; `expand` turns it back into the plain form, bit for bit, and
`load_compressed` loads it in one call.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

import raysense
from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.evaluation.cache import TensorCache
from raysense.evaluation.identity import inventory_and_grid
from raysense.evaluation.inputs import identity_of_choice, prompts_of, refuse_other, use_code
from raysense.evaluation.learned import Learned
from raysense.evaluation.method_selection import best_methods, components_of, method_in_words, selection_key
from raysense.export.card import model_card
from raysense.export.dense import write_dense
from raysense.export.pack import RECORD, compress, weight_bytes, zstd_bytes
from raysense.export.prune import prune_folder
from raysense.pipelines.load import empty_components
from raysense.pipelines.origin import Origin
from raysense.results.pictures import evaluator_of, on_this_machine
from raysense.results.run import Run


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        out: The folder.
        allocation: Its allocation's key.
        zeros: Zeros counted among the selected layers' weights as they were written.
        sizes: Bytes of the weight files, by form.
    """

    out: Path
    allocation: str
    zeros: int
    sizes: Mapping[str, int]


def export(
    uri: str, out: Path, *, allocation: str | None = None, compressed: bool = False, force: bool = False
) -> Exported:
    """Write a study's allocation as a pipeline.

    Args:
        uri: The study's folder or address.
        out: The folder to write; complete or not there, whatever stops this.
        allocation: Content hash of a stored allocation; None for the winner.
        compressed: Write the compressed form instead of the plain one.
        force: Replace a folder that an earlier export wrote.

    Raises:
        RaysenseError: There is no such allocation, `out` is there already, the pipeline cannot be loaded.
    """
    _refuse_to_replace(out, force)
    run = Run(uri)
    if allocation is None:
        allocation = (run.summary or {}).get("allocation")
        if allocation is None:
            state = "has not finished" if run.summary is None else "has no winner"
            raise RaysenseError(f"`{uri}`: the study {state}; name one of its allocations with --allocation")
    chosen = run.allocation(allocation)
    source = _Source(run)
    with _scratch_beside(out) as scratch:
        folder = scratch / "pruned"
        write_dense(source.study, folder)
        sizes = {"dense": weight_bytes(folder), "dense, zstd": zstd_bytes(folder)}
        by_layer = source.prune(folder, chosen)
        zeros = sum(by_layer.values())
        sizes |= {"pruned": weight_bytes(folder), "pruned, zstd": zstd_bytes(folder)}
        small = scratch / "compressed"
        compress(folder, small)
        sizes |= {"compressed": weight_bytes(small), "compressed, zstd": zstd_bytes(small)}
        record = _record(source, chosen, by_layer, sizes)
        finished = small if compressed else folder
        (finished / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (finished / "README.md").write_text(model_card(run, record, compressed), encoding="utf-8")
        if out.exists():
            # Moved in one step: taken apart here, half of it would be left where this is stopped.
            out.rename(scratch / "replaced")
        finished.rename(out)
    return Exported(out, chosen.key, zeros, sizes)


@contextmanager
def _scratch_beside(out: Path) -> Iterator[Path]:
    """A folder beside `out` that is gone afterwards, whatever happens.

    Raises:
        RaysenseError: Something cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".raysense-export-", dir=out.parent) as scratch:
            yield Path(scratch)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise RaysenseError(
            f"`--out {out}` cannot be written: {reason}; choose a place with room that you may write to"
        ) from error


# --- parts --------------------------------------------------------------------------------------------


def _refuse_to_replace(out: Path, force: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise RaysenseError(
            f"`--out {out}` is there already; give another folder, or --force for an older export"
        )
    if out.is_symlink() or not (out / RECORD).is_file():
        raise RaysenseError(
            f"`--out {out}` holds no export of raysense (no {RECORD}), so --force does not replace it; "
            "give another folder"
        )


class _Source:
    """What a stored study's allocations are made from: its layers, and what its method learned."""

    def __init__(self, run: Run) -> None:
        use_code(run.disk)
        refuse_other(run.record, run.study, run.uri)
        self.run, self.study = run, on_this_machine(run.study)
        empty = empty_components(Origin.of(self.study))
        self._classes = {name: type(module) for name, module in empty.items()}
        self.inventory, self._grid = inventory_and_grid(self.study, empty)
        prompts = prompts_of(run.record, self.study, run.disk)
        self._learned = Learned(
            self.study, self.inventory, self._grid, prompts, run.disk, identity_of_choice(self.study)
        )
        self._methods = self._kept_methods()
        if not self._methods or not self._learned.has_all(set(self._methods.values())):
            self._methods = self._learn()

    def saliency(self, allocation: Allocation) -> str:
        """What prunes, as the rows of the allocation say it."""
        return method_in_words(self.study.prune.methods, self._methods if allocation else {})

    def prune(self, folder: Path, allocation: Allocation) -> dict[str, int]:
        """Bring a dense folder to an allocation; layer -> zeros, counted."""
        return prune_folder(
            folder,
            self._classes,
            self.inventory,
            self._grid,
            allocation,
            lambda layer, weight, level: self._learned.at_level(
                layer, weight, level, self._methods[layer.component]
            ),
            getattr(torch, self.study.dtype),
        )

    def _kept_methods(self) -> dict[str, str]:
        """Component -> method, as the study decided; empty if that is no longer known."""
        names = self.study.prune.methods
        if len(names) == 1:
            return dict.fromkeys(components_of(self._grid), names[0])
        compared = TensorCache(self.run.disk).get(selection_key(self.run.record["signature"]))
        return {} if compared is None else best_methods(names, compared)

    def _learn(self) -> dict[str, str]:
        """Learn anew what the study's cache has lost, or what was learned on another kind of machine."""
        live = evaluator_of(self.run).live
        methods = dict(live.methods or live.select_methods())
        with live.watchable():
            live.calibration.learn()
        return methods


def _record(
    source: _Source, allocation: Allocation, zeros: Mapping[str, int], sizes: Mapping[str, int]
) -> dict[str, Any]:
    run, total = source.run, sum(zeros.values())
    candidates = run.candidates()
    saliency = source.saliency(allocation)
    # A sweep may have measured the same allocation by other methods too.
    method = " ".join(filter(None, (saliency, run.study.prune.pattern)))
    own = candidates[(candidates["allocation"] == allocation.key) & (candidates["method"] == method)]
    held = own[own["rung"] == "validation"]
    key = held["key"].iloc[0] if len(held) else (own["key"].iloc[-1] if len(own) else None)
    measures = run.table("measures")
    return {
        "raysense_version": raysense.__version__,
        "study": run.study.name,
        "signature": run.record["signature"],
        "pipeline": run.study.pipeline,
        "revision": run.study.revision,
        "saliency": saliency,
        "pattern": run.study.prune.pattern,
        "allocation": allocation.key,
        "levels": dict(allocation),
        "zeros": total,
        "zeros_by_layer": dict(zeros),
        **source.inventory.sparsities(total),
        "rung": None if key is None else str(own[own["key"] == key]["rung"].iloc[0]),
        "feasible": None if key is None else bool(own[own["key"] == key]["feasible"].iloc[0]),
        "measures": {
            row["metric"]: {name: row[name] for name in ("value", "ci_low", "ci_high", "n", "extractor")}
            for row in measures[measures["key"] == key].to_dict("records")
        },
        "bytes": dict(sizes),
    }
