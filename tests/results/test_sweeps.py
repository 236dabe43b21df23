"""Rankings, agreement with the probe and pairs, from the committed rows of a sweep whose answers are known."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from raysense.metrics.intervals import quantile
from raysense.results.sweeps import CURVE, agreement_of, labels_of, pairs_of, ranking_of
from raysense.strategies.screen import subsets
from raysense.study import Study, load

GROUPS = [f"unet:block.{number}" for number in range(8)]
TRUE = np.array([0.2, 0.1, 0.05, 0.02, 0.0, 0.0, 0.0, 0.0])
N, ERROR = 64, 0.004


class Stored:
    """What the tables are made from: a study's definition."""

    def __init__(self, study: Study) -> None:
        self.study = study


def row(
    name: str, shares: dict[str, float], loss: float, over: str = "block", rung: str = "preview"
) -> dict[str, object]:
    reach = quantile(N - 1) * ERROR
    groups = " + ".join(shares)
    return {
        "key": f"{name} {groups} {rung}", "point_set": name, "granularity": over, "groups": groups, "rule": "uniform",
        "method": "magnitude", "steps_from": np.nan, "steps_to": np.nan, "rung": rung, "shares": json.dumps(shares),
        "weights": 1000 * len(shares), "sparsity": 0.5, "listed": True, "allocation": groups, "zeros": 500,
        "collapsed": "", "failed": "", "clip_score_drop": loss, "clip_score_drop_ci_low": loss - reach,
        "clip_score_drop_ci_high": loss + reach, "clip_score_drop_n": N,
    }  # fmt: skip


@pytest.fixture
def stored() -> Stored:
    sets = [
        f"{{name: {name}, over: block, sparsity: [0.5], rung: {rung}}}"
        for name, rung in (("blocks", "preview"), ("p", "probe"))
    ]
    screen = "screen: {over: block, sparsity: 0.5, runs: 32, rung: preview}"
    return Stored(load(overrides=[f"sweep={{points: [{', '.join(sets)}], {screen}}}"]))


def points(noise: float, planted: float, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)

    def seen(loss: float) -> float:
        return loss + noise * float(rng.standard_normal())

    rows = [row("blocks", {group: 0.5}, seen(loss)) for group, loss in zip(GROUPS, TRUE, strict=True)]
    rows += [row("screen", {group: 0.5}, seen(loss)) for group, loss in zip(GROUPS, TRUE, strict=True)]
    for chosen in subsets(len(GROUPS), 32, 0):
        loss = float(TRUE[chosen].sum()) + planted * bool(chosen[2] and chosen[6])
        rows.append(
            row(
                "screen",
                {g: 0.5 for g, is_in in zip(GROUPS, chosen, strict=True) if is_in},
                seen(loss),
                "subset",
            )
        )
    probed = [row("p", {group: 0.5}, np.nan, rung="probe") for group in GROUPS]
    for number, one in enumerate(probed):
        one |= dict.fromkeys(
            ("probe_error", "probe_error_ci_low", "probe_error_ci_high"), float(np.exp(-number))
        )
        one["probe_error_n"] = 12
    return pd.DataFrame([*rows, *probed])


def test_groups_are_ranked_with_what_is_sure_of_the_order(stored: Stored) -> None:
    ranking = ranking_of(stored, points(0.0, 0.0)).query("point_set == 'blocks'")  # type: ignore[arg-type]
    assert list(ranking["groups"][:4]) == GROUPS[:4]
    assert list(ranking["rank_low"][:3]) == list(ranking["rank_high"][:3]) == [1, 2, 3]
    # Those that do nothing are not told apart, nor sure to do anything.
    assert set(ranking["rank_high"][4:]) == {8}
    assert (ranking["p"][:4] < 0.01).all()
    assert (ranking["p"][4:] == 1).all()
    assert (ranking["all_ci_low"] < ranking["ci_low"]).all()
    single = 2 * ERROR * quantile(N - 1)
    assert (ranking["ci_high"] - ranking["ci_low"]).to_numpy() == pytest.approx(np.full(8, single))


def test_the_probe_that_orders_alike_agrees(stored: Stored) -> None:
    (found,) = agreement_of(stored, points(1e-6, 0.0)).query("point_set == 'blocks'").to_dict("records")  # type: ignore[arg-type]
    assert found["n"] == len(GROUPS)
    assert found["spearman"] > 0.7  # half of the groups do nothing: their order is chance
    assert found["ci_low"] < found["spearman"] < found["ci_high"] <= 1


def test_the_screen_finds_the_planted_pair_and_none_in_the_additive_control(stored: Stored) -> None:
    found = pairs_of(stored, points(0.002, 0.05))  # type: ignore[arg-type]
    assert (found["first"].iloc[0], found["second"].iloc[0]) == (GROUPS[2], GROUPS[6])
    assert found["ci_low"].iloc[0] > 0
    assert found["ci_low"].iloc[0] < 0.05 < found["ci_high"].iloc[0]
    assert found["pairs"].iloc[0] == 28
    controls = [pairs_of(stored, points(0.002, 0.0, seed)) for seed in range(4)]  # type: ignore[arg-type]
    assert sum(map(len, controls)) <= 1


def test_curves_are_called_by_what_differs_among_them() -> None:
    frame = points(0.0, 0.0).head(2).assign(rule=["uniform", "owl"])
    assert list(labels_of(frame).values()) == [f"{GROUPS[0]}, uniform", f"{GROUPS[1]}, owl"]
    assert all(len(curve) == len(CURVE) for curve in labels_of(frame))
