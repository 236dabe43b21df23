"""Networks that turn images (and prompts) into features, once for all metrics.

Every extractor sees the same thing: images rounded to 8 bits, as if they had been saved as PNG and read
again, so that a figure does not depend on whether they ever touched a disk. Features come back as float32 on
the CPU.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import open_clip
import torch
import torch_fidelity
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor

from raysense.errors import RaysenseError
from raysense.hub import limited
from raysense.metrics import efficientnet
from raysense.names import LOCAL, OPEN_CLIP
from raysense.registry import find

BATCH = 64
EFFICIENTNET_SIZE = 96
OFFLINE = "run `raysense prepare` once on a machine that reaches the internet, or name another extractor"


@runtime_checkable
class FeatureExtractor(Protocol):
    """What the Fréchet distance, KID, CMMD, precision and recall need; a custom one fulfils this too.

    Attributes:
        name: Identifies the network, its weights and its input size; two features compare only if it agrees.
    """

    name: str

    def images(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) float images in [0, 1] to (n, d) float32 features on the CPU."""
        ...


def as_bytes(images: Tensor) -> Tensor:
    """Round (n, 3, h, w) float images in [0, 1] to uint8, as saving them would.

    Raises:
        RaysenseError: If the shape or type is wrong, or a pixel is not finite.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise RaysenseError(
            f"`images` must be float (n, 3, h, w) in [0, 1], but got {images.dtype} {tuple(images.shape)}."
        )
    if not bool(torch.isfinite(images).all()):
        raise RaysenseError(
            "`images` hold NaN or infinity; ask `collapsed.why_collapsed` before extracting features."
        )
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)


class TorchFidelityFeatures:
    """Any feature extractor that is registered with torch-fidelity.

    Args:
        name: Its registered name, e.g. ``inception-v3-compat``, ``dinov2-vit-b-14``, ``clip-vit-b-32``.
        device: Where the network runs.
        batch: Images at a time.

    Raises:
        RaysenseError: If no such extractor is registered or its weights cannot be had.
    """

    def __init__(self, name: str, device: str | torch.device = "cpu", batch: int = BATCH) -> None:
        if name not in FEATURE_EXTRACTORS_REGISTRY:
            raise RaysenseError(
                f"extractor {name!r} is unknown to torch-fidelity; "
                f"it has {sorted(FEATURE_EXTRACTORS_REGISTRY)}."
            )
        layer = FEATURE_EXTRACTORS_REGISTRY[name].get_default_feature_layer_for_metric("fid")
        try:
            with limited():
                network = create_feature_extractor(name, [layer], cuda=False, verbose=False)
        except (OSError, RuntimeError) as error:
            raise RaysenseError(
                f"extractor {name!r}: its weights cannot be had ({error}); {OFFLINE}."
            ) from error
        self.name, self.device, self.batch = name, torch.device(device), batch
        self.network = network.to(self.device)

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """See `FeatureExtractor.images`."""
        parts = [
            self.network(as_bytes(part).to(self.device))[0].float().cpu()
            for part in torch.split(images, self.batch)
        ]
        return torch.cat(parts)


class EfficientNetLite0Features(TorchFidelityFeatures):
    """The 1280 pooled features of EfficientNet-Lite0, whose weights come with raysense's requirements.

    Args:
        size: Side to which images are resized, in pixels, a multiple of 32; part of the name.
        device: Where the network runs.
        batch: Images at a time.

    Raises:
        RaysenseError: If the size is no positive multiple of 32.
    """

    def __init__(
        self, size: int = EFFICIENTNET_SIZE, device: str | torch.device = "cpu", batch: int = BATCH
    ) -> None:
        if size < 32 or size % 32:
            raise RaysenseError(
                f"extractor efficientnet-lite0: `size` must be a multiple of 32, but got {size}."
            )
        name = f"{efficientnet.FAMILY}-{size}"
        if name not in FEATURE_EXTRACTORS_REGISTRY:
            torch_fidelity.register_feature_extractor(name, efficientnet.EfficientNetLite0)
        super().__init__(name, device, batch)

    @staticmethod
    def weights_bytes(_: int = EFFICIENTNET_SIZE) -> int:
        """Bytes of the weights, float32, without loading them; the size of images changes nothing."""
        return efficientnet.weights_bytes()


class ClipFeatures:
    """Image and text features of any open_clip model, L2-normalised.

    Args:
        model: ``local-dir:FOLDER``, ``hf-hub:ORGANISATION/NAME``, or a built-in name with a `pretrained` tag.
        pretrained: Which published weights, e.g. ``openai``; only with a built-in name.
        device: Where the network runs.
        batch: Images or prompts at a time.

    Raises:
        RaysenseError: If the model or its weights cannot be had.
    """

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        device: str | torch.device = "cpu",
        batch: int = BATCH,
    ) -> None:
        if pretrained and ":" in model:
            raise RaysenseError(
                f"extractor {model!r} names its weights itself; drop `pretrained` {pretrained!r}."
            )
        self.name, self.device, self.batch = clip_name(model, pretrained), torch.device(device), batch
        try:
            network = open_clip.create_model(model, pretrained=pretrained, require_pretrained=True)
            self.tokenizer = open_clip.get_tokenizer(model)
        except (OSError, RuntimeError, ValueError) as error:
            raise RaysenseError(f"extractor {self.name!r} cannot be loaded ({error}); {OFFLINE}.") from error
        self.network = network.to(self.device).eval().requires_grad_(False)
        known = PreprocessCfg.__dataclass_fields__
        config = PreprocessCfg(
            **{key: value for key, value in network.visual.preprocess_cfg.items() if key in known}
        )
        # All steps but the last work on 8 bits, as they do on a PNG; the last one normalises.
        *self._resize, self._normalize = image_transform_v2(config, is_train=False).transforms

    @staticmethod
    def weights_bytes(model: str, _: str | None = None) -> int | None:
        """Bytes of a model's weights, float32, without loading them; None where its configuration is not here."""
        logging.disable(logging.WARNING)  # that it has no weights
        try:
            with torch.device("meta"):
                network: nn.Module = open_clip.create_model(model, load_weights=False, device="meta")
            return 4 * sum(p.numel() for p in network.parameters())
        except Exception:  # its configuration is on the hub, or it cannot be built without weights
            return None
        finally:
            logging.disable(logging.NOTSET)

    @property
    def context(self) -> int:
        """How many tokens of a prompt the text tower reads, start and end included."""
        return int(self.tokenizer.context_length)

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) float images in [0, 1] to (n, d) float32 unit vectors on the CPU."""
        parts = [self._images(as_bytes(part).to(self.device)) for part in torch.split(images, self.batch)]
        return torch.cat(parts)

    def _images(self, pixels: Tensor) -> Tensor:
        for step in self._resize:
            pixels = step(pixels)
        features = self.network.encode_image(self._normalize(pixels.float() / 255))
        return normalize(features.float(), dim=-1).cpu()

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to (n, d) float32 unit vectors on the CPU; equal prompts are encoded once.

        A prompt beyond the context is cut by the tokenizer, which keeps the end token that CLIP reads from;
        `truncated` says which prompts that concerns.
        """
        unique = list(dict.fromkeys(prompts))
        if not unique:
            raise RaysenseError("`prompts` is empty; give at least one.")
        tokens = self.tokenizer(unique).to(self.device)
        parts = [
            normalize(self.network.encode_text(part).float(), dim=-1).cpu()
            for part in torch.split(tokens, self.batch)
        ]
        place = {prompt: index for index, prompt in enumerate(unique)}
        return torch.cat(parts)[[place[prompt] for prompt in prompts]]

    def truncated(self, prompts: Sequence[str]) -> list[str]:
        """The prompts, each once, of which the text tower reads only the beginning."""
        unique = list(dict.fromkeys(prompts))
        if not unique:
            return []
        # With room for one token more, a prompt that was cut changes where the cut put the end token.
        # (The mode "clips" closes every row with a class token, which moves along and tells nothing.)
        width = self.context - (getattr(self.tokenizer, "tokenizer_mode", "") == "clips")
        cut = self.tokenizer(unique)[:, :width]
        roomier = self.tokenizer(unique, context_length=self.context + 1)[:, :width]
        return [
            prompt for prompt, differs in zip(unique, (cut != roomier).any(dim=1), strict=True) if differs
        ]


def clip_name(model: str, pretrained: str | None = None) -> str:
    """A CLIP model's name in rows: ``open_clip:ViT-B-32@openai``, ``open_clip:local-dir:scorer#1f0c9a2b``.

    A folder's path means nothing elsewhere, so it is named by its last part and its files' content.
    """
    if model.startswith(LOCAL):
        folder = Path(model.removeprefix(LOCAL))
        if not folder.is_dir():
            raise RaysenseError(
                f"extractor {model!r}: there is no such folder; give one with open_clip_config.json."
            )
        return f"{OPEN_CLIP}{LOCAL}{folder.resolve().name}#{content(folder)}"
    return f"{OPEN_CLIP}{model}@{pretrained}" if pretrained else f"{OPEN_CLIP}{model}"


def content(folder: Path) -> str:
    """8 hexadecimal digits that change with any file of a folder, its sub-folders left out."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        with file.open("rb") as stream:
            digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:8]


def extractor(name: str, device: str | torch.device = "cpu", batch: int = BATCH) -> FeatureExtractor:
    """Load a feature extractor by name.

    Args:
        name: ``efficientnet-lite0`` (bundled; ``efficientnet-lite0-SIZE`` for another input size), a name of
            torch-fidelity's (``inception-v3-compat``, ``dinov2-vit-b-14``, ``clip-vit-b-32`` …), an open_clip
            model (``open_clip:MODEL`` or ``open_clip:MODEL@PRETRAINED``), or the dotted path of a callable
            that takes `device` and `batch` and returns a `FeatureExtractor`.
        device: Where the network runs.
        batch: Images at a time.

    Returns:
        The extractor, weights loaded.

    Raises:
        RaysenseError: If the name means nothing or weights are missing.
    """
    maker = _maker(name)
    found = maker(device=device, batch=batch)
    if not isinstance(found, FeatureExtractor):
        raise RaysenseError(
            f"extractor {name!r} made a {type(found).__name__} without `name` and `images`; add both."
        )
    return found


def weights_bytes(name: str) -> int | None:
    """Bytes of an extractor's weights, float32, without loading them; None where only loading it tells.

    Args:
        name: See `extractor`.
    """
    maker = _maker(name)
    if not isinstance(maker, partial):
        return None  # of the user's own
    told: Callable[..., int | None] | None = getattr(maker.func, "weights_bytes", None)
    return told(*maker.args) if told else None


def _maker(name: str) -> Callable[..., object]:
    """What makes the extractor of this name, given `device` and `batch`: the one place that tells names apart."""
    if name == efficientnet.FAMILY:
        return partial(EfficientNetLite0Features)
    if name.startswith(f"{efficientnet.FAMILY}-"):
        size = name.removeprefix(f"{efficientnet.FAMILY}-")
        if not size.isdigit():
            raise RaysenseError(
                f"extractor {name!r}: {size!r} is no size in pixels; write efficientnet-lite0-96."
            )
        return partial(EfficientNetLite0Features, int(size))
    if name.startswith(OPEN_CLIP):
        model, _, pretrained = name.removeprefix(OPEN_CLIP).partition("@")
        return partial(ClipFeatures, model, pretrained or None)
    if name in FEATURE_EXTRACTORS_REGISTRY:
        return partial(TorchFidelityFeatures, name)
    if "." in name or ":" in name:
        maker: Callable[..., object] = find(name, "extractor")
        return maker
    raise RaysenseError(
        f"extractor {name!r} is unknown; choose efficientnet-lite0, open_clip:MODEL, a dotted path or one of "
        f"{sorted(FEATURE_EXTRACTORS_REGISTRY)}."
    )
