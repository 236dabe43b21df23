"""What a rung says beforehand that it costs is what the bundled pipeline is counted to take."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysense.allocation import Allocation
from raysense.evaluation.evaluator import Evaluator
from raysense.evaluation.rungs.cost import RungCosts
from raysense.evaluation.shards import shards_of
from raysense.pipelines.cost import assumed
from raysense.records import EvaluationRequest
from raysense.study import load

SETS = [
    "rungs.probe={prompts: 2, timesteps: 2}", "rungs.preview.prompts=8", "rungs.score.prompts=12",
    "rungs.validation.prompts=16", "sampling.steps=2",
]  # fmt: skip


@pytest.mark.parametrize("per_shard", [100, 14])
def test_every_request_costs_what_was_said(tmp_path: Path, per_shard: int) -> None:
    study = load(overrides=[*SETS, f"cluster.images_per_shard={per_shard}"])
    costs = RungCosts(study, assumed(study.sampling))
    evaluator = Evaluator(study, str(tmp_path))
    dense, pruned = Allocation(), evaluator.grid.uniform(0.3)
    for allocation in (dense, pruned):
        for rung in ("score", "validation"):
            shards = shards_of(study, allocation, rung)
            assert bool(shards) == (per_shard == 14 and (not allocation or rung == "validation"))
            for request in (*shards, EvaluationRequest(allocation, rung)):
                assert evaluator.evaluate(request).nfe == costs.of(request), request
    evaluator.evaluate(EvaluationRequest(evaluator.grid.uniform(0.2), "probe"))  # the first one records
    assert (
        evaluator.evaluate(EvaluationRequest(pruned, "probe")).nfe
        == costs.of(EvaluationRequest(pruned, "probe"))
        == costs.probe
    )
