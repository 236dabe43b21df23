"""raysense from Python: the same studies, errors and numbers as from the command line."""

from __future__ import annotations

import doctest
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import raysense as rs
from raysense.execution.progress import Snapshot
from raysense.execution.progress_view import LiveView, NotebookView, in_html, view
from raysense.pipelines.load import load_pipeline
from raysense.search import api
from raysense.search.api import prepared
from raysense.search.save_live_objects import written
from raysense.study import GIVEN

BUDGET = {"clip_score": {"max_drop": 0.02}}


def test_importing_raysense_loads_neither_torch_nor_ray() -> None:
    code = "import raysense, sys; print([m for m in ('torch', 'ray', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_search_is_the_package_and_the_function_in_either_order() -> None:
    code = (
        "import raysense, raysense.search.save_live_objects; assert callable(raysense.search); "
        "import raysense.search; assert raysense.search.save_live_objects.FOLDER; "
        "\ntry: raysense.search('nowhere.yaml', out='x')"
        "\nexcept raysense.RaysenseError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "nowhere.yaml" in done.stdout


def test_every_public_name_is_there_and_documented() -> None:
    for name in rs.__all__:
        assert name == "__version__" or getattr(rs, name).__doc__


def test_the_examples_in_docstrings_give_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    done = doctest.testmod(api, extraglobs={"raysense": rs})
    assert done.attempted >= 4
    assert not done.failed


def test_a_study_in_python_is_that_of_yaml(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "name: a\nconstraints: {clip_score: {max_drop: 0.02}}\nprune: {max_layer_sparsity: 0.9}\n"
    )
    assert rs.Study.load(file) == rs.Study(name="a", constraints=BUDGET, prune={"max_layer_sparsity": 0.9})
    assert rs.Study.load(file, ["prune.max_layer_sparsity=0.8"]).prune.max_layer_sparsity == 0.8


def test_a_wrong_study_is_refused_in_the_same_sentences() -> None:
    with pytest.raises(
        rs.RaysenseError,
        match=r"`prune.max_layer_sparsity` must be ≤ 1, but got 3; `rungs.score.prompts` must be ≥ 8",
    ):
        rs.Study(constraints=BUDGET, prune={"max_layer_sparsity": 3}, rungs={"score": {"prompts": 2}})
    with pytest.raises(rs.RaysenseError, match="did you mean `constraints`"):
        rs.Study(constraint=BUDGET)


def test_what_python_has_and_yaml_has_not_means_what_it_holds() -> None:
    odd = rs.Study(
        constraints=BUDGET,
        prompts=(text for text in ["a cat", "a dog"]),
        dtype=torch.bfloat16,
        seed=np.int64(3),
        sampling={"steps": np.int32(4), "guidance": np.float64(1.5)},
    )
    assert odd.live.prompts == ("a cat", "a dog")
    assert (odd.dtype, odd.seed, odd.sampling.steps, odd.sampling.guidance) == ("bfloat16", 3, 4, 1.5)


def test_live_objects_become_files_once(tmp_path: Path) -> None:
    pipeline, texts = load_pipeline("bundled"), [f"a small goat {n}" for n in range(20)]
    study = rs.Study(pipeline=pipeline, prompts=texts, constraints=BUDGET)
    assert (study.pipeline, study.prompts) == (GIVEN, GIVEN)
    saved = written(study, str(tmp_path))
    rows = [json.loads(line) for line in Path(saved.prompts).read_text().splitlines()]
    assert [row["prompt"] for row in rows] == texts
    again = load_pipeline(saved.pipeline)
    for name in ("unet", "text_encoder"):
        for key, weight in getattr(pipeline, name).state_dict().items():
            assert weight.equal(getattr(again, name).state_dict()[key])
    before = {path: path.stat().st_mtime_ns for path in Path(saved.pipeline).rglob("*") if path.is_file()}
    assert written(study, str(tmp_path)) == saved
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_setting_is_another_pipeline(tmp_path: Path) -> None:
    """Not only weights decide what a pipeline paints."""
    pipeline = load_pipeline("bundled")
    first = written(rs.Study(pipeline=pipeline, constraints=BUDGET), str(tmp_path)).pipeline
    pipeline.scheduler.register_to_config(prediction_type="sample")
    second = written(rs.Study(pipeline=pipeline, constraints=BUDGET), str(tmp_path)).pipeline
    pipeline.vae.register_to_config(scaling_factor=0.5)
    third = written(rs.Study(pipeline=pipeline, constraints=BUDGET), str(tmp_path)).pipeline
    assert len({first, second, third}) == 3
    assert len(list((tmp_path / "given").iterdir())) == 3


def test_live_objects_need_a_folder() -> None:
    study = rs.Study(prompts=["a", "b"], constraints=BUDGET)
    with pytest.raises(rs.RaysenseError, match="`out` is 's3://bucket/x'"):
        written(study, "s3://bucket/x")


def test_what_validate_says_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    study = rs.Study(constraints=BUDGET, prune={"components": ["transformer"]})
    with pytest.raises(rs.RaysenseError, match="transformer"):
        prepared(study, [], str(tmp_path))
    with pytest.raises(rs.RaysenseError, match=r"must be 0 to 1, but is 1\.5"):
        rs.evaluate(rs.Study(constraints=BUDGET), {"unet": 1.5}, rung="probe")
    for strange in ("abc", None, [0.3], {"unet": "0.3"}, {None: 0.3}, True):
        with pytest.raises(rs.RaysenseError, match="`allocation` must be an Allocation"):
            rs.evaluate(rs.Study(constraints=BUDGET), strange, rung="probe")  # type: ignore[arg-type]
    with pytest.raises(
        rs.RaysenseError, match=r"unet is 1\.0, more than `prune\.max_layer_sparsity` 0\.95 allows"
    ):
        rs.evaluate(rs.Study(constraints=BUDGET), {"unet": 1.0}, rung="probe")
    with pytest.raises(rs.RaysenseError, match="`out` must be a folder"):
        rs.search(study, out=None)  # type: ignore[arg-type]
    with pytest.raises(rs.RaysenseError, match="`address` names a Ray cluster"):
        rs.search(study, out=tmp_path, in_process=True, address="auto")
    with pytest.raises(rs.RaysenseError, match="fits no studied layer"):
        rs.evaluate(rs.Study(constraints=BUDGET), {"vae": 0.5}, rung="probe")
    with pytest.raises(rs.RaysenseError, match="`rung` is 'scores'"):
        rs.evaluate(rs.Study(constraints=BUDGET), 0.5, rung="scores")


def test_evaluate_measures_what_was_asked(tmp_path: Path) -> None:
    study = rs.Study(constraints=BUDGET, rungs={"probe": {"prompts": 2, "timesteps": 2}})
    dense = rs.evaluate(study, 0.0, rung="probe", cache=tmp_path)
    assert dense.measures["probe_error"].value == 0
    found = rs.evaluate(study, {"unet": 0.5, "unet:down_blocks.1": 0.0}, rung="probe", cache=tmp_path)
    assert found.zeros > 0
    assert found.measures["probe_error"].value > 0
    assert found.measures["text_error"].value == 0
    everywhere = rs.evaluate(study, {"unet": 0.5}, rung="probe", cache=tmp_path)
    assert everywhere.zeros > found.zeros


def test_a_run_shows_its_winner(reference: str) -> None:
    run = rs.Run(reference)
    assert run.finished
    assert run.winner is not None
    assert run.winner.sparsity == pytest.approx(run.winner.zeros / run.summary["n_components"])  # type: ignore[index]
    assert run.winner.allocation in set(run.candidates()["allocation"])


def test_a_winner_can_be_taken_away(reference: str, tmp_path: Path) -> None:
    run = rs.Run(reference)
    assert run.winner is not None
    pipeline = run.load_pipeline()
    zeros = sum(
        int((weight == 0).sum())
        for name in ("unet", "text_encoder")
        for key, weight in getattr(pipeline, name).state_dict().items()
        if weight.ndim > 1 and "embed" not in key.split(".")[-2]
    )
    assert zeros >= run.winner.zeros
    dense, pruned = run.images("dense", 2), run.images(count=2)
    assert dense[0].size == (32, 32)
    assert not np.array_equal(np.asarray(dense[0]), np.asarray(pruned[0]))


def test_progress_in_a_notebook_is_a_bar() -> None:
    console = Console(force_jupyter=True)
    assert isinstance(view(console), NotebookView)
    assert isinstance(view(Console()), LiveView)
    html = in_html(Snapshot(stage="search & <find>", done=3, wanted=12, seconds=5))
    assert 'max="12" value="3"' in html
    assert "search &amp; &lt;find&gt;" in html


@pytest.fixture
def reference(tmp_path: Path) -> str:
    """The committed study, copied: pictures and caches go beside it."""
    root = Path(__file__).parents[2] / "reports/reference"
    shutil.copytree(root, tmp_path / "reference")
    return str(tmp_path / "reference")


SEARCH = """
import os, signal, sys, threading, time
from pathlib import Path
import raysense as rs
from raysense.pipelines.load import load_pipeline

out, stop = sys.argv[1], sys.argv[2] == "stop"
study = rs.Study(
    pipeline=load_pipeline("bundled"),
    prompts=[f"a small goat on {colour} background, {n}" for colour in ("a red", "a blue") for n in range(12)],
    constraints={"clip_score": {"max_drop": 0.9}},
    sampling={"steps": 2, "batch": 8},
    prune={"components": ["text_encoder"]},
    rungs={"layer": {"prompts": 2}, "probe": {"prompts": 2, "timesteps": 2}, "preview": {"prompts": 8},
           "score": {"prompts": 8}, "validation": {"prompts": 8}},
    search={"granularity": "component", "strategies": ["uniform", "solver"], "levels": 4, "bisections": 2,
            "rounds": 0, "finalists": 1},
)

def ctrl_c():
    while not any(path.is_file() for path in Path(out, "objects").rglob("*")):
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGINT)

if stop:
    threading.Thread(target=ctrl_c, daemon=True).start()
run = rs.search(study, out=out, in_process=True, resume=not stop, progress=False, page=False)
print("finished", run.finished, len(run.table("evaluations")), run.winner is not None)
"""


def test_a_search_in_this_process_stops_and_goes_on(tmp_path: Path) -> None:
    def python(what: str) -> str:
        command = [sys.executable, "-c", SEARCH, str(tmp_path / "run"), what]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().splitlines()[-1]

    assert python("stop").startswith("finished False")
    assert python("resume").startswith("finished True")
    run = rs.Run(str(tmp_path / "run"))
    assert run.winner is not None
    assert set(run.table("evaluations")["ray_trial"]) == {"in-process"}
    assert not (tmp_path / "run" / "report.html").exists()
