"""The cache of text embeddings is exact or off."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raysense.pipelines.text_cache import LIMIT, TextCache, room_for, text_encoders


class Encoder(nn.Module):
    """Encodes rows; `mixes` lets each row know of the others, as no text encoder should but some calls do."""

    def __init__(self, mixes: bool, turned: bool = False) -> None:
        super().__init__()
        self.mixes, self.turned, self.calls = mixes, turned, 0

    def forward(self, input_ids: Tensor, places: Tensor | None = None) -> dict[str, Tensor]:
        self.calls += 1
        found = input_ids.float() * 2
        if self.mixes:
            found = found - found.mean()
        if places is not None:
            found = found + places[0]
        return {"states": found.T if self.turned else found}


class Denoiser(nn.Module):
    """Takes token ids and a timestep, as OmniGen's does."""

    def forward(self, input_ids: Tensor, timestep: Tensor) -> Tensor:
        return input_ids * timestep


def cached(encoder: nn.Module) -> tuple[Any, TextCache]:
    pipeline: Any = SimpleNamespace(components={"text_encoder": encoder})
    return encoder, TextCache(pipeline, lambda name: 0)


@torch.no_grad()
def test_rows_are_remembered_where_they_are_what_the_whole_call_gives() -> None:
    encoder, cache = cached(Encoder(mixes=False))
    ids = torch.tensor([[1, 2], [3, 4], [1, 2]])
    want = ids.float() * 2
    for _ in range(3):
        assert torch.equal(encoder(ids)["states"], want)
    assert (cache.misses, cache.hits) == (2, 7)
    assert encoder.calls == 3  # two rows and, once, the whole


@torch.no_grad()
def test_what_is_no_row_by_row_function_is_answered_as_it_was_asked() -> None:
    ids = torch.tensor([[1, 2], [3, 4]])
    for encoder, _ in (cached(Encoder(mixes=True)), cached(Encoder(mixes=False, turned=True))):
        plain = Encoder(encoder.mixes, encoder.turned)
        for _ in range(3):
            assert torch.equal(encoder(ids)["states"], plain(ids)["states"])
        assert torch.equal(encoder(ids[:1])["states"], plain(ids[:1])["states"])
    # Three places as there are three prompts: these are not cut by prompts.
    encoder, _ = cached(Encoder(mixes=False))
    ids, places = torch.tensor([[1], [2], [3]]), torch.tensor([[5.0], [6.0], [7.0]])
    for _ in range(2):
        assert torch.equal(encoder(ids, places)["states"], ids.float() * 2 + 5)


def test_a_denoiser_that_takes_token_ids_is_no_text_encoder() -> None:
    pipeline: Any = SimpleNamespace(components={"transformer": Denoiser(), "text_encoder": Encoder(False)})
    assert list(text_encoders(pipeline)) == ["text_encoder"]


def test_a_gpu_keeps_what_a_whole_rung_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert room_for(torch.device("cpu")) == LIMIT
    assert 128 * 16e6 < room_for(torch.device("cuda", 0)) < 0.05 * memory.total_memory
