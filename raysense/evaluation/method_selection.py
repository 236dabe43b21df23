"""Saliency methods compete: each component is pruned by the method whose masks the probe feels least there.

Once a study, before the search: every method prunes each component alone, by one ratio, at a few
sparsities, and the probe measures each. All methods remove the same numbers of weights from the same layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from raysense.allocation import Allocation, LevelGrid
from raysense.hashing import content_key
from raysense.records import Measure

EXTRACTOR = "denoiser output"
"""What a probe error compares."""

SHARES = (0.3, 0.5, 0.7)
"""Sparsities of a component at which methods are compared: light, middling, near where most components fall."""

METHOD_ERRORS = "contest/"
"""Measures of a calibration, as they are stored: this, a component, a method and a sparsity -> probe error."""

MethodErrors = Mapping[str, Tensor]
"""Component -> float64 (methods, compared allocations, 4): value, low and high of the probe error, and how
many tuples it compares."""


def components_of(grid: LevelGrid) -> list[str]:
    """The components that compete for methods, in the order of their layers."""
    return list(dict.fromkeys(address.split(":")[0] for address in grid.addresses))


def compared_allocations(grid: LevelGrid, component: str) -> list[Allocation]:
    """What every method is measured at: the component alone, each of its layers at the level nearest to one ratio."""
    mine = [address for address in grid.addresses if address.split(":")[0] == component]
    found = [
        Allocation({a: grid.level_for(a, min(share, grid.max_layer_sparsity)) for a in mine})
        for share in SHARES
    ]
    # Layers may have few levels, a pattern's one: then sparsities fall together, or to nothing.
    full = Allocation({address: grid.top(address) for address in mine})
    return list(dict.fromkeys(allocation for allocation in found if allocation)) or [full]


def compare_methods(
    methods: Sequence[str], grid: LevelGrid, prune_by: Callable[[str], Callable[[Allocation], Measure]]
) -> dict[str, Tensor]:
    """Measure every method on every component, method by method.

    Args:
        methods: Their names.
        grid: The layers' levels.
        prune_by: Method -> what measures the probe error of allocations under its masks, until it is asked for
            the next method's.
    """
    rows: dict[str, list[list[list[float]]]] = {component: [] for component in components_of(grid)}
    for method in methods:
        probe = prune_by(method)
        for component, of_methods in rows.items():
            measures = [probe(allocation) for allocation in compared_allocations(grid, component)]
            of_methods.append([[m.value, m.ci_low, m.ci_high, float(m.n)] for m in measures])
    return {component: torch.tensor(found, dtype=torch.float64) for component, found in rows.items()}


def selection_key(signature: str) -> str:
    """Under which name the cache keeps how the methods of a study fared."""
    return content_key("contest", signature)


def best_methods(methods: Sequence[str], errors_of: MethodErrors) -> dict[str, str]:
    """Component -> the method with the least geometric mean of the probe errors; of equals the first named."""

    def loss(errors: Tensor) -> float:
        value = float(errors[:, 0].clamp_min(1e-300).log().sum())
        return value if value == value else float("inf")  # NaN: the output was not finite

    return {
        component: min(zip(methods, found, strict=True), key=lambda pair: loss(pair[1]))[0]
        for component, found in sorted(errors_of.items())  # a file keeps no order
    }


def as_measures(methods: Sequence[str], grid: LevelGrid, errors_of: MethodErrors) -> dict[str, Measure]:
    """The probe errors as measures of a calibration, see `METHOD_ERRORS`."""
    sizes = dict.fromkeys(errors_of, 0)
    for address in grid.addresses:
        sizes[address.split(":")[0]] += grid.weights(address)
    return {
        f"{METHOD_ERRORS}{component}/{method}/{grid.zeros(allocation) / sizes[component]:.2f}": Measure(
            value, low, high, int(n), EXTRACTOR
        )
        for component, found in errors_of.items()
        for method, errors in zip(methods, found.tolist(), strict=True)
        for allocation, (value, low, high, n) in zip(
            compared_allocations(grid, component), errors, strict=True
        )
    }


def method_in_words(names: Sequence[str], methods: Mapping[str, str]) -> str:
    """What prunes: ``wanda``; where several compete, each component's, or all before that is decided.

    Args:
        names: The study's methods.
        methods: Component -> method; empty while that is not decided.
    """
    if len(names) == 1:
        return names[0]
    if not methods:
        return " or ".join(names)
    return ", ".join(f"{component}: {name}" for component, name in methods.items())
