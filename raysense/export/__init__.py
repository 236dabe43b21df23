"""An allocation as a pruned pipeline on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raysense.export.pack import expand, load_compressed

if TYPE_CHECKING:
    from raysense.export.write import export

__all__ = ["expand", "export", "load_compressed"]


def __getattr__(name: str) -> Any:
    """`export` when it is asked for: who only loads an export needs neither a store nor DuckDB."""
    if name == "export":
        from raysense.export.write import export

        return export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
