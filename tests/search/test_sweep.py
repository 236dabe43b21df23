"""A sweep from end to end on the bundled pipeline: resumable, in its budget, in the same tables."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import torch
from rich.console import Console

import raysense as rs
from raysense.errors import RaysenseError
from raysense.evaluation.identity import inventory_and_grid, signature
from raysense.pipelines.load import load_pipeline
from raysense.results import sweep_page
from raysense.results.refresh import PageWhileRunning
from raysense.results.sweep_page import write_sweep_page
from raysense.results.sweeps import by_prompt_kind, points_of
from raysense.search import job
from raysense.search import sweep as search_sweep
from raysense.search.earlier_run import EarlierRun, swept_in
from raysense.search.sweep import run_sweep
from raysense.study import Study, load
from raysense.study.checks import checked
from raysense.study.load import examine
from tests.conftest import REFERENCE
from tests.results.browser import Browser

SMALL = [
    "sampling.steps=2", "rungs.preview.prompts=8", "rungs.score.prompts=8", "rungs.validation.prompts=8",
    "rungs.probe={prompts: 2, timesteps: 1}", "prune.calibration.prompts=2", "search.granularity=block",
    "metrics.also=[ssim]",
]  # fmt: skip
SWEEP = (
    "sweep={points: [{name: parts, sparsity: [0.3, 0.6, 0.9], rules: [uniform, owl]}, "
    "{name: published, over: kind, only: ['text_encoder:linear'], sparsity: [0.6], rules: [owl_block]}, "
    "{name: methods, only: [unet], sparsity: [0.6], saliency: [magnitude, wanda]}, "
    "{name: steps, only: [unet], sparsity: [0.6], steps: [[0, 0.5], [0.5, 1]]}, "
    "{name: blocks, over: block, only: ['unet:up*'], sparsity: [0.5], rung: probe}], cliffs: {most: 1}}"
)


PLUGINS = str(Path(__file__).parents[2] / "examples/plugins")


def small(*more: str) -> Study:
    return load(overrides=[*SMALL, *more])


def swept(study: Study, out: Path, *, resume: bool = False) -> rs.Run:
    run_sweep(study, str(out), address=None, resume=resume, console=Console(quiet=True), in_process=True)
    return rs.Run(str(out))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rs.Run]:
    threads = torch.get_num_threads()
    yield swept(small(SWEEP), tmp_path_factory.mktemp("sweep") / "run")
    torch.set_num_threads(threads)


def test_every_point_has_every_measure_with_its_interval(run: rs.Run) -> None:
    points = points_of(run)
    listed = points[points["listed"]]
    blocks = run.table("layers").query("block.str.startswith('unet:up')")["block"].nunique()
    assert listed.groupby("point_set").size().to_dict() == {
        "parts": 12,
        "published": 1,
        "methods": 2,
        "steps": 2,
        "blocks": blocks,
    }
    images = listed[listed["rung"] == "score"]
    for measure in ("clip_score_drop", "kid", "frechet", "closeness", "ssim"):
        assert images[measure].notna().all()
        assert (images[f"{measure}_ci_low"] <= images[measure] + 1e-9).all()
    assert listed[listed["rung"] == "probe"]["probe_error"].notna().all()
    asked = listed[listed["point_set"] == "parts"]["shares"].map(
        lambda text: float(text.split(": ")[1].strip("}"))
    )
    assert (listed[listed["point_set"] == "parts"]["sparsity"] - asked).abs().max() < 0.01


def test_methods_rules_and_steps_give_other_images_of_as_many_zeros(run: rs.Run) -> None:
    points = points_of(run).query("rung == 'score' and groups == 'unet' and 0.55 < sparsity < 0.65")
    whole = points.query("rule == 'uniform' and method == 'magnitude' and steps_from.isna()")
    assert whole["key"].nunique() == 1, "the same point in two sets is measured once"
    others = points[points["key"] != whole["key"].iloc[0]]
    assert len(others) >= 4  # owl, wanda, two parts of the trajectory
    assert (others["closeness"] != whole["closeness"].iloc[0]).all()
    assert others["zeros"].sub(whole["zeros"].iloc[0]).abs().max() < 0.001 * whole["zeros"].iloc[0]
    halves = points[points["steps_from"].notna()]
    # One half dense is nearer to the dense images than none.
    assert halves["closeness"].max() > whole["closeness"].iloc[0]
    assert halves["notes"].str.contains("of the steps only").all()
    methods = run.table("evaluations").set_index("key")["method"]
    assert set(methods[points.query("method == 'wanda'")["key"]]) == {"wanda"}


def test_owl_as_published_gives_a_block_one_ratio(run: rs.Run) -> None:
    point = points_of(run).query("point_set == 'published'").iloc[0]
    layers = run.table("layers").query("kind == 'linear' and component == 'text_encoder'")
    layers = layers.merge(
        run.table("allocations").query(f"allocation == '{point['allocation']}'"), on="layer", how="left"
    ).fillna({"zeros": 0})
    share = layers["zeros"] / layers["weights"]
    blocks = share.groupby(layers["block"])
    assert (blocks.max() - blocks.min()).max() <= 2 * (layers["step"] / layers["weights"]).max()
    assert 0.05 < blocks.mean().max() - blocks.mean().min() <= 0.17


def test_cliffs_are_a_table_and_a_query_reads_all(run: rs.Run) -> None:
    cliffs = run.table("cliffs")
    assert set(cliffs["place"]) == {"knee", "collapse"}
    assert len(cliffs) == 2 * 4  # two components by two rules
    found = cliffs[cliffs["sparsity"].notna()]
    assert len(found)
    assert ((found["ci_low"] <= found["sparsity"]) & (found["sparsity"] <= found["ci_high"])).all()
    asked = run.sql(
        "SELECT p.groups, p.sparsity, m.value FROM points p JOIN measures m USING (key) WHERE m.metric = 'kid'"
    )
    assert len(asked) == len(points_of(run).query("rung == 'score'"))


def test_the_page_shows_curves_cliffs_and_pictures_and_nothing_from_outside(
    run: rs.Run, tmp_path: Path
) -> None:
    page = Path(run.disk.path("sweep.html"))
    assert page.exists()
    text = page.read_text(encoding="utf-8")
    for words in (
        "Quality against sparsity",
        "The cliffs",
        "Along the cliff",
        "When it is pruned",
        "not reached",
    ):
        assert words in text
    assert text.count("data:image/png") >= 6
    with Browser(390, 800) as browser:
        browser.open(page)
        assert not browser.console
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        assert all(address.startswith(("file:", "data:", "blob:")) for address in browser.requests)
        drawn = browser.evaluate(
            "[...document.querySelectorAll('.chart')].every(c => c.querySelector('canvas'))"
        )
    assert drawn
    with pytest.raises(RaysenseError, match="holds no sweep that has ended"):
        write_sweep_page(str(REFERENCE))


def test_pruning_by_prompt_kind_is_read_off_the_stored_samples(run: rs.Run) -> None:
    table = by_prompt_kind(run)
    assert set(table["kind"]) <= {"position", "colour", "object"}
    images = points_of(run).query("rung == 'score'").set_index("key")["clip_score_drop"]
    each = table.assign(sum=table["loss"] * table["prompts"]).groupby("key")[["sum", "prompts"]].sum()
    whole = each["sum"] / each["prompts"]
    assert (whole - images[~images.index.duplicated()].loc[whole.index]).abs().max() < 1e-9


def test_going_on_measures_nothing_twice_and_adds_points(
    run: rs.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(PLUGINS)
    seen = list[str]()

    def write(uri: str, points: pa.Table) -> None:
        sweep_page.write_running_sweep_page(uri, points)
        if points.num_rows:
            seen.append(Path(uri, sweep_page.NAME).read_text(encoding="utf-8"))

    monkeypatch.setattr(search_sweep, "write_running_sweep_page", write)
    monkeypatch.setattr(job, "PageWhileRunning", partial(PageWhileRunning, every=0.01))
    before = len(run.table("evaluations"))
    again = swept(small(SWEEP), Path(run.uri), resume=True)
    assert len(again.table("evaluations")) == before
    more = SWEEP.replace("sparsity: [0.6], saliency", "sparsity: [0.6, 0.7], saliency")
    more = more.replace("[owl_block]", "[owl_block, my_search.later]")  # one of one's own
    added = swept(small(more), Path(run.uri), resume=True)
    assert len(added.table("evaluations")) == before + 3
    assert set(points_of(added).query("point_set == 'published'")["rule"]) == {"owl_block", "my_search.later"}
    swept(small(SWEEP), Path(run.uri), resume=True)  # as the other tests expect it
    assert seen, "the page of what is known so far"
    assert all('http-equiv="refresh"' in text and "This sweep has not finished" in text for text in seen)
    assert "refresh" not in Path(run.uri, sweep_page.NAME).read_text(encoding="utf-8")[:4000]


def test_the_page_of_a_running_sweep_shows_what_is_known_so_far(run: rs.Run, tmp_path: Path) -> None:
    shutil.copytree(run.uri, tmp_path / "running")
    points = run.store.table("points")
    sweep_page.write_running_sweep_page(str(tmp_path / "running"), points.slice(0, 0))
    page = tmp_path / "running" / sweep_page.NAME
    assert "has not finished" not in page.read_text(encoding="utf-8"), "no point yet, no page"
    for count in (1, 5):
        sweep_page.write_running_sweep_page(str(tmp_path / "running"), points.slice(0, count))
        text = page.read_text(encoding="utf-8")
        assert f"{count} points of text_encoder, unet, measured so far." in text
        assert 'http-equiv="refresh"' in text


def test_a_search_is_given_the_curves_that_were_probed(
    run: rs.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, dict[int, float]] = {}

    def stopped(*_: object, swept: dict[str, dict[int, float]]) -> None:
        given.update(swept)
        raise RaysenseError("enough")

    monkeypatch.setattr(job, "make_strategy", stopped)
    probed = points_of(run).query("rung == 'probe' and rule == 'uniform'")
    wanted = {group: sorted(points["probe_error"]) for group, points in probed.groupby("groups")}
    new = str(tmp_path / "new")
    shutil.copytree(Path(run.uri) / "cache", Path(new) / "cache")  # what its weights are like
    for out, source in ((run.uri, None), (new, run.uri)):  # `--resume`, and `--from`
        given.clear()
        with pytest.raises(RaysenseError, match="enough"):
            job.run_study(
                small(), out, address=None, resume=source is None, console=Console(quiet=True), in_process=True,
                source=source,
            )  # fmt: skip
        assert {group: sorted(curve.values()) for group, curve in given.items()} == wanted
    assert not (Path(new) / "study.json").exists(), "a study that is refused is not begun"


def test_a_run_begun_from_a_sweep_keeps_the_points_of_its_curves(run: rs.Run, tmp_path: Path) -> None:
    study = load(overrides=[*SMALL, "constraints={clip_score: {max_drop: 0.5}}"])
    earlier = EarlierRun.of(run.uri, study, str(tmp_path / "new"))
    inventory, grid = inventory_and_grid(study, load_pipeline("bundled").components)
    inputs = run.record["inputs"]
    store = job.begin_store(study, str(tmp_path / "new"), inventory, grid, inputs)
    identity = signature(study, grid, inputs)
    for _ in range(2):  # as often as it is started
        earlier.take_sweep(study, store, earlier.rows(study, store, identity, inputs))
    curves = earlier.swept(study, grid)
    assert curves
    assert swept_in(store, study, grid) == curves
    new = rs.Run(store.uri)
    points, rows = points_of(new), new.table("evaluations")
    assert set(points["point_set"]) == {"blocks"}
    assert set(rows["key"]) == set(points["key"])
    assert set(rows["taken_from"]) == {run.uri}
    assert new.costs()["nfe"].sum() == 0


def test_a_sweep_takes_over_what_an_earlier_run_measured(run: rs.Run, tmp_path: Path) -> None:
    points = "sweep={points: [{only: [unet], sparsity: [0.5, 0.6]}], cliffs: null}"
    new = rs.sweep(
        small(points), tmp_path / "new", in_process=True, from_run=run.uri, page=False, progress=False
    )
    found = points_of(new)
    names = ["sparsity", "rule", "closeness", "closeness_ci_low", "kid", "clip_score_drop", "ssim"]
    old = points_of(run).query(
        "point_set == 'parts' and groups == 'unet' and rule == 'uniform' and 0.55 < sparsity < 0.65"
    )
    again = found[found["key"].isin(new.table("evaluations").query("taken_from == @run.uri")["key"])]
    assert list(again["sparsity"].round(2)) == [0.6]
    pd.testing.assert_frame_equal(again[names].reset_index(drop=True), old[names].reset_index(drop=True))
    measured = new.table("evaluations").query("taken_from == ''")
    assert set(measured["key"]) == set(found["key"]) - set(again["key"]), (
        "the dense pipeline was not measured again"
    )


def test_a_study_without_a_sweep_keeps_its_identity() -> None:
    plain, with_one = small(), small(SWEEP)
    assert "sweep" not in plain.model_dump(mode="json")
    assert plain.identity() == with_one.identity()


REFUSED = {
    "sweep={points: [{sparsity: [0.99]}]}": "asks for 0.99, more than `prune.max_layer_sparsity` 0.95",
    "sweep={points: [{sparsity: [1.2]}]}": "must be ≤ 1",
    "sweep={points: [{together: [{vae: 0.5}]}]}": "names 'vae', but `prune.components` has text_encoder, unet",
    "sweep={points: [{sparsity: [0.5], saliency: [wander]}]}": "no method 'wander'",
    "sweep={points: [{sparsity: [0.5], saliency: [sparsegpt]}]}": "sparsegpt updates the weights that stay",
    "sweep={points: [{sparsity: [0.5], rules: [solver]}]}": "no rule 'solver' within a group",
    "sweep={points: [{sparsity: [0.5], rules: [no.such.rule]}]}": "'no.such.rule' cannot be imported",
    "sweep={points: [{sparsity: [0.5], rules: [my_search.walk]}]}": "'my_search.walk' cannot be called so",
    "sweep={points: [{sparsity: [0.5], rules: [{unet: raysense.pruning.allocation_rules.erk}]}]}": "must be decorated",
    "sweep={points: [{sparsity: [0.5]}], cliffs: {measure: cmmd_rise}}": "'cmmd_rise', which is not measured",
    "sweep={rung: probe, points: [{sparsity: [0.5], steps: [[0, 0.5]]}]}": "the rung probe lacks",
}


@pytest.mark.parametrize("sweep", REFUSED)
def test_bad_points_are_one_clear_error(sweep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PLUGINS)
    with pytest.raises(RaysenseError, match=REFUSED[sweep].replace("(", r"\(")):
        checked(examine(None, [*SMALL, sweep]))


def test_saved_statistics_cannot_tell_what_needs_images(tmp_path: Path) -> None:
    (tmp_path / "there.npz").write_bytes(b"")
    overrides = [
        "constraints={frechet: {max_rise: 50}, clip_score: {max_drop: 0.1}}", "metrics.also=[]",
        f"metrics.reference.path={tmp_path / 'there.npz'}",
        "sweep={points: [{sparsity: [0.3, 0.5, 0.7]}], cliffs: {measure: kid_rise}}",
    ]  # fmt: skip
    with pytest.raises(RaysenseError, match="saved statistics: kid needs the reference's images"):
        checked(examine(None, [*SMALL, *overrides]))


def test_a_study_without_points_is_told_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(RaysenseError, match="`sweep` is missing"):
        swept(small(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
