"""Memory of the device that an evaluator works on."""

from __future__ import annotations

import sys
import traceback

import torch


def release_memory() -> None:
    """Give back what the call that just ran out of memory still holds; to be called while its error is handled.

    The error's traceback keeps every frame, and with it every tensor of the broken-off call, until it is handled.
    """
    error = sys.exception()
    if error is not None:
        traceback.clear_frames(error.__traceback__)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
