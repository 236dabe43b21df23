"""What every rung costs beforehand, in NFE. Plain arithmetic, free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raysense.evaluation.shards import images_of, is_split, ranges_of, reference_rung
from raysense.pipelines.cost import Cost
from raysense.records import CALIBRATION, EvaluationRequest
from raysense.study import Study


@dataclass(frozen=True)
class RungCosts:
    """NFE of a study's requests.

    Attributes:
        study: The study.
        image: What an image costs: foreseen at first, counted later.
        calibration: What the calibration costs at most; 0 if the study needs none.
        methods: What other methods' calibrations cost at most, see `EvaluationRequest.method`.
    """

    study: Study
    image: Cost
    calibration: int = 0
    methods: Mapping[str, int] = field(default_factory=dict)

    def of(self, request: EvaluationRequest) -> int:
        """A request's, dense references not yet cached included; shards are paid for before."""
        study = self.study
        if request.rung == CALIBRATION:
            return self.methods[request.method] if request.method else self.calibration
        if request.rung == "layer":
            return self.layer
        if request.rung == "probe":
            return self.probe
        if request.shard is not None:
            shards = ranges_of(study, request.shard.rung, request.shard.reference)
            return len(shards[request.shard.number]) * self.image.image
        own = 0 if is_split(study, request.rung) else 1
        reference = (
            0 if request.allocation or is_split(study, reference_rung(request.rung), reference=True) else 2
        )
        return self.images(request.rung) * (own + reference)

    def images(self, rung: str) -> int:
        """All images of a rung."""
        return images_of(self.study, rung) * self.image.image

    @property
    def layer(self) -> int:
        """The layers' own outputs, at most: as if all of them ran."""
        rung = self.study.rungs.layer
        return rung.prompts * min(rung.timesteps, self.image.steps) * self.image.step

    @property
    def probe(self) -> int:
        """A probe."""
        return self.image.probe(self.study.rungs.probe)

    @property
    def climb(self) -> int:
        """A candidate that climbs to the score rung, at most."""
        return self.images("preview") + self.images("score")
