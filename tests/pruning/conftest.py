"""A small network with every kind of layer, and what is built from it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from torch import nn
from transformers.pytorch_utils import Conv1D

# A busy machine makes single examples slow; the tests' own time limit stays.
settings.register_profile("no-deadline", deadline=None, max_examples=60)
settings.load_profile("no-deadline")


class Denoiser(nn.Module):
    """Layers of very different sizes, among them one that is too small for levels of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, 16, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {"norm": nn.GroupNorm(4, 16), "conv": nn.Conv2d(16, 16, 3, padding=1, groups=groups)}
            )
            for groups in (1, 2)
        )
        self.mid_block = nn.ModuleDict(
            {"proj": nn.Linear(16, 32), "seq": nn.Conv1d(32, 16, 3, padding=1), "gpt": Conv1D(16, 16)}
        )
        self.volume = nn.Conv3d(1, 4, 3, padding=1)
        self.tiny = nn.Conv2d(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for block in self.blocks:
            x = x + block["conv"](block["norm"](x).relu())
        tokens = self.mid_block["proj"](x.flatten(2).mT)
        tokens = self.mid_block["gpt"](self.mid_block["seq"](tokens.mT).mT.contiguous())
        x = (x + tokens.mT.reshape(x.shape))[:, :4]
        return self.tiny(x + self.volume(x.mean(1)[:, None, None])[:, :, 0])


class Encoder(nn.Module):
    """An embedding with a tied head, and two equal layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x).relu()
        return self.head(self.norm(x))


@pytest.fixture
def components() -> dict[str, object]:
    torch.manual_seed(0)
    return {"unet": Denoiser(), "text_encoder": Encoder(), "tokenizer": object(), "vae": nn.Conv2d(3, 4, 1)}
