"""`raysense validate`: everything that can be known without weights, at once, in a second."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import open_clip
import pytest
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from raysense import names
from raysense.cli import main
from raysense.errors import RaysenseError
from raysense.evaluation.identity import inventory_and_grid
from raysense.evaluation.scoring import ImageScorer
from raysense.pipelines.load import empty_components, load_pipeline, modules_of
from raysense.pruning.saliency import METHODS
from raysense.strategies.rules import built_in_rules
from raysense.study import MAX_SEED, bundled_pipeline, bundled_scorer, examine, load
from raysense.study.checks import look, too_long
from raysense.study.installed_packages import clip_models, extractors


def _mistakes(*overrides: str, path: Path | None = None) -> list[str]:
    return look(examine(path, overrides))[0]


MISTAKES = {
    "search.strategies=[uniform, nope]": "`search.strategies` has the unknown entry 'nope'; there are erk",
    "search.strategies=[]": "`search.strategies` must have at least 1 item",
    "prune.saliency=wnada": "`prune.saliency` has the unknown method 'wnada'; choose from magnitude",
    "prune.saliency=[wanda, wanda]": "`prune.saliency` must list each entry once, not 'wanda' twice",
    "prune.saliency=[wanda, sparsegpt]": "sparsegpt updates the weights that stay and cannot compete",
    "prune.saliency=raysense.errors.nothing": "errors.py defines no 'nothing'",
    "prune.components=[text_encodr, unet]": "names 'text_encodr', but the pipeline has text_encoder, unet, vae",
    "prune.components=[tokenizer]": "names 'tokenizer', a CLIPTokenizer, which has no weights",
    "prune.components=[unet, unet]": "must list each entry once, not 'unet' twice",
    "search.proportions={unte: 1}": "`search.proportions` names 'unte', but the pipeline has",
    "metrics.features.extractor=inception": "`metrics.features.extractor` is unknown: 'inception'; choose",
    "metrics.features.extractor=efficientnet-lite0-100": "must be a multiple of 32",
    "metrics.features.extractor=no_such_package.thing": "there is no module 'no_such_package'",
    "metrics.features.extractor=open_clip:ViT-B-32@opanai": "'ViT-B-32' has no weights 'opanai'; there are openai",
    "metrics.clip.model=vit-b-32": "is no model of open_clip's (did you mean 'ViT-B-32'?)",
    "metrics.clip.model=ViT-B-32": "'ViT-B-32' needs `pretrained`, one of openai",
    "metrics.clip.model=local-dir:/nowhere": "there is no `/nowhere` with an open_clip_config.json",
    "metrics.clip.pretrained=openai": "'bundled' names its weights itself",
    "metrics.custom.sharp=raysense.nothing.sharp": "there is no module 'raysense.nothing'",
    "sampling.width=64": "`sampling.width` stands without `sampling.height`",
    "sampling={height: 100, width: 64}": "`sampling.height` must be a multiple of 8 for this pipeline, such as 96",
    "prune.max_layer_sparsity=.inf": "`prune.max_layer_sparsity` must be a finite number, but got Infinity",
    "constraints.clip_score.max_drop=.nan": "`constraints.clip_score.max_drop` must be a finite number",
    "seed=99999999999999999999": f"`seed` must be ≤ {MAX_SEED}",
    "rungs.score.seeds=1001": "`rungs.score.seeds` must be ≤ 1000",
    "prune.pattern=2:4:1": "`prune.pattern` must match pattern",
    "compile=no": '`compile` must be a valid boolean, but got "no"; write true or false',
    "pipeline=/no/such/folder": "there is no folder `/no/such/folder`, and it is no hub id",
    "pipeline=" + "x" * 5000: "and it is no hub id",
    "prompts=" + "x" * 5000: "`prompts`",
    "metrics.reference.path=" + "x" * 5000: "`metrics.reference.path`: there is no",
    "metrics.reference.path=README.md": "must be a folder or one of .csv",
    "metrics.reference.path=/dev/zero": "must be a folder or one of .csv",
    "metrics.custom.zeros=os.getcwd": "`metrics.custom.zeros` must not name a metric 'zeros'",
    ".".join("a" * 50): "has more than 32 parts",
}


@pytest.mark.parametrize("override", MISTAKES, ids=lambda text: text[:40])
def test_each_mistake_is_said(override: str) -> None:
    if "=" not in override:
        override += "=1"
    mistakes = _mistakes(override)
    assert len(mistakes) == 1, mistakes
    assert MISTAKES[override.removesuffix("=1") if override.endswith("a=1") else override] in mistakes[0]
    assert "\n" not in mistakes[0]


def test_all_mistakes_are_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        """
name: "a b"
pipeline: /no/such place
prune: {components: [text_encoder, unet, unet], saliency: wnada, max_layer_sparsity: .inf, patern: 2:4}
metrics: {clip: {model: ViT-B-33}, features: {extractor: inception}, custom: {a: nosuch.thing}}
constraints: {clip_score: {max_drop: -1}, kid: {max_rise: 2024-01-01}, custom: {b: {min: 1}}}
search: {strategies: [uniform, nope]}
rungs: {score: {prompts: 100000}, preview: {prompts: 4}}
track: {mlflow: "http://me:secret@host"}
seed: 99999999999999999999
"""
    )
    assert main(["validate", str(path), "--set", "nokey", "--set", "compile=on"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "secret" not in said
    for field in (
        "name", "prune.components", "prune.max_layer_sparsity", "prune.patern", "constraints.clip_score.max_drop",
        "constraints.kid.max_rise", "rungs.preview.prompts", "track.mlflow", "seed", "compile", "pipeline",
        "rungs.score.prompts", "search.strategies", "metrics.custom.a", "metrics.clip.model",
        "metrics.features.extractor", "--set nokey", "constraints.custom.b",
    ):  # fmt: skip
        assert f"`{field}" in said, field
    assert said.count("`seed`") == 1


def test_a_mistake_hides_no_other_one_beside_it() -> None:
    said = _mistakes(
        "prune.components=[unet, unett, unet]",
        "search.strategies=[uniform, unifrom, uniform]",
        "metrics={clip: {model: ViT-B-33}, features: {extractor: inception}, reference: {path: no.npz}, "
        "custom: {zeros: a.b, kid: c.d, sharp: nowhere.sharp}}",
        "constraints.custom.sharpp.min=1",
    )
    assert len(said) == len(set(said)) == 11
    for words in (
        "must list each entry once, not 'unet' twice", "names 'unett'",
        "must list each entry once, not 'uniform' twice", "the unknown entry 'unifrom'",
        "`metrics.custom.zeros` must not", "`metrics.custom.kid` must not", "`metrics.custom.sharp`: 'nowhere.sharp'",
        "`metrics.clip.model` 'ViT-B-33'", "`metrics.features.extractor` is unknown", "`metrics.reference.path`",
        "`constraints.custom.sharpp` bounds a metric that",
    ):  # fmt: skip
        assert [text for text in said if words in text], words
    both = _mistakes('metrics.custom={"a b": "c!", "d e": nowhere.f}')
    assert [text.partition(" must")[0] for text in both] == ["`metrics.custom.a b`"] * 2 + [
        "`metrics.custom.d e`"
    ]


def test_what_follows_from_another_mistake_is_not_said() -> None:
    assert len(_mistakes("constraints.clip_score.max_drop=-1", "constraints.frechet=null")) == 1
    assert len(_mistakes("rungs.score.prompts=x", "rungs.preview.prompts=256")) == 1
    assert len(_mistakes("metrics.custom.sharp=nodots", "constraints.custom.sharp.min=1")) == 1


def test_names_are_those_of_the_code() -> None:
    pipeline = load_pipeline("bundled")
    forms = built_in_rules(*inventory_and_grid(load(), pipeline.components), modules_of(pipeline))
    assert tuple(forms) == names.ALLOCATION_RULES
    assert tuple(METHODS) == names.SALIENCIES
    assert set(extractors()) <= set(FEATURE_EXTRACTORS_REGISTRY)
    assert "inception-v3-compat" in extractors()
    theirs: dict[str, set[str]] = {model: set() for model in open_clip.list_models()}
    for model, tag in open_clip.list_pretrained():
        theirs.setdefault(model, set()).add(tag)
    assert {model: set(tags) for model, tags in clip_models().items()} == theirs


def test_prompts_that_are_cut_off_are_counted(tmp_path: Path) -> None:
    texts = [f"a big ghost {n}" for n in range(20)] + [f"{'a ghost and ' * 12} {n}" for n in range(5)]
    assert too_long(load(), texts) == {"the pipeline's `tokenizer`": 5, "the CLIP model": 5}
    assert len(ImageScorer(load()).truncated(texts)) == 5
    path = tmp_path / "p.txt"
    path.write_text("\n".join(texts))
    small = [f"rungs.{name}.prompts=8" for name in ("preview", "score", "validation")]
    doubts = look(examine(None, [f"prompts={path}", *small]))[1]
    assert not [doubt for doubt in doubts if "longer than" in doubt]  # of these the rungs use none
    path.write_text("\n".join(reversed(texts)))
    doubts = look(examine(None, [f"prompts={path}", *small]))[1]
    assert "`prompts`: 5 of 16 prompts are longer than the CLIP model reads; the rest is cut off" in doubts


def test_folders_that_are_no_pipelines(tmp_path: Path) -> None:
    (tmp_path / "file.safetensors").touch()
    assert "its 0 bytes hold no header" in _mistakes(f"pipeline={tmp_path}/file.safetensors")[0]
    assert "has no model_index.json" in _mistakes(f"pipeline={tmp_path}")[0]
    copy = tmp_path / "copy"
    shutil.copytree(bundled_pipeline(), copy)
    assert _mistakes(f"pipeline={copy}") == []
    index = json.loads((copy / "model_index.json").read_text())
    for name, told in {"MyPipeline": "names the class 'MyPipeline', which", None: "names no class"}.items():
        (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": name}))
        assert told in _mistakes(f"pipeline={copy}")[0]
    for content in ("{", "[]", "[" * 100_000, "\ufeff\0"):
        (copy / "model_index.json").write_text(content)
        assert "model_index.json` is damaged" in _mistakes(f"pipeline={copy}")[0]


def test_a_transformers_patches_count(tmp_path: Path) -> None:
    for part, content in {
        "model_index": {"transformer": ["diffusers", "T"], "vae": ["diffusers", "A"]},
        "vae/config": {"block_out_channels": [1, 2, 3, 4], "latent_channels": 16},
        "transformer/config": {"patch_size": 1, "in_channels": 64},
    }.items():
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
    assert any("multiple of 16" in text for text in _mistakes(f"pipeline={tmp_path}", "sampling.width=72"))


def test_plugins_beside_the_study_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics_never_imported.py").write_text("def sharpness(images, prompts, dense): ...\n")
    (tmp_path / "broken.py").write_text("def (")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert _mistakes("metrics.custom.sharp=metrics_never_imported.sharpness") == []
    assert "defines no 'sharpnes'" in _mistakes("metrics.custom.sharp=metrics_never_imported.sharpnes")[0]
    assert "cannot be read" in _mistakes("metrics.custom.sharp=broken.sharp")[0]
    assert "metrics_never_imported" not in sys.modules


NEVER_RUN = """
import functools, os.path as place
from json import dumps
from own_far import far, gone_far
raise RuntimeError("validate runs nothing")
def good(images, prompts, dense): ...
def some(*all, **more): ...
def keyword(images, *, prompts, dense): ...
def more(images, prompts, dense, extra): ...
def saliency(weight, known, strength=1.0): ...
async def later(images, prompts, dense): ...
three = lambda a, b, c: 0
number = 3
partial = functools.partial(more, extra=1)
@functools.cache
def wrapped(): ...
class Net:
    def __init__(self, device, batch): ...
class Other:
    def __init__(self, where): ...
class Bare: ...
def make(batch=8, device="cpu"): ...
def positional(device, batch, /): ...
if place:
    def either(a): ...
else:
    def either(a, b, c): ...
"""

USES = {
    "metrics.custom.m": {
        "": ["good", "some", "three", "far", "partial", "wrapped", "either"],
        "cannot be called so": ["keyword", "more", "gone_far", "dumps"],
        "is a coroutine": ["later"],
        "is no function, but a value": ["number"],
        "is a class": ["Net"],
        "names the module 'os.path'": ["place"],
    },
    "prune.saliency": {
        "": ["saliency", "some", "partial"],
        "cannot be called so": ["good"],
        "is a class": ["Net"],
    },
    "metrics.features.extractor": {
        "": ["Net", "make", "some", "wrapped"],
        "cannot be called so": ["good", "Other", "positional"],
        "takes no arguments": ["Bare"],
    },
}


@pytest.mark.parametrize("field", USES)
def test_a_plugin_can_be_called_as_it_will_be(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_never_run.py").write_text(NEVER_RUN)
    (tmp_path / "own_far.py").write_text("def far(a, b, c): ...\ndef gone_far(a): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for words, called in USES[field].items():
        for name in called:
            found = _mistakes(f"{field}=own_never_run.{name}")
            if words:
                (mistake,) = found
                assert mistake.startswith(f"`{field}`"), mistake
                assert words in mistake, name
            else:
                assert found == [], name
    assert "own_never_run" not in sys.modules


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "sys.exit",
            "cannot be called so (too many positional arguments); a metric is called with (images, prompts",
        ),
        ("os:path", "names the module"),
        ("sys.path", "is a list, which cannot be called"),
        ("os.sep", "is a str, which cannot be called"),
        ("os.getcwd", "cannot be called so"),
        ("sys.nope", "cannot be imported"),
    ],
)
def test_the_interpreters_own_modules_are_looked_into(path: str, words: str) -> None:
    (mistake,) = _mistakes(f"metrics.custom.m={path}")
    assert words in mistake


def test_a_pipe_for_a_file_of_weights_is_said_at_once(tmp_path: Path) -> None:
    folder, scorer = tmp_path / "pipeline", tmp_path / "scorer"
    shutil.copytree(bundled_pipeline(), folder)
    shutil.copytree(bundled_scorer(), scorer)
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.unlink()
    os.mkfifo(weights)
    (scorer / "more.bin").symlink_to("/dev/zero")
    mistakes = _mistakes(f"pipeline={folder}", f"metrics.clip.model=local-dir:{scorer}")
    assert f"`pipeline`: `{weights}` is no plain file, but a pipe; put the file itself there" in mistakes
    assert any(f"`{scorer / 'more.bin'}` is no plain file, but a device" in text for text in mistakes)
    for load_it in (load_pipeline, empty_components):
        with pytest.raises(RaysenseError, match="is no plain file, but a pipe"):
            load_it(str(folder))


def test_studies_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (1 << 20))
    for place, words in (
        (tmp_path / "pipe.yaml", "no plain file"),
        (Path("/dev/zero"), "no plain file"),
        (tmp_path, "it is a folder"),
        (tmp_path / "large.yaml", "at most"),
        (Path("x" * 5000), "File name too long"),
        (Path("a\0b"), "null"),
    ):
        with pytest.raises(RaysenseError, match=words) as caught:
            load(place)
        assert len(str(caught.value)) < 400
