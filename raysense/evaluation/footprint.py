"""What an image takes of a GPU's memory beside the weights, as an evaluator measured it; kept beside the store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch

from raysense.evaluation.inputs import taken_away
from raysense.evaluation.memory import forget_peak
from raysense.hashing import content_key
from raysense.store.checksummed_json import seal
from raysense.store.disk import Disk, read_sealed
from raysense.study import Study


@dataclass(frozen=True)
class Footprint:
    """A measurement.

    Attributes:
        image: Bytes an image: the peak of a batch, less what lay there before, over its images.
        batch: Its images.
        device: The GPU's name.
    """

    image: int
    batch: int
    device: str


def footprint_key(study: Study) -> str:
    """The name of a measurement in a store: whatever changes what an image takes changes it, but for the batch."""
    return content_key(
        "footprint",
        taken_away(study)["pipeline"],
        study.dtype,
        study.channels_last,
        study.sampling.model_dump(mode="json", exclude={"batch"}),
        study.metrics.model_dump(mode="json"),
    )


def stored_footprint(disk: Disk, study: Study) -> Footprint | None:
    """What an evaluator of this store measured, or None."""
    record = read_sealed(disk, _name(study), "Delete it; it is measured again.")
    return None if record is None else Footprint(record["image"], record["batch"], record["device"])


@contextmanager
def measured_footprint(disk: Disk, study: Study, batch: int) -> Iterator[None]:
    """Measure the batch that is sampled and judged while this is open, on a GPU that holds all weights."""
    if not torch.cuda.is_available() or study.cluster.gpus_per_evaluator <= 0 or study.offload != "none":
        yield
        return
    before = forget_peak()
    yield
    torch.cuda.synchronize()
    keep(
        disk,
        study,
        Footprint(
            -(-(torch.cuda.max_memory_allocated() - before) // batch), batch, torch.cuda.get_device_name()
        ),
    )


def keep(disk: Disk, study: Study, found: Footprint) -> None:
    """Store a measurement, unless one of at least its size is there."""
    there = stored_footprint(disk, study)
    if there is None or there.image < found.image:
        disk.write(_name(study), seal(asdict(found), indent=1))


def _name(study: Study) -> str:
    return f"cache/{footprint_key(study)}.json"
