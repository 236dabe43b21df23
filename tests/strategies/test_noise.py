"""A bound below the noise is refused, with the number of prompts that it takes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from raysense.execution.local import run_in_process
from raysense.metrics.intervals import paired_drop
from raysense.records import Evaluation, Measure, Task
from raysense.store.store import Store
from raysense.strategies.noise import TYPICAL, foretold, needs, spread_of
from raysense.strategies.rules import closed_forms
from raysense.strategies.schedule import make_story
from raysense.study import load, parse
from tests.strategies.test_schedule import SIGNATURE, Landscape, made_up


class Noisy(Landscape):
    """Pruning does no harm, but images differ: the interval shrinks with the number of prompts."""

    spread = 0.03

    def evaluate(self, task: Task) -> Evaluation:
        found = super().evaluate(task)
        n = {"preview": 8, "score": 16, "validation": 32}.get(task.rung)
        if n is None or not task.allocation:
            return found
        reach = 2 * self.spread / n**0.5
        found.measures["clip_score_drop"] = Measure(0.0, -reach, reach, n, "made-up")  # type: ignore[index]
        return found


def refused(folder: Path, limit: float) -> str:
    plain, inventory, grid, _ = made_up(bisections=2, rounds=0)
    study = parse({**plain.model_dump(mode="json"), "constraints": {"clip_score": {"max_drop": limit}}})
    story = make_story(study, inventory, grid, closed_forms(inventory, grid, {}))
    landscape = Noisy(inventory, grid, noise=0.0)
    store = Store.open(str(folder), create=True)
    store.begin(study.model_dump(mode="json"), signature=SIGNATURE)
    run_in_process(story, landscape, store, signature=SIGNATURE, lookahead=4)
    if story.error is not None:
        assert {task.rung for task in landscape.tasks} <= {"preview", "score", "validation", "part"}
        assert sum(bool(task.allocation) for task in landscape.tasks) == 1, "one preview is all it took"
    return str(story.error or "")


def test_a_bound_below_the_noise_is_refused_with_the_number_it_takes(tmp_path: Path) -> None:
    words = refused(tmp_path / "tight", 0.005)
    assert "`constraints.clip_score.max_drop` is 0.005" in words
    asked = {
        rung: int(n.replace(",", "")) for rung, n in re.findall(r"`rungs\.(\w+)\.prompts` to ([\d,]+)", words)
    }
    assert set(asked) == {"score", "validation"}
    assert refused(tmp_path / "wide", 0.1) == ""


def test_with_the_number_that_is_named_harmless_candidates_pass() -> None:
    limit, spread = 0.003, 0.0275
    study = load(overrides=[f"constraints={{clip_score: {{max_drop: {limit}}}}}"])
    score, _ = needs(study, {"clip_score_drop": spread})
    assert not score.is_met
    rng = np.random.default_rng(0)

    def share(n: int) -> float:
        return float(
            np.mean([paired_drop(rng.normal(0, spread, n), np.zeros(n)).high <= limit for _ in range(800)])
        )

    assert share(score.least) == pytest.approx(0.5, abs=0.06)
    assert share(score.usual) == pytest.approx(0.9, abs=0.04)
    found = paired_drop(rng.normal(0, spread, 4000), np.zeros(4000))
    assert spread_of(Measure(found.value, found.low, found.high, 4000, ""), 4000) == pytest.approx(
        spread, rel=0.05
    )


def test_the_plan_says_it_from_a_typical_spread() -> None:
    tight = load(None, ["constraints={clip_score: {max_drop: 0.001}, kid: {max_rise: 0.1}}"])
    told = " ".join(foretold(tight))
    assert "`constraints.clip_score.max_drop` is 0.001" in told
    assert "Noise of `constraints.kid.max_rise`: known after" in told
    assert all("will be refused" not in line for line in foretold(load()))


@pytest.mark.parametrize("path", sorted(Path("search").glob("*.yaml")), ids=lambda path: path.stem)
def test_ready_studies_have_bounds_above_typical_noise(path: Path) -> None:
    study = load(path)
    found = needs(study, TYPICAL.get(study.pipeline, TYPICAL[""]))
    assert found
    assert [str(need) for need in found if not need.is_met] == []
