"""Groups of a sweep, how their totals are shared out, and what is refused before anything is spent."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from raysense.allocation import LevelGrid
from raysense.errors import RaysenseError
from raysense.evaluation.identity import inventory_and_grid
from raysense.evaluation.rungs.cost import RungCosts
from raysense.pipelines.cost import assumed
from raysense.pipelines.load import load_pipeline, modules_of
from raysense.pruning.allocation_rules import counts_below
from raysense.pruning.layers import Inventory
from raysense.records import Evaluation, EvaluationRequest, Measure, TrialSpec
from raysense.strategies.context import SearchContext
from raysense.strategies.runner import StrategyRunner
from raysense.strategies.screen import runs_for, subsets
from raysense.strategies.sensitivity import sensitivity
from raysense.strategies.sweep import Swept, make_sweep
from raysense.strategies.sweep_points import Layout
from raysense.study import Study, load

Parts = tuple[Inventory, LevelGrid, dict[str, Any]]


@pytest.fixture(scope="module")
def parts() -> Parts:
    pipeline = load_pipeline("bundled")
    inventory, grid = inventory_and_grid(load(), pipeline.components)
    modules = modules_of(pipeline)
    return inventory, grid, {rule: counts_below(rule, inventory, modules) for rule in ("global", "lamp")}


def study(sweep: str) -> Study:
    return load(overrides=[f"sweep={sweep}"])


def layout(parts: Parts, sweep: str) -> Layout:
    inventory, grid, counts = parts
    ratios = {layer.address: 0.01 * i for i, layer in enumerate(inventory.layers)}
    blocks = {layer.address: len(layer.block) / 100 for layer in inventory.layers}
    outliers = {"owl": ratios, "owl_block": blocks}
    return Layout(study(sweep), inventory, grid, counts.__getitem__, ["unet"], outliers)


@pytest.mark.parametrize("rule", ["uniform", "erk", "global", "lamp", "owl", "owl_block"])
@pytest.mark.parametrize("group", ["unet", "unet:up_blocks.1.resnets.0", "text_encoder:linear"])
def test_a_rule_gives_a_group_its_total_and_touches_nothing_else(parts: Parts, rule: str, group: str) -> None:
    one = layout(parts, "{points: [{sparsity: [0.5]}]}")
    allocation = one.allocation({group: 0.5}, rule)
    members = one.members(group, "x")
    assert set(allocation) <= set(members)
    weights = one.weights({group: 0.5})
    assert one.grid.zeros(allocation) == pytest.approx(0.5 * weights, abs=one.grid.part(members).base)


def test_a_rule_of_ones_own_shares_out_what_a_group_loses(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples/plugins"))
    one = layout(parts, "{points: [{sparsity: [0.5], rules: [uniform, {unet: my_search.later}]}]}")
    allocation = one.allocation({"unet": 0.5}, "my_search.later")
    layers = [layer for layer in one.inventory.layers if layer.component == "unet"]
    grid = one.grid.part(one.members("unet", "x"))
    pull = [layer.n * (1 + number / len(layers)) for number, layer in enumerate(layers)]
    wanted = [0.5 * grid.n / sum(pull) * each / layer.n for each, layer in zip(pull, layers, strict=True)]
    own = [i for i, layer in enumerate(layers) if layer.address in set(grid.addresses)]
    found = [grid.zeros_at(layers[i].address, allocation[layers[i].address]) / layers[i].n for i in own]
    assert np.corrcoef(found, [wanted[i] for i in own])[0, 1] > 0.99
    assert grid.zeros(allocation) == pytest.approx(0.5 * grid.n, abs=grid.base)
    points = one.points()
    assert {point.rule for point in points} == {"uniform", "unet: my_search.later"}
    with pytest.raises(RaysenseError, match=r"`sweep`: 'my_search\.walk' is no allocation rule"):
        one.allocation({"unet": 0.5}, "my_search.walk")


def test_every_combination_is_a_point_and_its_own_settings_are_not_said(parts: Parts) -> None:
    one = layout(
        parts,
        "{points: [{sparsity: [0.3, 0.6], saliency: [magnitude, wanda], rules: [uniform, lamp]}, "
        "{only: [unet], sparsity: [0.5], steps: [[0, 0.5], [0, 1]]}, "
        "{together: [{unet: 0.3, text_encoder: 0}, {unet: 0.3, text_encoder: 0.5}], rules: [{text_encoder: owl}]}]}",
    )
    points = one.points()
    assert len(points) == 2 * 2 * 2 * 2 + 2 + 2
    assert {p.request.method for p in points if p.method == "magnitude"} == {""}
    assert {p.request.method for p in points if p.method == "wanda"} == {"wanda"}
    assert [p.request.steps for p in points if p.set == "1"] == [(0.0, 0.5), None]
    assert [p.groups for p in points if p.set == "2"] == ["unet", "unet + text_encoder"]
    # The same request may be two points; a dense one is never somebody's method.
    assert len({p.request for p in points}) < len(points)


def test_the_parts_of_a_point_keep_their_own_rules(parts: Parts) -> None:
    one = layout(parts, "{points: [{sparsity: [0.5]}]}")
    mixed = one.allocation({"unet": 0.4, "text_encoder": 0.5}, {"text_encoder": "owl"})
    unet, text = one.allocation({"unet": 0.4}, "uniform"), one.allocation({"text_encoder": 0.5}, "owl")
    assert dict(mixed) == {**unet, **text}


REFUSED = {
    "{points: [{together: [{unet: 0.5, vae: 0.2}]}]}": "names 'vae', which is no component",
    "{points: [{over: block, only: ['unet:mid*'], sparsity: [0.5]}]}": "'unet:mid\\*' matches no block",
    "{points: [{together: [{unet: 0.5, 'unet:conv_out': 0.2}]}]}": "two of the groups|no component",
    "{points: [{sparsity: [0.5], steps: [[0, 0.5]]}]}": "'text_encoder' has no denoising steps, only unet",
    "{screen: {over: component, sparsity: 0.5}}": "combines 2 components",
}


@pytest.mark.parametrize("sweep", REFUSED)
def test_what_cannot_be_measured_is_refused(parts: Parts, sweep: str) -> None:
    with pytest.raises(RaysenseError, match=REFUSED[sweep]):
        layout(parts, sweep).check()


def test_subsets_are_balanced_and_each_has_its_complement() -> None:
    design = subsets(9, runs_for(9, None), 0)
    assert design.shape == (28, 9)
    assert (design.sum(axis=0) == 14).all()
    assert (design[:14] == ~design[14:]).all()
    signs = np.where(design, 1, -1)
    assert np.abs(signs.T @ signs / 28 - np.eye(9)).max() <= 0.45
    assert (subsets(9, 28, 0) == design).all()
    assert runs_for(30, 63) == 64


def answered(runner: StrategyRunner[Swept], collapse: float = 0.7) -> list[TrialSpec]:
    """Drives a sweep: whatever it asks is answered by a loss that jumps at a sparsity of the U-Net."""
    asked = []
    while (spec := runner.ask()) is not None:
        asked.append(spec)
        found = []
        for request in spec.requests:
            share = sum(request.allocation.values()) / 255 / 60
            images = 8 if request.allocation else 24  # the dense ones and their reference
            loss = 0.5 if share > collapse * 0.9 else 0.01 * share
            found.append(
                Evaluation(
                    key=request.key("s"), rung=request.rung, stage=spec.stage, allocation=request.allocation.key,
                    measures={"clip_score_drop": Measure(loss, loss - 0.001, loss + 0.001, 8, "x")},
                    zeros=0, images=images, nfe=images * 24, seconds=1.0,
                )
            )  # fmt: skip
        runner.tell(spec, found)
    return asked


def test_what_the_budget_covers_is_measured_and_one_that_buys_no_point_refused(parts: Parts) -> None:
    points = "{points: [{only: [unet], sparsity: [0.2, 0.4, 0.6, 0.8]}]}"
    one = layout(parts, points)
    tight = ["rungs.preview.prompts=8", "rungs.score.prompts=8", f"sweep={points}"]

    def made(nfe: int) -> StrategyRunner[Swept]:
        one.study = load(overrides=[*tight, f"budget.max_nfe={nfe}"])
        return make_sweep(one, assumed(one.study.sampling))

    dense, point = 3 * 8 * 24, 8 * 24
    with pytest.raises(RaysenseError, match=f"buys no point.*set it to {dense + point} at least"):
        made(dense + point - 1)
    runner = made(dense + 2 * point)
    answered(runner)
    assert runner.outcome is not None
    assert [m.point.shares["unet"] for m in runner.outcome.points] == [0.2, 0.4]
    assert runner.tracker.spent == dense + 2 * point
    assert runner.tracker.refusal is not None
    whole = made(10**6)
    answered(whole)
    assert whole.outcome is not None
    assert len(whole.outcome.points) == whole.outcome.wanted == 4
    assert whole.tracker.refusal is None


def test_a_search_begins_its_curves_from_what_a_sweep_has_probed(parts: Parts) -> None:
    inventory, grid, _ = parts
    one = load(overrides=["search.granularity=component"])
    sizes = {
        name: sum(grid.weights(a) for a in grid.addresses if a.startswith(name)) for name in ("unet", "text")
    }
    known = {round(share * sizes["unet"]): 0.001 * (1 + 9 * share) ** 3 for share in (0.3, 0.5, 0.7, 0.9)}
    costs = RungCosts(one, assumed(one.sampling))
    runner: Any = SimpleNamespace(headline="")

    def asked(swept: dict[str, dict[int, float]]) -> list[list[EvaluationRequest]]:
        context = SearchContext(one, inventory, grid, {}, one.constraints.bounds(), costs, swept=swept)
        specs = [next(coroutine, None) for coroutine in next(sensitivity(runner, context))]
        return [list(spec.requests) if isinstance(spec, TrialSpec) else [] for spec in specs]

    text, unet = asked({"unet": known})
    assert len(text) == 2
    # Neither the cap nor a lighter level: only what the sweep left in doubt, below its lightest point.
    assert len(unet) == 1
    assert grid.zeros(unet[0].allocation) < min(known)
    finer = known | {round(share * sizes["unet"]): 0.001 * (1 + 9 * share) ** 3 for share in (0.15, 0.2)}
    assert asked({"unet": finer})[1] == []
    assert [len(requests) for requests in asked({})] == [2, 2]
