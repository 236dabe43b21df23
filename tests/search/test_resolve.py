"""Re-solving a stored study for other bounds."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.execution.local import LocalExecutor
from raysense.pipelines.load import empty_components
from raysense.records import Evaluation, EvaluationRequest
from raysense.search.job import denominators, layer_rows
from raysense.search.resolve import _evidence, in_words, resolve
from raysense.store.store import Store
from raysense.strategies.verdict import held_out_stretch
from tests.conftest import REPORTS
from tests.strategies.test_schedule import SIGNATURE, Landscape, made_up


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Landscape]:
    folder = tmp_path_factory.mktemp("stored")
    study, inventory, grid, runner = made_up(rounds=1, offspring=6)
    landscape = Landscape(inventory, grid)
    store = Store.open(str(folder), create=True)
    store.begin(study.model_dump(mode="json"), signature=SIGNATURE, denominators=denominators(inventory))
    store.write_table("layers", layer_rows(inventory, grid, study.search.granularity))
    LocalExecutor(landscape).run(runner, store, signature=SIGNATURE, lookahead=4)
    assert runner.error is None
    return folder, landscape


def test_another_bound_in_seconds_near_what_measuring_would_say(stored: tuple[Path, Landscape]) -> None:
    folder, landscape = stored
    began = time.process_time()
    tight = resolve(str(folder), ["constraints.clip_score.max_drop=0.1"])
    wide = resolve(str(folder), ["constraints.clip_score.max_drop=0.3"])
    assert time.process_time() - began < 20
    assert tight["predicted"]["zeros"] < wide["predicted"]["zeros"]
    for answer, bound in ((tight, 0.1), (wide, 0.3)):
        # The made-up damage is additive, so that the prediction can be held against the truth.
        truth = landscape.damage(Allocation(answer["predicted"]["levels"]))
        assert 0.4 * bound < truth < bound
        assert answer["predicted"]["utilisation_ci_high"] <= 1
    assert "predicted, not measured" in in_words(wide, str(folder))


class Misjudged(Landscape):
    """Held-out prompts lose more than the search's; or everything loses too much everywhere."""

    held_out = everywhere = 0.0

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        found = super().evaluate(request)
        more = self.everywhere + (self.held_out if request.rung == "validation" else 0.0)
        if not request.allocation or request.rung == "probe" or not found.measures:
            return found
        m = found.measures["clip_score_drop"]
        moved = replace(m, value=m.value + more, ci_low=m.ci_low + more, ci_high=m.ci_high + more)
        return replace(found, measures={"clip_score_drop": moved})


def ran(folder: Path, **kind: float) -> str:
    study, inventory, grid, runner = made_up(rounds=1, offspring=6)
    landscape = Misjudged(inventory, grid)
    for name, value in kind.items():
        setattr(landscape, name, value)
    store = Store.open(str(folder), create=True)
    store.begin(study.model_dump(mode="json"), signature=SIGNATURE, denominators=denominators(inventory))
    store.write_table("layers", layer_rows(inventory, grid, study.search.granularity))
    LocalExecutor(landscape).run(runner, store, signature=SIGNATURE, lookahead=4)
    return str(folder)


def test_what_failed_on_held_out_prompts_is_not_foretold(tmp_path: Path) -> None:
    run = ran(tmp_path, held_out=0.1)
    for bound in (0.15, 0.2, 0.25):
        answer = resolve(run, [f"constraints.clip_score.max_drop={bound}"])
        failed = [
            e.zeros
            for e in Store.open(run).evaluations()
            if e.stage == "validation"
            and e.trial.split("/")[1] in ("solver", "joint")
            and e.measures["clip_score_drop"].ci_high > bound
        ]
        assert answer["predicted"]["zeros"] < min(failed, default=10**9)


def test_held_out_rows_come_before_rows_of_the_search(stored: tuple[Path, Landscape]) -> None:
    answer = resolve(str(stored[0]), [])
    assert answer["measured"]["rung"] == "validation"
    first, *_ = in_words(answer, "x").splitlines()
    assert first.startswith("measured on held-out prompts")


def test_a_study_in_which_nothing_passed_predicts_nothing(tmp_path: Path) -> None:
    run = ran(tmp_path, everywhere=0.5)
    answer = resolve(run, ["constraints.clip_score.max_drop=0.25"])
    assert answer["measured"] is None
    assert answer["predicted"]["zeros"] == 0
    assert answer["predicted"]["supported"] is False
    assert "nothing is predicted" in in_words(answer, run)
    assert "foretold" not in in_words(answer, run)


def test_fewer_components_have_denominators_of_their_own(reference: Path) -> None:
    whole = resolve(str(reference), [])
    part = resolve(str(reference), ["prune.components=[unet]"])
    text, unet = (
        sum(p.numel() for p in empty_components("bundled")[name].parameters())
        for name in ("text_encoder", "unet")
    )
    predicted = part["predicted"]
    assert predicted["sparsity_components"] == pytest.approx(predicted["zeros"] / unet)
    every = whole["predicted"]
    assert every["sparsity_components"] == pytest.approx(every["zeros"] / (text + unet))


def test_a_lower_cap_is_kept(stored: tuple[Path, Landscape]) -> None:
    folder, landscape = stored
    levels = resolve(str(folder), ["prune.max_layer_sparsity=0.5"])["predicted"]["levels"]
    grid = landscape.grid
    assert max(grid.zeros_at(a, level) / grid.weights(a) for a, level in levels.items()) <= 0.53


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sampling.steps=3", "`sampling.steps` changes what was measured"),
        ("prune.components=[unet, vae]", "'vae', which the study did not measure"),
        ("constraints={cmmd: {max_rise: 0.1}}", "which `.*` did not measure"),
        ("prune.max_layer_sparsity=0.99", "at most the study's 0.95"),
        ("constraints.clip_score.max_drop=0.001", "the dense pipeline itself misses a bound"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    stored: tuple[Path, Landscape], override: str, words: str
) -> None:
    with pytest.raises(RaysenseError, match=words):
        resolve(str(stored[0]), [override])


def test_another_bound_is_another_look_at_the_held_out_rows(
    stored: tuple[Path, Landscape], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    judged = held_out_stretch
    monkeypatch.setattr(
        "raysense.search.resolve.held_out_stretch",
        lambda study: looks.append(study.search.earlier_looks) or judged(study),
    )
    resolve(str(stored[0]), [])
    resolve(str(stored[0]), ["constraints.clip_score.max_drop=0.3"])
    assert looks == [0, 1]


def test_finalists_count_up_to_the_first_failure(tmp_path: Path) -> None:
    """A sparser finalist that passes by luck after one that failed is not what was measured inside."""
    run = ran(tmp_path)
    store = Store.open(run)
    tested = sorted(
        (e for e in store.evaluations() if e.stage == "validation" and "/uniform/" not in e.trial),
        key=lambda e: e.zeros,
    )
    m = tested[0].measures["clip_score_drop"]
    bound = tested[-1].measures["clip_score_drop"].ci_high + 1
    bad = replace(
        tested[0], measures={"clip_score_drop": replace(m, value=m.value + 9, ci_high=m.ci_high + 9)}
    )
    assert len(tested) > 1
    levels: dict[str, dict[str, int]] = {e.allocation: {} for e in tested}
    study, _, layers, _ = made_up()
    bounds = [replace(b, limit=bound) for b in study.constraints.bounds()]
    assert [c.feasible for c in _evidence(held_out_stretch(study), layers, tested, levels, bounds)] == [
        True
    ] * len(tested)
    found = _evidence(held_out_stretch(study), layers, [*tested[1:], bad], levels, bounds)
    assert [c.feasible for c in found] == [False] * len(tested)


SWEPT = str(REPORTS / "paper/bundled")


def test_a_sweep_answers_for_the_best_allocation_of_its_granularity_without_an_image() -> None:
    """Its curves are what images said of components alone; other methods' points are no evidence."""
    overrides = ["search.granularity=component", "constraints={clip_score: {max_drop: 0.02}}"]
    answer = resolve(SWEPT, overrides)
    predicted = answer["predicted"]
    assert predicted["supported"]
    assert predicted["levels"]
    assert predicted["utilisation_ci_low"] < predicted["utilisation"] < predicted["utilisation_ci_high"] <= 1
    tighter = resolve(SWEPT, [overrides[0], "constraints={clip_score: {max_drop: 0.01}}"])["predicted"]
    assert 0 < tighter["zeros"] < predicted["zeros"]
    # LAMP's points lose far less at the same total: they say nothing about pruning a component evenly.
    assert 0.2 < tighter["utilisation"] < 1
    measured = answer["measured"]
    assert measured["rung"] == "score"
    rows = Store.open(SWEPT).table("points").to_pylist()
    own = {row["key"] for row in rows if row["method"] == "magnitude"}
    keys = {e.key for e in Store.open(SWEPT).evaluations() if e.allocation == measured["allocation"]}
    assert keys & own


def test_a_sweep_without_curves_of_what_is_asked_says_so() -> None:
    with pytest.raises(RaysenseError, match=r"no sensitivity curves of blocks.*`over: block`"):
        resolve(SWEPT, ["search.granularity=block"])
