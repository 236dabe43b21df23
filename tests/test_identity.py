"""What a study's rows depend on is known by its content; whatever of it changes is refused by name."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from raysense import plugins
from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.evaluation.evaluator import build
from raysense.evaluation.identity import inventory_and_grid, signature
from raysense.evaluation.inputs import inputs_of, keep_prompts, pipeline_content, refuse_other, stored_prompts
from raysense.evaluation.scoring import ImageScorer
from raysense.export.write import export
from raysense.hashing import file_hash, know, known_files
from raysense.pipelines.load import load_pipeline
from raysense.pipelines.origin import pipeline_folder
from raysense.prompts.sets import load_prompts
from raysense.records import Evaluation
from raysense.results.page import write_page
from raysense.results.pictures import paint_comparison
from raysense.search.job import begin_store
from raysense.store.checksummed_json import seal
from raysense.store.disk import Disk
from raysense.study import Study, load

UNET = "pipeline/unet/diffusion_pytorch_model.safetensors"

METRIC = """
def sharpness(images, prompts, dense):
    import own_help
    return own_help.f(images)
"""

EXTRACTOR = """
import torch
from pathlib import Path
class Mean(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.load(Path(__file__).with_name("weight.pt")))
class Features:
    name = "mean"
    def __init__(self, device, batch):
        self.network = Mean()
    def images(self, images):
        return images.mean((2, 3)).float() * self.network.weight.detach()
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder with a study and all that it may bring: pipeline, captions, scorer, reference, plug-ins."""
    place = tmp_path / "its [own] place"
    shutil.copytree(pipeline_folder("bundled"), place / "pipeline")
    shutil.copytree(Path(pipeline_folder("bundled")).parent / "scorer", place / "scorer")
    (place / "reference").mkdir()
    for number in range(4):
        save_image(place / f"reference/{number}.bmp", number)
    captions(place / "captions.jsonl", "ball")
    (place / "own_metrics.py").write_text(METRIC)
    (place / "own_help.py").write_text("def f(images):\n    return images.mean((1, 2, 3))\n")
    (place / "own_extractor.py").write_text(EXTRACTOR)
    torch.save(torch.ones(1), place / "weight.pt")
    before = list(sys.path)
    plugins.make_importable([place])
    yield place
    sys.path[:] = before
    forget_own()


def forget_own() -> None:
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def save_image(path: Path, seed: int) -> None:
    """Files of one size whatever they show."""
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)


def captions(path: Path, word: str) -> None:
    path.write_text("".join(json.dumps({"id": str(i), "prompt": f"{word} {i}"}) + "\n" for i in range(16)))


def study_in(place: Path) -> Study:
    return load(
        overrides=[
            f"pipeline={place / 'pipeline'}",
            f"prompts={place / 'captions.jsonl'}",
            f"metrics.clip.model=local-dir:{place / 'scorer'}",
            f"metrics.reference.path={place / 'reference'}",
            "metrics.features.extractor=own_extractor.Features",
            "metrics.custom={sharpness: own_metrics.sharpness}",
            "rungs={preview: {prompts: 8}, score: {prompts: 8}, validation: {prompts: 8}}",
        ]
    )


def contents(study: Study, device: str = "cpu") -> dict[str, Any]:
    return inputs_of(study, load_prompts(study.prompts), ImageScorer(study), device)


def shift_weights(path: Path) -> None:
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 0.01}, path, {"format": "pt"})


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "captions under the same name": (lambda p: captions(p / "captions.jsonl", "cube"), "prompts' texts"),
    "U-Net weights": (lambda p: shift_weights(p / UNET), "`pipeline.unet`"),
    "scheduler": (lambda p: append(p / "pipeline/scheduler/scheduler_config.json", "\n"), "`pipeline.scheduler`"),
    "CLIP weights": (lambda p: shift_weights(p / "scorer/open_clip_model.safetensors"), "`judges.clip`"),
    "weights of one's own extractor": (lambda p: torch.save(torch.zeros(1), p / "weight.pt"), "`judges.features`"),
    "images of the same names and sizes": (lambda p: save_image(p / "reference/2.bmp", 9), "reference's images"),
    "code that a plug-in imports": (lambda p: append(p / "own_help.py", "# another\n"), "own_metrics.sharpness"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_changes_is_refused_by_name(what: str, place: Path, tmp_path: Path) -> None:
    study = study_in(place)
    inventory, grid = inventory_and_grid(study, load_pipeline("bundled").components)
    out, before = str(tmp_path / "run"), contents(study)
    begin_store(study, out, inventory, grid, before)
    begin_store(study, out, inventory, grid, contents(study))  # nothing has changed
    change, words = CHANGES[what]
    change(place)
    after = contents(study)
    assert signature(study, grid, before) != signature(study, grid, after)
    with pytest.raises(RaysenseError) as refused:
        begin_store(study, out, inventory, grid, after)
    assert words in str(refused.value)
    assert str(refused.value).count("stored") == 1, "only what has changed is named"


@pytest.mark.parametrize("saliency", ["magnitude", "own_metrics.sharpness"])
def test_only_what_chooses_weights_must_be_the_same_for_an_export(saliency: str, place: Path) -> None:
    study = study_in(place)
    study = study.model_copy(update={"prune": study.prune.model_copy(update={"saliency": saliency})})
    record = {"inputs": contents(study)}
    refuse_other(record, study, "run")
    append(place / "own_help.py", "# another\n")
    if saliency == "magnitude":  # it only judged
        refuse_other(record, study, "run")
    else:
        with pytest.raises(RaysenseError, match=r"`plugins.own_metrics.sharpness`"):
            refuse_other(record, study, "run")
    shift_weights(place / UNET)
    with pytest.raises(RaysenseError, match=r"`pipeline.unet`"):
        refuse_other(record, study, "run")


def test_other_software_and_devices_are_other_studies(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_in(place)
    _, grid = inventory_and_grid(study, load_pipeline("bundled").components)
    keys = [signature(study, grid, contents(study)), signature(study, grid, contents(study, "cuda"))]
    monkeypatch.setattr(torch, "__version__", "2.0.1+cu118")
    keys.append(signature(study, grid, contents(study)))
    monkeypatch.setattr(torch, "__version__", "2.0.1+cpu")  # the same release, built for another machine
    assert signature(study, grid, contents(study)) == keys[-1]
    assert len(set(keys)) == 3


def test_a_study_may_move_with_all_that_it_names(place: Path, tmp_path: Path) -> None:
    study, moved = study_in(place), tmp_path / "elsewhere"
    before = study.identity(), {**contents(study), "plugins": {}}
    place.rename(moved)
    forget_own()
    plugins.make_importable([moved])
    other = study_in(moved)
    assert (other.identity(), {**contents(other), "plugins": {}}) == before


def test_nothing_is_exported_that_was_not_measured(place: Path, tmp_path: Path) -> None:
    study = study_in(place)
    inventory, grid = inventory_and_grid(study, load_pipeline("bundled").components)
    out = tmp_path / "run"
    store = begin_store(study, str(out), inventory, grid, contents(study))
    chosen = Allocation({grid.addresses[0]: 1})
    store.put(
        Evaluation(
            key="k",
            trial="q",
            stage="search",
            allocation=chosen.key,
            rung="score",
            measures={},
            zeros=grid.zeros(chosen),
            images=0,
            nfe=0,
            seconds=0.0,
        ),
        chosen,
    )
    (place / "captions.jsonl").unlink()  # an export needs no prompts, judges or references
    shutil.rmtree(place / "reference")
    shutil.rmtree(place / "scorer")
    exported = export(str(out), tmp_path / "pruned", allocation=chosen.key)
    assert exported.zeros == grid.zeros(chosen) + inventory.zeros_before
    shift_weights(place / UNET)
    with pytest.raises(RaysenseError, match=r"has changed since.*`pipeline\.unet`"):
        export(str(out), tmp_path / "again", allocation=chosen.key)
    assert not (tmp_path / "again").exists()


def older(record: dict[str, Any]) -> bytes:
    """As raysense 0.1 wrote it: no contents, no checksum."""
    old = {name: record[name] for name in record if name not in ("inputs", "sha256")}
    return json.dumps({**old, "schema_version": 1, "raysense_version": "0.1.0"}).encode()


def without_contents(record: dict[str, Any]) -> bytes:
    """As nothing writes it: sealed, without contents."""
    return seal({name: record[name] for name in record if name not in ("inputs", "sha256", "schema_version")})


@pytest.mark.parametrize(
    ("written", "words"),
    [(older, r"schema version 1, .* Use raysense 0\.1\.0"), (without_contents, r"not a study .*'inputs'")],
)
def test_no_command_takes_a_study_that_does_not_say_what_it_measured(
    written: Callable[[dict[str, Any]], bytes], words: str, place: Path, tmp_path: Path
) -> None:
    study, out = study_in(place), tmp_path / "run"
    inventory, grid = inventory_and_grid(study, load_pipeline("bundled").components)
    begin_store(study, str(out), inventory, grid, contents(study))
    record = json.loads((out / "study.json").read_text())
    (out / "study.json").write_bytes(written(record))
    for use in (
        lambda: export(str(out), tmp_path / "pruned", allocation="0"),
        lambda: paint_comparison(out, tmp_path / "comparison.png"),
        lambda: write_page(str(out)),
        lambda: begin_store(study, str(out), inventory, grid, contents(study)),
    ):
        with pytest.raises(RaysenseError, match=words):
            use()


def test_an_evaluator_refuses_to_measure_something_else(place: Path, tmp_path: Path) -> None:
    study = study_in(place)
    inventory, grid = inventory_and_grid(study, load_pipeline("bundled").components)
    expected = contents(study)
    begin_store(study, str(tmp_path / "run"), inventory, grid, expected)
    captions(place / "captions.jsonl", "cube")  # the driver's own prompts are in the store
    plain = study.model_dump(mode="json")
    evaluator = build(plain, str(tmp_path / "run"), expected=expected)
    assert evaluator.prompts.search[0].text == "ball 0"
    assert evaluator.signature == signature(study, grid, expected)
    shift_weights(place / UNET)
    with pytest.raises(RaysenseError, match=r"this machine would measure something else.*`pipeline\.unet`"):
        build(plain, str(tmp_path / "run"), expected=expected)


def test_damaged_prompts_in_the_store_are_none(place: Path, tmp_path: Path) -> None:
    study, disk = study_in(place), Disk(str(tmp_path / "run"))
    inventory, grid = inventory_and_grid(study, load_pipeline("bundled").components)
    content = contents(study)
    begin_store(study, str(tmp_path / "run"), inventory, grid, content)
    (file,) = (tmp_path / "run/prompts").iterdir()
    file.write_text(file.read_text().replace("ball 3", "bell 3"))
    assert stored_prompts(disk, content["prompts"]) is None
    keep_prompts(disk, load_prompts(study.prompts))  # as a resumed study does
    assert stored_prompts(disk, content["prompts"]) is not None


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"a" * 100)
    first = file_hash(file)
    file.write_bytes(b"b" * 100)
    assert file_hash(file) != first
    with pytest.raises(RaysenseError, match="cannot read"):
        file_hash(tmp_path / "none")


def test_what_one_process_has_read_another_need_not_read_unless_it_changed(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"a" * 100)
    file_hash(file)
    (told,) = (known for known in known_files() if known[0] == str(file))
    know([(*told[:-1], "as told")])
    assert file_hash(file) == "as told"
    file.write_bytes(b"a" * 100)
    assert file_hash(file) == told[-1]


def test_notes_beside_a_pipeline_change_nothing(place: Path) -> None:
    before = pipeline_content(str(place / "pipeline"), None)
    (place / "pipeline/README.md").write_text("a note")
    (place / "pipeline/.git").mkdir()
    (place / "pipeline/.git/config").write_text("x")
    (place / "pipeline/unet/itself").symlink_to(place / "pipeline/unet")
    assert pipeline_content(str(place / "pipeline"), None) == before


def test_plugins_travel_to_where_they_are_not(place: Path, tmp_path: Path) -> None:
    record = plugins.packed(["own_metrics.sharpness"])
    assert set(record["files"]) == {"own_metrics.py", "own_help.py"}
    before = plugins.sources("own_metrics.sharpness").hash
    sys.path.remove(str(place))
    shutil.rmtree(place)
    with pytest.raises(RaysenseError, match="cannot be imported"):
        plugins.sources("own_metrics.sharpness")
    plugins.unpack(json.loads(json.dumps(record)))
    assert plugins.sources("own_metrics.sharpness").hash == before
    with pytest.raises(RaysenseError, match="outside its folder"):
        plugins.unpack({"folders": [], "files": {"../evil.py": ""}})
