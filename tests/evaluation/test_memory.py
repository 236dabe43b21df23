from __future__ import annotations

import weakref

import torch
from torch import Tensor

from raysense.evaluation.memory import release_memory


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
