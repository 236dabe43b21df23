"""EvoPress at its published length on the probe alone, at a total that is given to it; part of `benchmarks.search`.

400 generations of 64 offspring, survivors 8, 2 and 1, as its authors run it on language models with 2,048, 16,384 and
65,536 tokens (1 : 8 : 32) that are drawn anew for every selection. Here a selection draws 1, 4 or all 16 of 16 recorded
groups of prompts. It can be stopped after any generation and goes on there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raysense.allocation import Allocation
from raysense.evaluation.evaluator import Evaluator
from raysense.evaluation.rungs.probe import Probe
from raysense.evaluation.sampler import seed_of
from raysense.feasibility import is_feasible
from raysense.metrics.builtin.probe_error import PROBE_ERROR
from raysense.pipelines.cost import assumed
from raysense.pruning.allocation_rules import uniform
from raysense.records import Evaluation, EvaluationRequest
from raysense.strategies.evopress import generation
from raysense.study import Study

GENERATIONS = 400
GROUPS, A_GROUP = 16, 4
"""Recorded groups of prompts, and the prompts of each."""

DRAWN = (1, 4, 16)
"""Groups that a selection sees."""


class Data:
    """Recorded trajectories of the dense pipeline, of which each selection sees some."""

    def __init__(self, study: Study, evaluator: Evaluator, groups: int) -> None:
        live, rung = evaluator.live, study.rungs.probe
        live.stand_at(Allocation())
        self._evaluator, self.tuples = evaluator, A_GROUP * min(rung.timesteps, assumed(study.sampling).steps)
        prompts = live.prompts.search[: groups * A_GROUP]
        self._probes = [
            Probe(
                live.pipeline, prompts[start : start + A_GROUP], [seed_of(study, 0, 0)] * A_GROUP, study.sampling,
                rung.timesteps, decodes=False, tilt=rung.tilt,
            )
            for start in range(0, len(prompts), A_GROUP)
        ]  # fmt: skip
        self.calls = 0

    def losses(self, pool: list[Allocation], groups: int, rng: np.random.Generator) -> list[float]:
        """Mean probe error of each on so many groups, the same for all, drawn anew at each call."""
        chosen = rng.permutation(len(self._probes))[:groups]
        found = []
        for allocation in pool:
            self._evaluator.stand_at(allocation)
            errors = [self._probes[int(i)].errors()[PROBE_ERROR].mean() for i in chosen]
            self.calls += len(chosen)
            found.append(float(torch.stack(errors).mean()))
        return found


@torch.inference_mode()
def run_long(
    study: Study, ours: Evaluation, levels: Mapping[str, int], folder: Path, generations: int | None = None
) -> dict[str, Any]:
    """Run it, or go on; what it came to, as plain data.

    Args:
        study: Whose pipeline, probe, bounds and held-out prompts.
        ours: What raysense ended at: its zeros are the total.
        levels: Its allocation.
        folder: Where the last generation is kept.
        generations: How many in all; the published number if None.
    """
    wanted = generations or GENERATIONS
    evaluator = Evaluator(study, str(folder))
    grid = evaluator.grid
    data = Data(study, evaluator, min(GROUPS, max(1, wanted)))
    a_call = data.tuples * assumed(study.sampling).step
    file = folder / "state.json"
    start = uniform(evaluator.inventory, grid, ours.zeros)
    state: dict[str, Any] = {"generation": 0, "levels": dict(start), "nfe": 0, "last": None}
    if file.exists():
        state = json.loads(file.read_text())
    else:
        state["first"] = data.losses([start], GROUPS, np.random.default_rng(study.seed))[0]
    while state["generation"] < wanted:
        rng, data.calls = np.random.default_rng([study.seed, state["generation"]]), 0
        steps = generation(grid, Allocation(state["levels"]), rng)
        stage, pool = next(steps)
        try:
            while True:
                stage, pool = steps.send(data.losses(pool, DRAWN[stage], rng))
        except StopIteration as ended:
            parent, loss = ended.value
        state |= {
            "generation": state["generation"] + 1, "levels": dict(parent), "last": loss,
            "nfe": state["nfe"] + data.calls * a_call,
        }  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(state))
    survivor = Allocation(state["levels"])
    state["ours"] = data.losses([Allocation(levels)], GROUPS, np.random.default_rng(study.seed))[0]
    bounds = study.constraints.bounds()
    row = evaluator.evaluate(EvaluationRequest(survivor, "validation"))
    drop = row.measures["clip_score_drop"]
    return {
        "generation": state["generation"], "of": GENERATIONS, "nfe": state["nfe"], "first": state["first"],
        "last": state["last"], "ours": state["ours"], "feasible": is_feasible(row, bounds),
        "sparsity_components": row.zeros / evaluator.inventory.n_components,
        "drop": {"value": drop.value, "ci_low": drop.ci_low, "ci_high": drop.ci_high},
    }  # fmt: skip
