"""Objects of the user's own, named by dotted path: a custom metric, a custom feature extractor."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from raysense.errors import RaysenseError


def resolve(path: str, field: str) -> Callable[..., Any]:
    """Import the callable that a dotted path names.

    Args:
        path: ``package.module.name`` or ``package.module:name``.
        field: Which field of the study holds the path, for the error message.

    Returns:
        The function or class.

    Raises:
        RaysenseError: If there is no such module or name, or it cannot be called.
    """
    module_name, _, name = path.replace(":", ".").rpartition(".")
    try:
        found: Callable[..., Any] | None = (
            getattr(importlib.import_module(module_name), name) if module_name else None
        )
    except (ImportError, AttributeError) as error:
        raise RaysenseError(
            f"{field}: {path!r} cannot be imported ({error}); check the name and PYTHONPATH."
        ) from error
    if not callable(found):
        raise RaysenseError(
            f"{field}: {path!r} names nothing that can be called; write `package.module.function`."
        )
    return found
