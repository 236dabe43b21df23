"""A bound below the noise is refused, with the number of prompts that it takes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from raysense.errors import RaysenseError
from raysense.execution.local import LocalExecutor
from raysense.metrics.intervals import paired_drop
from raysense.records import Bound, Evaluation, EvaluationRequest, Measure
from raysense.store.store import Store
from raysense.strategies.baseline import refuse_impossible
from raysense.strategies.noise import foretold, foretold_short, given_spreads, needs, spread_of, typical_of
from raysense.strategies.rules import built_in_rules
from raysense.strategies.schedule import make_strategy
from raysense.study import load, parse
from tests.strategies.test_schedule import SIGNATURE, Landscape, made_up


class Noisy(Landscape):
    """Pruning does no harm, but images differ: the interval shrinks with the number of prompts."""

    spread = 0.03
    measure = "clip_score_drop"
    dense, pruned = 0.0, 0.0

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        found = super().evaluate(request)
        n = {"preview": 8, "score": 16, "validation": 32}.get(request.rung)
        if n is None:
            return found
        value, reach = (self.pruned, 2 * self.spread / n**0.5) if request.allocation else (self.dense, 0.0)
        found.measures[self.measure] = Measure(value, value - reach, value + reach, n, "made-up")  # type: ignore[index]
        return found


def refused(folder: Path, limit: float, constraints: dict[str, Any] | None = None, **kind: Any) -> str:
    plain, inventory, grid, _ = made_up(bisections=2, rounds=0)
    definition = plain.model_dump(mode="json")
    definition["metrics"]["custom"] = {"sharp": "own_metrics.sharp"}
    study = parse({**definition, "constraints": constraints or {"clip_score": {"max_drop": limit}}})
    runner = make_strategy(study, inventory, grid, built_in_rules(inventory, grid, {}))
    landscape = Noisy(inventory, grid, noise=0.0)
    for name, value in kind.items():
        setattr(landscape, name, value)
    store = Store.open(str(folder), create=True)
    store.begin(study.model_dump(mode="json"), signature=SIGNATURE)
    LocalExecutor(landscape).run(runner, store, signature=SIGNATURE, lookahead=4)
    if runner.error is not None:
        assert {request.rung for request in landscape.requests} <= {"preview", "score", "validation", "shard"}
        assert sum(bool(request.allocation) for request in landscape.requests) == 1, (
            "one preview is all it took"
        )
    return str(runner.error or "")


def test_a_bound_below_the_noise_is_refused_with_the_number_it_takes(tmp_path: Path) -> None:
    words = refused(tmp_path / "tight", 0.005)
    assert "`constraints.clip_score.max_drop` is 0.005" in words
    asked = {
        rung: int(n.replace(",", "")) for rung, n in re.findall(r"`rungs\.(\w+)\.prompts` to ([\d,]+)", words)
    }
    assert set(asked) == {"score", "validation"}
    assert refused(tmp_path / "wide", 0.1) == ""


OTHERS = {
    "kid_rise": ("constraints.kid.max_rise", {"kid": {"max_rise": "LIMIT"}}),
    "cmmd_rise": ("constraints.cmmd.max_rise", {"cmmd": {"max_rise": "LIMIT"}}),
    "frechet_rise": ("constraints.frechet.max_rise", {"frechet": {"max_rise": "LIMIT"}}),
    "precision_drop": ("constraints.precision.max_drop", {"precision": {"max_drop": "LIMIT"}}),
    "sharp_drop": ("constraints.custom.sharp.max_drop", {"custom": {"sharp": {"max_drop": "LIMIT"}}}),
}


@pytest.mark.parametrize("measure", OTHERS)
def test_so_is_that_of_any_difference(measure: str, tmp_path: Path) -> None:
    field, plain = OTHERS[measure]
    for limit, told in ((0.005, True), (0.1, False)):
        constraints = json.loads(json.dumps(plain).replace('"LIMIT"', str(limit)))
        words = refused(tmp_path / f"{limit}", limit, constraints, measure=measure)
        assert (f"`{field}` is {limit:g}, but on the" in words) == told, words


@pytest.mark.parametrize(
    ("limit", "pruned", "told"),
    [
        (0.998, 0.9995, True),  # inside, but its interval is ten times as wide as what the bound leaves
        (0.8, 0.95, False),
        (0.998, 0.7, False),  # that is no noise: lighter candidates differ less, and so do their intervals
    ],
)
def test_and_that_of_what_is_compared_with_the_dense_images(
    limit: float, pruned: float, told: bool, tmp_path: Path
) -> None:
    constraints = {"closeness": {"min": limit}}
    words = refused(tmp_path, limit, constraints, measure="closeness", dense=1.0, pruned=pruned)
    assert ("`constraints.closeness.min` is 0.998" in words) == told, words
    assert not told or re.search(r"or loosen the bound to 0\.9[0-9]* at least", words)


def test_an_absolute_bound_is_held_against_the_dense_pipelines_own_interval() -> None:
    bound = Bound("constraints.clip_score.min", "clip_score", False, 0.29)
    dense = {
        rung: replace(
            Evaluation(rung=rung, measures={}, zeros=0, images=1, nfe=1, seconds=0.0),
            measures={"clip_score": Measure(0.3, 0.291, 0.309, 32, "made-up")},
        )
        for rung in ("score", "validation")
    }
    refuse_impossible(dense, [bound], 1.0)
    with pytest.raises(RaysenseError, match=r"0\.309\] on the validation rung, tested 1\.2 times as wide"):
        refuse_impossible(dense, [bound], 1.2)


def test_with_the_number_that_is_named_harmless_candidates_pass() -> None:
    limit, spread = 0.003, 0.0275
    study = load(overrides=[f"constraints={{clip_score: {{max_drop: {limit}}}}}"])
    score, _ = needs(study, {"clip_score_drop": spread})
    assert not score.is_met
    rng = np.random.default_rng(0)

    def share(n: int) -> float:
        return float(
            np.mean([paired_drop(rng.normal(0, spread, n), np.zeros(n)).ci_high <= limit for _ in range(800)])
        )

    assert share(score.least) == pytest.approx(0.5, abs=0.06)
    assert share(score.usual) == pytest.approx(0.9, abs=0.04)
    found = paired_drop(rng.normal(0, spread, 4000), np.zeros(4000))
    assert spread_of(Measure(found.value, found.ci_low, found.ci_high, 4000, ""), 4000) == pytest.approx(
        spread, rel=0.05
    )


def test_the_plan_says_it_from_a_typical_spread() -> None:
    tight = load(
        None, ["pipeline=some/pipeline", "constraints={clip_score: {max_drop: 0.001}, kid: {max_rise: 0.1}}"]
    )
    told = " ".join(foretold(tight))
    assert "`constraints.clip_score.max_drop` is 0.001" in told
    assert (
        "Noise of `constraints.kid.max_rise`: known after the dense baseline; the study is refused then"
        in told
    )
    assert all("will be refused" not in line for line in foretold(load()))


def test_the_plan_says_it_from_a_spread_that_is_given() -> None:
    study = load(
        None,
        ["constraints={clip_score: {max_drop: 0.01, min: 0.1}, kid: {max_rise: 0.1}, closeness: {min: 0.9}}"],
    )
    known = given_spreads(study, ["kid=1.2", "closeness=0.05", "clip_score_drop=0.02"])
    assert known == {"kid_rise": 1.2, "closeness": 0.05, "clip_score_drop": 0.02}
    by_field = {need.bound.field: need for need in needs(study, known) if need.rung == "score"}
    kid = by_field["constraints.kid.max_rise"]
    # Half an interval is t × spread / √prompts; the number that just fits the bound follows.
    reach = float(stats.t.ppf(0.975, kid.prompts - 1)) * 1.2 / kid.prompts**0.5
    assert (kid.reach, kid.room) == (pytest.approx(reach), 0.1)
    assert kid.least == pytest.approx(kid.prompts * (reach / 0.1) ** 2, abs=1)
    assert by_field["constraints.closeness.min"].room == pytest.approx(0.1)
    told = foretold(study, known)
    assert f"`rungs.score.prompts` to {kid.least:,} at least" in " ".join(told)
    assert sum("(given)" in line for line in told) == 4, (
        "two bounds that are kept, and one missed on both rungs"
    )
    (later,) = [line for line in told if "known after" in line]
    assert "`constraints.clip_score.min`" in later
    assert "the dense pipeline's own interval" in later
    for text, words in {
        "fid=1": "'fid' is no measure whose spread matters; there are: clip_score_drop, closeness, kid_rise",
        "kid=x": "with a positive number",
        "kid=-1": "with a positive number",
        "kid": "with a positive number",
    }.items():
        with pytest.raises(RaysenseError, match=re.escape(words)):
            given_spreads(study, [text])


def test_validate_says_what_is_below_a_typical_noise_or_not_known() -> None:
    (tight, held_out, kid) = foretold_short(
        load(
            None,
            ["pipeline=some/pipeline", "constraints={clip_score: {max_drop: 0.001}, kid: {max_rise: 0.1}}"],
        )
    )
    assert "`rungs.score.prompts`" in tight
    assert "`rungs.validation.prompts`" in held_out
    assert "`raysense plan --spread kid_rise=VALUE`" in kid


@pytest.mark.parametrize("path", sorted(Path("search").glob("*.yaml")), ids=lambda path: path.stem)
def test_ready_studies_have_bounds_above_typical_noise(path: Path) -> None:
    study = load(path)
    found = needs(study, typical_of(study.pipeline)[0])
    assert found
    assert [str(need) for need in found if not need.is_met] == []
