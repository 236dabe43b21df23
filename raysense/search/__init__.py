"""The jobs. ``python -m raysense.search`` runs the main one; ``raysense.search(…)`` does the same from Python."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Search(ModuleType):
    """This package, which can also be called: `raysense.search` names both, however it was reached first."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        from raysense.search.api import search  # loads torch and Ray

        return search(*arguments, **named)


sys.modules[__name__].__class__ = _Search
