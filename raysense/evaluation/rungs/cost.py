"""What every rung costs beforehand, in NFE. Plain arithmetic, free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from raysense.evaluation.shards import images_of, is_split, ranges_of, reference_rung
from raysense.pipelines.cost import Cost
from raysense.records import CALIBRATION, Task
from raysense.study import Study


@dataclass(frozen=True)
class RungCosts:
    """NFE of a study's tasks.

    Attributes:
        study: The study.
        image: What an image costs: foreseen at first, counted later.
        calibration: What the calibration costs at most; 0 if the study needs none.
    """

    study: Study
    image: Cost
    calibration: int = 0

    def of(self, task: Task) -> int:
        """A task's, dense references not yet cached included; shards are paid for before."""
        study = self.study
        if task.rung == CALIBRATION:
            return self.calibration
        if task.rung == "probe":
            return self.probe
        if task.shard is not None:
            shards = ranges_of(study, task.shard.rung, task.shard.reference)
            return len(shards[task.shard.number]) * self.image.image
        own = 0 if is_split(study, task.rung) else 1
        reference = 0 if task.allocation or is_split(study, reference_rung(task.rung), reference=True) else 2
        return self.images(task.rung) * (own + reference)

    def images(self, rung: str) -> int:
        """All images of a rung."""
        return images_of(self.study, rung) * self.image.image

    @property
    def probe(self) -> int:
        """A probe."""
        return self.image.probe(self.study.rungs.probe)

    @property
    def climb(self) -> int:
        """A candidate that climbs to the score rung, at most."""
        return self.images("preview") + self.images("score")
