"""Adapters: what is added is W + weight · alpha / rank · B A, and nothing of a file is passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.pipelines.load import empty_components, load_pipeline, modules_of, notes_of
from raysense.pipelines.origin import Origin
from raysense.study import Lora
from tests.pruning.families import FAMILIES

QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
RANK = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("lora")
    for name in ("sd1", "flux"):
        FAMILIES[name].build().save_pretrained(folder / name)
    return folder


def pair(weight: Tensor, generator: int = 1) -> tuple[Tensor, Tensor]:
    torch.manual_seed(generator)
    return torch.randn(RANK, weight.shape[1]), torch.randn(weight.shape[0], RANK)


def loaded(folder: Path, *loras: Lora) -> Any:
    return load_pipeline(Origin(str(folder), lora=loras))


def test_an_adapter_in_the_trainers_own_form_is_added_with_its_alpha_and_weight(folder: Path) -> None:
    dense = loaded(folder / "sd1")
    down, up = pair(dense.unet.get_submodule(QUERY).weight)
    kohya = "lora_unet_" + QUERY.replace(".", "_")
    file = folder / "kohya.safetensors"
    text = "text_model.encoder.layers.0.self_attn.q_proj"
    text_weight = dense.text_encoder.get_submodule(text.removeprefix("text_model.")).weight
    text_down, text_up = pair(text_weight, 2)
    tensors = {
        f"{kohya}.lora_down.weight": down,
        f"{kohya}.lora_up.weight": up,
        f"{kohya}.alpha": torch.tensor(1.0),
    }
    te = "lora_te_" + text.replace(".", "_")
    tensors |= {
        f"{te}.lora_down.weight": text_down,
        f"{te}.lora_up.weight": text_up,
        f"{te}.alpha": torch.tensor(4.0),
    }
    save_file(tensors, file)
    pipeline = loaded(folder / "sd1", Lora(path=str(file), weight=0.5), Lora(path=str(file), weight=0.25))
    want = dense.unet.get_submodule(QUERY).weight + 0.75 * (1.0 / RANK) * up @ down
    assert torch.allclose(pipeline.unet.get_submodule(QUERY).weight, want, atol=1e-6)
    for name, module in modules_of(dense).items():
        own = dict(modules_of(pipeline)[name].named_parameters())
        changed = [path for path, weight in module.named_parameters() if not torch.equal(weight, own[path])]
        assert len(changed) == (0 if name == "vae" else 1)
    text_want = text_weight + 0.75 * (4.0 / RANK) * text_up @ text_down
    got = pipeline.text_encoder.get_submodule(text.removeprefix("text_model.")).weight
    assert torch.allclose(got, text_want, atol=1e-5)
    assert "strength 0.5 is part of the weights of 2 layers" in notes_of(pipeline)[0]


@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_an_adapter_that_diffusers_saved_is_added(name: str, folder: Path) -> None:
    dense = loaded(folder / name)
    component, path = {"sd1": ("unet", QUERY), "flux": ("transformer", "transformer_blocks.0.attn.to_q")}[
        name
    ]
    weight = modules_of(dense)[component].get_submodule(path).weight
    down, up = pair(weight)
    text = next(p for p, m in dense.text_encoder.named_modules() if p.endswith("layers.0.self_attn.q_proj"))
    text_down, text_up = pair(dense.text_encoder.get_submodule(text).weight, 2)
    file = folder / f"{name}.safetensors"
    save_file(
        {
            f"{component}.{path}.lora_A.weight": down,
            f"{component}.{path}.lora_B.weight": up,
            f"text_encoder.{text}.lora_A.weight": text_down,
            f"text_encoder.{text}.lora_B.weight": text_up,
        },
        file,
    )
    pipeline = loaded(folder / name, Lora(path=str(file)))
    assert torch.allclose(
        modules_of(pipeline)[component].get_submodule(path).weight, weight + up @ down, atol=1e-6
    )
    own = dense.text_encoder.get_submodule(text).weight
    assert torch.allclose(
        pipeline.text_encoder.get_submodule(text).weight, own + text_up @ text_down, atol=1e-6
    )


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        (
            {"unet.nowhere.lora_A.weight": torch.ones(2, 4), "unet.nowhere.lora_B.weight": torch.ones(4, 2)},
            "another base",
        ),
        (
            {
                f"unet.{QUERY}.lora_A.weight": torch.ones(2, 5),
                f"unet.{QUERY}.lora_B.weight": torch.ones(32, 2),
            },
            f"another base.*`unet.{QUERY}`.*another shape",
        ),
        ({f"unet.{QUERY}.lora_A.weight": torch.ones(2, 32)}, "pairs"),
        ({"weight": torch.ones(2)}, "no.* pairs"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(tensors: dict[str, Tensor], told: str, folder: Path) -> None:
    file = folder / "other.safetensors"
    save_file(tensors, file)
    lora = Lora(path=str(file))
    with pytest.raises(RaysenseError, match=rf"`lora`.*{told}"):
        loaded(folder / "sd1", lora)
    with pytest.raises(RaysenseError, match=rf"`lora`.*{told}"):  # so a plan refuses it too
        empty_components(Origin(str(folder / "sd1"), lora=(lora,)))
