"""What a driver knows of the weights: the same as the loaded pipeline says, without holding it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raysense.errors import RaysenseError
from raysense.evaluation.identity import inventory_and_grid
from raysense.evaluation.inputs import taken_away, versions
from raysense.evaluation.weights import Weights
from raysense.pipelines.load import load_pipeline, modules_of
from raysense.pruning.allocation_rules import counts_below
from raysense.strategies.rules import built_in_rules
from raysense.study import Study, load


def weights_of(study: Study, folder: Path, told: list[str]) -> Weights:
    return Weights(study, str(folder), {**taken_away(study), "versions": versions()}, told.append)


def test_as_the_loaded_pipeline_says_and_once_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, told = load(overrides=["dtype=bfloat16", "search.strategies=[uniform, lamp, global]"]), list[str]()
    pipeline = load_pipeline("bundled", dtype="bfloat16")
    inventory, grid = inventory_and_grid(study, pipeline.components)
    inner = built_in_rules(inventory, grid, modules_of(pipeline))
    with weights_of(study, tmp_path, told) as weights:
        assert weights.inventory() == inventory
        outer = built_in_rules(inventory, grid, {}, counts=weights.counts)
        for rule in ("lamp", "global"):
            assert np.array_equal(weights.counts(rule), counts_below(rule, inventory, modules_of(pipeline)))
            for share in (0.0, 0.1, 0.5, 0.9, 1.0):
                zeros = min(int(share * grid.n), grid.max_zeros)
                assert outer[rule](zeros) == inner[rule](zeros)
    assert told[0].startswith("Loading the pipeline")

    monkeypatch.setattr("subprocess.Popen", None)  # nothing is loaded anew
    with weights_of(study, tmp_path, told) as weights:
        assert weights.inventory() == inventory
        assert weights.counts("lamp").shape[0] == len(inventory.layers)


def test_a_pipeline_that_cannot_be_had_is_said_in_its_own_words(tmp_path: Path) -> None:
    study = load(overrides=["prune.include=[nothing_of_the_kind]"])
    with (
        weights_of(study, tmp_path, []) as weights,
        pytest.raises(RaysenseError, match=r"include.*matches none"),
    ):
        weights.inventory()
