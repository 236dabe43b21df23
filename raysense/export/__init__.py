"""An allocation as a pruned pipeline on disk."""

from raysense.export.write import expand, export, load_compressed

__all__ = ["expand", "export", "load_compressed"]
