"""raysense: the sparsest layer-wise pruning of a text-to-image pipeline that stays inside a quality budget.

::

    import raysense as rs

    run = rs.search(rs.Study.load("study.yaml"), out="runs/first")
    run.winner.sparsity, run.candidates()
    run.export("pruned")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.3.0"

_HOMES = {
    "Allocation": "raysense.allocation",
    "RaysenseError": "raysense.errors",
    "Run": "raysense.search.api",
    "Study": "raysense.study",
    "allocation_rule": "raysense.registry",
    "doctor": "raysense.search.api",
    "evaluate": "raysense.search.api",
    "extractor": "raysense.registry",
    "judge": "raysense.search.judge",
    "metric": "raysense.registry",
    "saliency": "raysense.registry",
    "search": "raysense.search.api",
    "strategy": "raysense.registry",
    "sweep": "raysense.search.api",
}
"""Public name -> the module that defines it, which is imported when the name is first used."""

__all__ = [
    "Allocation",
    "RaysenseError",
    "Run",
    "Study",
    "__version__",
    "allocation_rule",
    "doctor",
    "evaluate",
    "extractor",
    "judge",
    "metric",
    "saliency",
    "search",
    "strategy",
    "sweep",
]

if TYPE_CHECKING:
    from raysense.allocation import Allocation
    from raysense.errors import RaysenseError
    from raysense.registry import allocation_rule, extractor, metric, saliency, strategy
    from raysense.search.api import Run, doctor, evaluate, search, sweep
    from raysense.search.judge import judge
    from raysense.study import Study


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_HOMES[name]), name)
    globals().setdefault(name, found)  # `search` is by now the package, which can be called
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
