"""What all checks share."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from raysense.errors import RaysenseError
from raysense.registry import Declaration, Kind, declaration_of


def declared_as(plugin: object, kind: Kind) -> Declaration:
    """What the decorator of a plug-in says.

    Raises:
        AssertionError: It has none, or another kind's.
    """
    said = declaration_of(plugin)
    name = getattr(plugin, "__name__", repr(plugin))
    assert said is not None, f"{name}: decorate it with `@raysense.{kind}(…)`"
    assert said.kind == kind, f"{name}: is decorated as {said.kind}, not as {kind}"
    return said


@contextmanager
def asserted() -> Iterator[None]:
    """What raysense would refuse is a failed check."""
    try:
        yield
    except RaysenseError as error:
        raise AssertionError(str(error)) from error


def other_random_numbers(seed: int) -> None:
    """Set the process's random numbers: a plug-in that draws from them is not deterministic."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def equal(one: Any, other: Any) -> bool:
    """Whether two answers are equal to the bit."""
    return bool(torch.equal(torch.as_tensor(one), torch.as_tensor(other)))


def near(one: Any, other: Any, tolerance: float = 1e-4) -> bool:
    """Whether two answers are equal but for the last digits of arithmetic in float32."""
    a, b = torch.as_tensor(one, dtype=torch.float64), torch.as_tensor(other, dtype=torch.float64)
    return bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance))
