from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from raysense.records import Evaluation, Measure


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests kill processes, not the machine: what the kernel has is safe."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def make() -> Callable[..., Evaluation]:
    def one(number: int, **changes: object) -> Evaluation:
        fields: dict[str, object] = {
            "key": f"{number:016x}",
            "trial": f"sensitivity/{number // 4}",
            "stage": "sensitivity",
            "allocation": f"{number % 50:016x}",
            "rung": "probe",
            "replicate": 0,
            "measures": {
                "clip_drop": Measure(number / 7, number / 7 - 0.1, number / 7 + 0.1, 16, "open_clip"),
                "kid": Measure(1e-9 * number, 0.0, float("inf"), 16, "efficientnet-lite0"),
            },
            "zeros": number,
            "images": 16,
            "nfe": 32,
            "seconds": 0.1,
            "ray_trial": "abc",
            "evaluator": "host-1",
            "samples": [{"prompt_id": 3, "prompt": "a cät", "seed": 7, "clip": 0.3, "lpips": 0.1}],
        }
        return Evaluation(**{**fields, **changes})  # type: ignore[arg-type]

    return one
