"""What the main job says and keeps around the search: failures, starts, the page, how to go on."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from raysense.allocation import Allocation
from raysense.cli import _again, main
from raysense.errors import MeasuringFailed, RaysenseError
from raysense.evaluation.identity import inventory_and_grid, signature
from raysense.evaluation.inputs import inputs_of
from raysense.evaluation.scoring import ImageScorer
from raysense.execution.progress import Snapshot
from raysense.pipelines.load import load_pipeline
from raysense.prompts.sets import load_prompts
from raysense.records import Evaluation
from raysense.results.failures import failures, refuse_if_nothing_was_measured
from raysense.results.page import is_finished_page, write_page
from raysense.search.job import begin_store, finished_already
from raysense.search.starts import Starts, stored_starts
from raysense.store.checksummed_json import seal
from raysense.store.disk import Disk
from raysense.study import load

REFERENCE = Path(__file__).parents[2] / "reports" / "reference"

NO_WINNER = {
    "feasible": False, "allocation": None, "levels": {}, "metrics": {}, "uniform": None, "strategy": None,
    "constraints": [],
}  # fmt: skip


def evaluation(number: int, rung: str = "score", failed: str = "") -> Evaluation:
    key = Allocation({"unet:a": number}).key if number else Allocation().key
    return Evaluation(
        key=f"{number}",
        trial="q",
        stage="search",
        allocation=key,
        rung=rung,
        measures={},
        zeros=0,
        images=0,
        nfe=0,
        seconds=0.0,
        failed=failed,
    )


def test_failures_are_said_with_their_reasons() -> None:
    assert failures([evaluation(0), evaluation(1)]) == ""
    some = [evaluation(0), evaluation(1), *(evaluation(n, failed="ValueError: no\nfile") for n in (2, 3))]
    assert failures(some).startswith("2 of 4 evaluations failed: ValueError: no file. ")
    more = [evaluation(n, failed=f"E{n % 5}") for n in range(1, 8)]
    assert "E1 (2 times); E2 (2 times); E3 (1 times); and 2 other reasons" in failures(more)


def test_quality_is_not_blamed_when_nothing_was_measured() -> None:
    dense, probes = evaluation(0), [evaluation(1, "probe"), evaluation(2, "probe")]
    refuse_if_nothing_was_measured([dense, *probes])  # a budget that ended early
    refuse_if_nothing_was_measured([dense, evaluation(1), evaluation(2, failed="x")])
    with pytest.raises(MeasuringFailed, match="all 2 evaluations by images of pruned pipelines failed: disk"):
        refuse_if_nothing_was_measured([dense, *probes, *(evaluation(n, failed="disk") for n in (3, 4))])
    with pytest.raises(MeasuringFailed, match="all 2 evaluations of pruned"):
        refuse_if_nothing_was_measured([dense, *(replace(probe, failed="disk") for probe in probes)])
    assert (MeasuringFailed.status, RaysenseError.status) == (1, 2)


def test_time_is_the_sum_over_all_starts(tmp_path: Path) -> None:
    disk = Disk(str(tmp_path))
    first = Starts(disk, None, {"torch": "2"})
    with contextlib.suppress(RaysenseError), first:
        time.sleep(0.3)
        first.see(Snapshot(evaluators=3))
        raise RaysenseError("stopped")
    with Starts(disk, "auto", {"torch": "2"}) as second:
        assert second.seconds >= 0.3
        time.sleep(0.2)
        second.finish()
    starts = stored_starts(disk)
    assert [start["finished"] for start in starts] == [False, True]
    assert [start["evaluators"] for start in starts] == [3, 0]
    assert [start["cluster"] for start in starts] == ["this machine", "auto"]
    assert sum(start["seconds"] for start in starts) == pytest.approx(0.5, abs=0.3)
    assert second.seconds >= 0.5


@pytest.mark.parametrize(
    "argv", [["search", "it's [my] study.yaml", "--set", "a={b: 1}"], ["search", "--resume"]]
)
def test_the_command_that_goes_on_is_one_that_a_shell_understands(argv: list[str]) -> None:
    words = shlex.split(_again(argv, None))
    assert words == ["raysense", *argv, *(["--resume"] if "--resume" not in argv else [])]
    assert shlex.split(_again(argv[1:], "search"))[:3] == ["python", "-m", "raysense.search"]


def test_a_study_has_a_page_from_its_first_moment_and_is_finished_once(tmp_path: Path) -> None:
    study, out = load(), tmp_path / "it's [a] #run"
    inventory, grid = inventory_and_grid(study, load_pipeline("bundled").components)
    inputs = inputs_of(study, load_prompts(study.prompts), ImageScorer(study), "cpu")
    store = begin_store(study, str(out), inventory, grid, inputs)
    assert signature(study, grid, inputs) == (store.study or {})["signature"]
    page = Path(write_page(str(out), paint=False))
    assert not is_finished_page(page.read_bytes())
    assert finished_already(study, str(out), inputs) is None

    record = store.study
    assert record is not None
    answer = json.loads((REFERENCE / "summary.json").read_bytes()) | {
        "signature": record["signature"],
        **NO_WINNER,
    }
    (out / "summary.json").write_bytes(seal({k: v for k, v in answer.items() if k != "sha256"}))
    with Starts(Disk(str(out)), None, {}) as starts:
        assert finished_already(study, str(out), inputs) is None  # stopped, with an older answer
        starts.finish()
    page.unlink()
    assert finished_already(study, str(out), inputs) is not None
    written = page.stat().st_mtime_ns  # a page that was missing is there now, and then left alone
    assert finished_already(study, str(out), inputs) is not None
    assert page.stat().st_mtime_ns == written
    larger = study.model_copy(update={"budget": study.budget.model_copy(update={"max_nfe": 10**9})})
    assert finished_already(larger, str(out), inputs) is None
    assert finished_already(study, str(out), {**inputs, "device": "cuda"}) is None
    store.put(evaluation(1, failed="x"))
    assert finished_already(study, str(out), inputs) is None


METRIC = """
from pathlib import Path
def brightness(images, prompts, dense):
    if not (images == dense).all():
        Path(__file__).with_name("needed.txt").read_text()
    return images.mean((1, 2, 3))
"""

SMALL = [
    "search.granularity=component", "search.bisections=1", "search.rounds=0", "search.levels=2",
    "search.strategies=[uniform]", "rungs.probe={prompts: 2, timesteps: 2}", "rungs.preview.prompts=8",
    "rungs.score.prompts=8", "rungs.validation.prompts=8", "sampling.steps=2", "cluster.evaluators=1",
    "constraints={clip_score: {max_drop: 0.9}}", "metrics.custom={brightness: own_bright.brightness}",
]  # fmt: skip


@pytest.mark.long
def test_what_failed_is_measured_once_its_cause_is_mended(tmp_path: Path) -> None:
    """Pruned images cannot be judged; then they can. The page and the last line say what is true each time."""
    (tmp_path / "own_bright.py").write_text(METRIC)
    sets = [part for value in SMALL for part in ("--set", value)]
    command = [Path(sys.executable).with_name("raysense"), "search", *sets, "--out", "run"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], capture_output=True, text=True, check=False, cwd=tmp_path)

    first = run()
    assert first.returncode == 1, first.stdout + first.stderr
    assert "needed.txt" in first.stderr
    assert "loosen" not in first.stdout + first.stderr
    assert not (tmp_path / "run/summary.json").exists()
    (tmp_path / "needed.txt").write_text("")
    second = run("--resume")
    assert second.returncode == 0, second.stdout + second.stderr
    order = ["Writing the tables", "can go", "Writing the page", "Page:", "Painting pictures"]
    assert [second.stdout.index(words) for words in order] == sorted(map(second.stdout.index, order))
    assert len(stored_starts(Disk(str(tmp_path / "run")))) == 2
    assert run("--resume").stdout.splitlines()[-1].startswith("Finished already")
    assert main(["query", str(tmp_path / "run"), "SELECT count(*) FROM evaluations WHERE failed != ''"]) == 0
