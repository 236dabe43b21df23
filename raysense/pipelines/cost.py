"""What sampling costs, in NFE: plain data, free of torch.

NFE, the number of function evaluations: evaluations of the denoiser, one image each, conditional and unconditional
counted apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from raysense.study import ProbeRung, Sampling


@dataclass(frozen=True)
class Cost:
    """What one image costs.

    Attributes:
        image: NFE of an image.
        steps: Steps of its trajectory: how often the scheduler steps.
        told: Where this comes from, for people.
    """

    image: int
    steps: int
    told: str

    @property
    def step(self) -> int:
        """NFE of one step of an image's trajectory, at most."""
        return math.ceil(self.image / self.steps)

    def probe(self, rung: ProbeRung, *, records: bool = False) -> int:
        """A probe; with those of an evaluator's first one, which records the dense pipeline and checks itself."""
        replayed = min(rung.timesteps, self.steps) * self.step
        return rung.prompts * (replayed + (self.image + replayed if records else 0))


def assumed(sampling: Sampling) -> Cost:
    """What most pipelines cost: one call a step, twice as large where there is guidance."""
    guided = 2 if sampling.guidance > 1 else 1
    return Cost(sampling.steps * guided, sampling.steps, "assumed: one denoiser call a step")
