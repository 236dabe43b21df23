"""Which files of a pipeline are read: variants, pickles, quantised components, single files, adapters' files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from raysense.errors import RaysenseError
from raysense.evaluation.inputs import taken_away
from raysense.pipelines.load import empty_components, load_pipeline, modules_of, notes_of
from raysense.pipelines.origin import Origin
from raysense.study import examine
from raysense.study.checks import look
from tests.pipelines.original_layout import save_original
from tests.pruning.families import stable_diffusion


def mistakes(*overrides: str) -> list[str]:
    return look(examine(None, list(overrides)))[0]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    pipeline: Any = stable_diffusion(attention_head_dim=4)
    pipeline.save_pretrained(tmp_path_factory.mktemp("small") / "pipeline")
    pipeline.folder = tmp_path_factory.getbasetemp() / "small0" / "pipeline"
    return pipeline


def equal(one: Any, other: Any) -> bool:
    return all(
        torch.equal(a, b)
        for name, module in modules_of(one).items()
        for a, b in zip(module.parameters(), modules_of(other)[name].parameters(), strict=True)
    )


def test_a_variant_is_loaded_where_it_is_asked_for_and_named_where_it_is_not(
    small: Any, tmp_path: Path
) -> None:
    small.save_pretrained(tmp_path, variant="fp16")
    told = mistakes(f"pipeline={tmp_path}")
    assert len(told) == 3
    assert all("holds only the variant fp16 of its weights; set `variant: fp16`" in text for text in told)
    with pytest.raises(RaysenseError, match="set `variant: fp16`"):
        load_pipeline(str(tmp_path))
    assert mistakes(f"pipeline={tmp_path}", "variant=fp16") == []
    assert equal(load_pipeline(Origin(str(tmp_path), variant="fp16")), small)
    (wrong,) = mistakes(f"pipeline={tmp_path}", "variant=fp8")
    assert wrong.startswith("`variant` is 'fp8', but")
    assert "its variants are fp16" in wrong
    with pytest.raises(RaysenseError, match="its variants are fp16"):
        load_pipeline(Origin(str(tmp_path), variant="fp8"))


def test_pickled_weights_are_read_only_where_that_is_said(small: Any, tmp_path: Path) -> None:
    shutil.copytree(small.folder, tmp_path / "p")
    (tmp_path / "p/unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save(small.unet.state_dict(), tmp_path / "p/unet/diffusion_pytorch_model.bin")
    (told,) = mistakes(f"pipeline={tmp_path}/p")
    assert "holds pickled weights only" in told
    assert "set `pickled: true`" in told
    with pytest.raises(RaysenseError, match="set `pickled: true`"):
        load_pipeline(str(tmp_path / "p"))
    assert mistakes(f"pipeline={tmp_path}/p", "pickled=true") == []
    assert equal(load_pipeline(Origin(str(tmp_path / "p"), pickled=True)), small)


def test_a_quantised_component_is_refused_by_name(small: Any, tmp_path: Path) -> None:
    shutil.copytree(small.folder, tmp_path / "p")
    file = tmp_path / "p/unet/config.json"
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": quantised}))
    (told,) = mistakes(f"pipeline={tmp_path}/p")
    assert "component `unet` is quantised already (bitsandbytes)" in told
    with pytest.raises(RaysenseError, match="`unet` is quantised already"):
        load_pipeline(str(tmp_path / "p"))


def test_a_single_file_is_the_pipeline_that_its_configuration_describes(small: Any, tmp_path: Path) -> None:
    file = save_original(small, tmp_path / "one.safetensors")
    config = tmp_path / "config"
    shutil.copytree(small.folder, config, ignore=shutil.ignore_patterns("*.safetensors"))
    assert mistakes(f"pipeline={file}", f"config={config}") == []
    origin = Origin(file, config=str(config))
    assert equal(load_pipeline(origin), small)
    counts = {name: sum(p.numel() for p in m.parameters()) for name, m in empty_components(origin).items()}
    assert counts == {name: sum(p.numel() for p in m.parameters()) for name, m in modules_of(small).items()}


def test_a_single_file_of_something_else_is_refused(small: Any, tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    save_original(small, whole)
    tensors = load_file(whole)
    gone = next(name for name in tensors if "input_blocks.3.1" in name)
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != gone}, tmp_path / "cut.safetensors"
    )
    with pytest.raises(
        RaysenseError,
        match=r"is no StableDiffusionPipeline as .* it lacks \d+ tensors .* of `unet`; set `config`",
    ):
        load_pipeline(Origin(str(tmp_path / "cut.safetensors"), config=str(small.folder)))
    more = tensors | {name.replace("input_blocks.3.1", "input_blocks.1.1"): t for name, t in tensors.items()}
    save_file({name: tensor.clone() for name, tensor in more.items()}, tmp_path / "more.safetensors")
    with pytest.raises(RaysenseError, match=r"is no StableDiffusionPipeline .* it has besides .*attentions"):
        load_pipeline(Origin(str(tmp_path / "more.safetensors"), config=str(small.folder)))
    save_file({"lm_head.weight": torch.ones(2, 2)}, tmp_path / "llm.safetensors")
    with pytest.raises(RaysenseError, match=r"single file .* is no checkpoint of a pipeline .*lm_head"):
        load_pipeline(str(tmp_path / "llm.safetensors"))
    for name, told in {
        "cut": "it lacks",
        "more": "it has besides",
        "llm": "holds nothing of it .*lm_head",
    }.items():
        with pytest.raises(RaysenseError, match=told):  # so a plan and a list of layers refuse it too
            empty_components(Origin(str(tmp_path / f"{name}.safetensors"), config=str(small.folder)))
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "short.safetensors").write_bytes(whole.read_bytes()[:100_000])
    (tmp_path / "model.ckpt").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    for name, told in {
        "empty": "its 0 bytes hold no header",
        "short": "it is cut off",
        "model.ckpt": "is pickled",
        "notes.txt": "is a file; give a folder",
    }.items():
        file = tmp_path / (name if "." in name else f"{name}.safetensors")
        assert told in mistakes(f"pipeline={file}")[0]
        with pytest.raises(RaysenseError, match=told):
            load_pipeline(str(file))
    assert "belongs to a single file" in mistakes("config=somewhere/else")[0]


def test_what_a_single_file_does_not_hold_comes_from_its_configuration(small: Any, tmp_path: Path) -> None:
    """As files of a transformer alone are shared."""
    save_original(small, tmp_path / "whole.safetensors")
    unet = {k: t for k, t in load_file(tmp_path / "whole.safetensors").items() if "diffusion_model" in k}
    file = str(tmp_path / "unet.safetensors")
    save_file(unet, file)
    config = tmp_path / "config"
    shutil.copytree(small.folder, config)
    (config / "unet/diffusion_pytorch_model.safetensors").unlink()
    pipeline = load_pipeline(Origin(file, config=str(config)))
    assert equal(pipeline, small)
    assert any("text_encoder" in note and "from `config`" in note for note in notes_of(pipeline))
    study = examine(None, [f"pipeline={file}", f"config={config}"]).study
    assert study is not None
    before = taken_away(study)
    weights = config / "vae/diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    assert taken_away(study) != before
    weights.unlink()
    with pytest.raises(RaysenseError, match=r"holds no weights of `vae`, and neither does"):
        load_pipeline(Origin(file, config=str(config)))


def test_the_configuration_of_a_single_file_that_is_nowhere_is_said(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read when it was imported
    file = save_original(small, tmp_path / "one.safetensors")
    with pytest.raises(
        RaysenseError, match=r"`config`.* needs the configuration of `.*stable-diffusion.*folder"
    ):
        load_pipeline(file)


def test_files_of_adapters_are_looked_at_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"x")
    (tmp_path / "b.safetensors").write_bytes(b"x")
    paths = [str(tmp_path / name) for name in ("a.bin", "b.safetensors", "c.safetensors")]
    told = mistakes("lora=" + json.dumps([{"path": path} for path in paths]))
    assert [text.partition(" ")[0].rstrip(":") for text in told] == [f"`lora.{n}.path`" for n in range(3)]
    assert "must be a .safetensors file" in told[0]
    assert "hold no header" in told[1]
    assert "there is no file" in told[2]
