"""The doctor finds what is wrong, each thing by its own check, and nothing where all is well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raysense.cli import main
from raysense.errors import RaysenseError
from raysense.evaluation import checks
from raysense.pipelines.idle_modules import foreseen_for
from raysense.pipelines.origin import Origin
from raysense.search import doctor
from raysense.search.doctor import components_to_prune, examine
from raysense.study import Study, load, parse
from tests.evaluation.test_small_pipelines import saved, study_of

SMALL = ["sampling.batch=2", "sampling.steps=2"]


def verdicts(study: Study) -> dict[str, tuple[str, str]]:
    return {finding.check: (finding.verdict, finding.told) for finding in examine(study).findings}


def test_the_bundled_pipeline_is_well_and_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    assert main(["doctor", "bundled", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["well"]
    assert {finding["verdict"] for finding in found["findings"]} <= {"ok", "not applicable"}
    names = [finding["check"] for finding in found["findings"]]
    for name in (
        "inventory",
        "types",
        "idle layers",
        "cost",
        "pixels",
        "dense probe",
        "pruned probe: unet",
        "batch",
    ):
        assert name in names
    assert "StableDiffusionPipeline: all of it holds" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "chroma"])
def test_small_pipelines_are_well(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    chosen = components_to_prune(Origin(folder))
    assert "vae" not in chosen
    study = study_of(Path(folder), list(chosen))
    study = study.model_copy(update={"sampling": study.sampling.model_copy(update={"batch": 2})})
    found = examine(study)
    assert found.is_well, [finding for finding in found.findings if finding.verdict == "wrong"]


def spoilt(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    """Let the doctor's patient be changed as soon as it is there."""
    init = doctor._Patient.__init__

    def changed(self: Any, *args: Any) -> None:
        init(self, *args)
        change(self)

    monkeypatch.setattr(doctor._Patient, "__init__", changed)


def drifting(patient: Any) -> None:
    calls = [0]

    def hook(module: nn.Module, args: object, output: Any) -> Any:
        calls[0] += 1
        return (output[0] * (1 + 1e-3 * calls[0]), *output[1:])

    patient.live.pipeline.unet.register_forward_hook(hook)


def deaf(patient: Any) -> None:
    unet = patient.live.pipeline.unet
    forward = unet.forward
    unet.forward = lambda sample, t, encoder_hidden_states, **kwargs: forward(
        sample, t, torch.zeros_like(encoder_hidden_states), **kwargs
    )


def gossiping(patient: Any) -> None:
    unet = patient.live.pipeline.unet

    def hook(module: nn.Module, args: object, output: tuple[Tensor, ...]) -> Any:
        return (output[0] + len(output[0]), *output[1:])

    unet.register_forward_hook(hook)


def counted_wrongly(patient: Any) -> None:
    cost = patient.foreseen.cost
    object.__setattr__(patient.foreseen, "cost", type(cost)(cost.image + 1, cost.steps, cost.told))


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (drifting, {"dense probe"}),
        (deaf, {"pruned probe: text_encoder", "guidance"}),
        (gossiping, {"batch", "neighbours"}),
        (counted_wrongly, {"cost"}),
    ],
)
def test_what_is_wrong_is_found(
    change: Callable[[Any], None], wrong: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load(None, SMALL)
    before = foreseen_for(study).cost
    spoilt(monkeypatch, change)
    try:
        found = {name for name, (verdict, _) in verdicts(study).items() if verdict == "wrong"}
    finally:
        object.__setattr__(foreseen_for(study), "cost", before)
    assert wrong <= found


def test_checks_say_what_they_see() -> None:
    dim, bright = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4) * 2 - 1
    assert checks.pixels(dim).verdict == "ok"
    assert checks.pixels(bright).verdict == checks.pixels(torch.zeros(1, 3, 4, 4)).verdict == "wrong"
    half = {"a": nn.Linear(2, 2).half(), "b": nn.Linear(2, 2).half()}
    assert checks.types(half, "float16").verdict == "ok"
    assert checks.types(half, "float32").verdict == "wrong"
    half["b"].weight.data = half["b"].weight.data.float()
    assert checks.types(half, "float16").told == "b: 1 of 2 tensors are float32"
    assert checks.same_parameters(half, {"a": half["a"]}).verdict == "wrong"


def test_a_pipeline_whose_images_depend_on_their_neighbours_is_refused_unless_sampled_one_by_one(
    tmp_path: Path,
) -> None:
    from benchmarks.families.builders import FAMILIES, awake

    torch.manual_seed(0)
    awake(FAMILIES["CogView4Pipeline"].build()).save_pretrained(tmp_path / "p")
    plain = study_of(tmp_path / "p", ["text_encoder", "transformer"]).model_dump(mode="json")
    from raysense.evaluation.evaluator import Evaluator

    with pytest.raises(RaysenseError, match=r"neighbours: .*`sampling.batch: 1`"):
        Evaluator(parse({**plain, "sampling": {**plain["sampling"], "batch": 2}}), str(tmp_path / "s"))
    Evaluator(parse({**plain, "sampling": {**plain["sampling"], "batch": 1}}), str(tmp_path / "s"))
