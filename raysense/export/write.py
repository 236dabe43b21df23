"""A study's allocation as a pruned pipeline on disk, plain or compressed.

The plain form is a folder that ``DiffusionPipeline.from_pretrained`` loads unchanged. In the compressed form every
pruned tensor is a bit mask and the values that stay; `expand` turns it back into the plain form, bit for bit, and
`load_compressed` loads it in one call.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

import raysense
from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.evaluation.evaluator import Evaluator
from raysense.export.card import model_card
from raysense.export.pack import RECORD, compress, weight_bytes, zstd_bytes
from raysense.pipelines.load import modules_of
from raysense.pruning.layers import weight_of
from raysense.results.pictures import evaluator_of
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
    evaluator = evaluator_of(run)
    with _scratch_beside(out) as scratch:
        dense, pruned = scratch / "dense", scratch / "pruned"
        evaluator.pipeline.save_pretrained(dense, safe_serialization=True)
        sizes = {"dense": weight_bytes(dense), "dense, zstd": zstd_bytes(dense)}
        shutil.rmtree(dense)
        zeros = evaluator.live.prune_for_good(chosen)
        evaluator.pipeline.save_pretrained(pruned, safe_serialization=True)
        sizes |= {"pruned": weight_bytes(pruned), "pruned, zstd": zstd_bytes(pruned)}
        small = scratch / "compressed"
        compress(pruned, small)
        sizes |= {"compressed": weight_bytes(small), "compressed, zstd": zstd_bytes(small)}
        record = _record(run, evaluator, chosen, zeros, sizes)
        finished = small if compressed else pruned
        (finished / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (finished / "README.md").write_text(model_card(run, record, compressed), encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
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


def _record(
    run: Run, evaluator: Evaluator, allocation: Allocation, zeros: int, sizes: Mapping[str, int]
) -> dict[str, Any]:
    candidates = run.candidates()
    own = candidates[candidates["allocation"] == allocation.key]
    held = own[own["rung"] == "validation"]
    key = held["key"].iloc[0] if len(held) else (own["key"].iloc[-1] if len(own) else None)
    measures = run.table("measures")
    modules = modules_of(evaluator.pipeline)
    layers = {
        layer.address: int((weight_of(modules, layer) == 0).sum()) for layer in evaluator.inventory.layers
    }
    return {
        "raysense_version": raysense.__version__,
        "study": run.study.name,
        "signature": run.record["signature"],
        "pipeline": run.study.pipeline,
        "revision": run.study.revision,
        "saliency": evaluator.live.saliency(allocation),
        "pattern": run.study.prune.pattern,
        "allocation": allocation.key,
        "levels": dict(allocation),
        "zeros": zeros,
        "zeros_by_layer": layers,
        **evaluator.inventory.sparsities(zeros),
        "rung": None if key is None else str(own[own["key"] == key]["rung"].iloc[0]),
        "feasible": None if key is None else bool(own[own["key"] == key]["feasible"].iloc[0]),
        "measures": {
            row["metric"]: {name: row[name] for name in ("value", "ci_low", "ci_high", "n", "extractor")}
            for row in measures[measures["key"] == key].to_dict("records")
        },
        "bytes": dict(sizes),
    }
