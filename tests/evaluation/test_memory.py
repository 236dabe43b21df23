from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from raysense.evaluation.memory import decode_in_slices, release_memory
from raysense.pipelines.load import load_pipeline
from raysense.pipelines.sample import call_pipeline, metered
from raysense.prompts.sets import Prompt
from raysense.study import Sampling


def runs_out(kept: list[weakref.ref[Tensor]]) -> None:
    activations = torch.zeros(8)
    kept.append(weakref.ref(activations))
    raise torch.OutOfMemoryError("provoked")


def test_what_a_broken_off_call_held_is_free_while_its_error_is_handled() -> None:
    kept: list[weakref.ref[Tensor]] = []
    try:
        runs_out(kept)
    except torch.OutOfMemoryError:
        assert kept[0]() is not None
        release_memory()
        assert kept[0]() is None


def narrow(pipeline: Any, most: int) -> list[int]:
    """A decoder whose memory ends at so many latents; the sizes that it was called with."""
    sizes: list[int] = []
    decode = pipeline.vae.decode

    def limited(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(latents))
        if len(latents) > most:
            raise torch.OutOfMemoryError(f"fake memory holds {most} latents")
        return decode(latents, *args, **kwargs)

    pipeline.vae.decode = limited
    return sizes


def test_a_decoder_out_of_memory_goes_on_in_slices_and_nothing_is_sampled_anew() -> None:
    pipeline, sampling = load_pipeline("bundled"), Sampling(steps=2, batch=6)
    prompts = [Prompt(str(number), "a cat") for number in range(6)]
    expected = call_pipeline(pipeline, prompts, [0] * 6, sampling)
    told: list[str] = []
    sizes = narrow(pipeline, 2)
    decode_in_slices(pipeline, told.append)
    with metered(pipeline) as meter:
        images = call_pipeline(pipeline, prompts, [0] * 6, sampling)
    assert meter.nfe == 6 * 2 * 2
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1]
    assert told == [
        "out of memory: vae decodes 6 -> 3 at a time",
        "out of memory: vae decodes 3 -> 1 at a time",
    ]
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
    with torch.no_grad():
        latents = torch.randn(3, 4, 8, 8)
        plain, whole = pipeline.vae.decode(latents).sample, pipeline.vae.decode(latents, return_dict=False)[0]
    assert plain.shape == whole.shape == (3, 3, 32, 32)
    assert torch.equal(plain, whole)


def test_a_single_latent_that_does_not_fit_is_an_error() -> None:
    pipeline = load_pipeline("bundled")
    narrow(pipeline, 0)
    decode_in_slices(pipeline, print)
    with pytest.raises(torch.OutOfMemoryError):
        pipeline.vae.decode(torch.randn(4, 4, 8, 8))
