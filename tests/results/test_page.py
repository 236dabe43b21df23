"""The page in a real browser: what a reader sees, and what must never happen."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from raysense.cli import main
from raysense.results.charts.quality import quality
from raysense.results.page import _budget, build, number, prose, write_page
from raysense.results.refresh import PageWhileRunning
from raysense.results.run import Run
from tests.results.browser import Browser
from tests.tables import column, edit, multiply, rewrite

EVIL = (
    "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>'; DROP TABLE x; "
    "{{7*7}} `a` ../../etc"
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the reference study with everything that users choose turned against it, pictures included."""
    from shutil import copytree

    from tests.conftest import REFERENCE

    run = Path(copytree(REFERENCE, tmp_path_factory.mktemp("hostile") / "run"))
    prompts = run.parent / "prompts '\"<b>.jsonl"
    rows = [{"id": f"{n}", "prompt": f"{EVIL} {n}", "split": "validation"} for n in range(2)]
    prompts.write_text("\n".join(map(json.dumps, rows)))

    def turn(record: dict[str, Any]) -> None:
        record["definition"] |= {"prompts": str(prompts), "revision": EVIL}
        record["raysense_version"] = EVIL

    edit(run / "study.json", turn)

    def trial(name: str) -> str:
        return name.replace("search/linear_uniform", f"search/{EVIL.replace('/', '|')}")

    rewrite(run, "evaluations", lambda t: column(t, "trial", list(map(trial, t["trial"].to_pylist()))))
    rewrite(run, "measures", lambda t: column(t, "extractor", [EVIL] * len(t)))
    rewrite(run, "layers", lambda t: column(t, "group", [f"{EVIL} {g}" for g in t["group"].to_pylist()]))
    return Path(write_page(str(run), images=2))


def test_it_is_clean_self_contained_and_hostile_texts_stay_texts(hostile: Path) -> None:
    with Browser() as browser:
        browser.open(hostile)
        assert browser.console == []
        assert [r for r in browser.requests if not r.startswith("data:")] == [hostile.resolve().as_uri()]
        assert browser.evaluate("window.hacked") is None
        assert EVIL in browser.evaluate("document.body.textContent")
        assert (
            browser.evaluate(
                "[...document.querySelectorAll('.strip img')].filter(i => i.naturalWidth > 0).length"
            )
            >= 6
        )
        assert (
            browser.evaluate("document.querySelector('.lead').textContent")
            .strip()
            .endswith("inside the budget.")
        )
        charts = browser.evaluate(
            "[...document.querySelectorAll('.chart canvas')].map(c => c.width * c.height)"
        )
        assert len(charts) == 6
        assert min(charts) > 10_000


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True)], ids=["narrow", "narrow-dark"])
def test_it_fits_a_telephone_and_the_dark(hostile: Path, width: int, dark: bool) -> None:
    with Browser(width, 844, dark=dark) as browser:
        browser.open(hostile)
        assert browser.console == []
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert (
            browser.evaluate(
                "Math.max(...[...document.querySelectorAll('.chart canvas')].map(c => c.clientWidth))"
            )
            <= width
        )
        # Nothing of the budget, nor of what was removed where, lies beyond the edge.
        for table in ("budget", "kinds"):
            box = f"document.querySelector('.{table}').parentElement"
            assert browser.evaluate(f"{box}.scrollWidth - {box}.clientWidth") == 0
        colour = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (colour == "rgb(255, 255, 255)") is not dark


def test_ten_thousand_evaluations_open_within_two_seconds(reference: Path) -> None:
    assert multiply(reference, 10_000) >= 10_000
    page = Path(write_page(str(reference), images=0))
    with Browser() as browser:
        browser.open(page)
        assert browser.console == []
        # By the page's own processor time: the clock would measure what else runs on this machine.
        assert browser.cpu_seconds() < 2


def test_an_unfinished_study_says_what_is_missing_and_reloads(unfinished: Path) -> None:
    evaluations = Run(str(unfinished)).table("evaluations")
    kept = set(evaluations[evaluations["stage"].isin(["baseline", "sensitivity"])]["key"])
    for name in ("evaluations", "measures", "samples"):
        rewrite(unfinished, name, lambda t: t.filter([key in kept for key in t["key"].to_pylist()]))
    page = Path(write_page(str(unfinished), paint=False))
    text = page.read_text()
    assert 'http-equiv="refresh"' in text
    with Browser() as browser:
        browser.open(page)
        assert browser.console == []
        notice = browser.evaluate("document.getElementById('unfinished').textContent")
        assert "Still missing: search, validation" in notice
        dense = browser.evaluate(
            "document.querySelector('table tr:nth-child(2) td:nth-child(2)').textContent"
        )
        measured = Run(str(unfinished)).table("measures").merge(evaluations, on="key")
        (own,) = measured.query("trial == 'baseline/validation' and metric == 'clip_score'")["value"]
        assert dense == number(own, 4)
        body = browser.evaluate("document.body.textContent")
        assert "not tried yet" in body
        assert "CLIP score drop: not enough measured yet" in body
        assert "No pictures here" in browser.evaluate("document.body.textContent")


def test_a_study_without_a_single_evaluation_has_a_page_too(unfinished: Path) -> None:
    for name in ("evaluations", "measures", "samples", "allocations"):
        rewrite(unfinished, name, lambda t: t.slice(0, 0))
    text = build(Run(str(unfinished)))
    assert "0 evaluations are stored" in text
    assert "Still missing: baseline, sensitivity, search, validation" in text


def test_a_study_without_a_winner(reference: Path) -> None:
    def without(summary: dict[str, Any]) -> None:
        summary |= {
            "feasible": False,
            "allocation": None,
            "levels": {},
            "metrics": {},
            "uniform": None,
            "strategy": None,
        }
        summary["constraints"] = [
            {k: row[k] for k in ("field", "measure", "limit")} for row in summary["constraints"]
        ]

    edit(reference / "summary.json", without)
    assert "Nothing that was tried passed the quality budget" in build(Run(str(reference)), paint=False)


def test_it_is_written_anew_while_a_study_runs(unfinished: Path) -> None:
    page = unfinished / "report.html"
    with PageWhileRunning(partial(write_page, str(unfinished), paint=False), every=0.1):
        until = time.monotonic() + 60
        while not page.exists() and time.monotonic() < until:
            time.sleep(0.1)
    assert 'http-equiv="refresh"' in page.read_text()


def test_only_its_own_page_is_replaced_unasked(reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = reference / "report.html"
    own.write_text("mine")
    assert main(["report", str(reference), "--images", "0"]) == 2
    assert "add --force" in capsys.readouterr().err
    assert own.read_text() == "mine"
    assert main(["report", str(reference), "--images", "0", "--force"]) == 0
    assert main(["report", str(reference), "--images", "0"]) == 0
    other = reference.parent / "other.html"
    other.write_text("mine")
    assert main(["report", str(reference), "--images", "0", "--out", str(other)]) == 2
    assert other.read_text() == "mine"


def test_numbers_read_well() -> None:
    assert [number(v) for v in (0.0, 0.00123, 12.345, 1234567.0, None, float("nan"), -0.0296)] == [
        "0", "0.00123", "12.3", "1.23e+06", "not measured", "not measured", "-0.0296",
    ]  # fmt: skip


def test_an_absolute_bound_says_its_difference_and_what_is_used_of_its_room(reference: Path) -> None:
    run = Run(str(reference))
    run.record["definition"]["constraints"]["clip_score"]["min"] = 0.5
    summary = dict(run.summary or {})
    measured, dense = summary["metrics"]["clip_score"], summary["dense"]["clip_score"]
    row = {"field": "constraints.clip_score.min", "measure": "clip_score", "limit": 0.5, **measured}
    rows = _budget(run, {**summary, "constraints": [row]}, run.candidates())
    (absolute,) = [r for r in rows if r["limit"] == 0.5]
    assert absolute["difference"] == pytest.approx(measured["value"] - dense["value"])
    assert absolute["share"] == pytest.approx((dense["value"] - measured["ci_low"]) / (dense["value"] - 0.5))


def test_a_curve_begins_where_it_was_measured(reference: Path) -> None:
    run = Run(str(reference))
    candidates = run.candidates()
    spec = quality(candidates, run.bounds[0], "drop", None)
    assert spec is not None

    def points(layer: dict[str, Any]) -> list[dict[str, Any]]:
        data = layer["data"]
        return list(data["values"] if "values" in data else spec["datasets"][data["name"]])

    (line,) = [layer for layer in spec["layer"] if layer["mark"].get("type") == "line"]
    drawn = {(p["strategy"], p["sparsity"]) for p in points(line)}
    assert drawn
    assert all(sparsity > 0 and strategy != "dense" for strategy, sparsity in drawn)
    (origin,) = [layer for layer in spec["layer"] if layer["mark"].get("shape") == "square"]
    assert max(p["sparsity"] for p in points(origin)) < 1e-5  # zeros that the dense pipeline has by itself


def test_what_the_terminal_sets_in_backticks_is_code_and_all_else_stays_text() -> None:
    assert prose("set `a.b` <0.9>") == "set <code>a.b</code> &lt;0.9&gt;"
    assert prose("`<script>`") == "<code>&lt;script&gt;</code>"
    assert prose("a ` alone") == "a ` alone"
