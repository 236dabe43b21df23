from __future__ import annotations

import nbformat
from nbclient import NotebookClient

from tests.conftest import REPORTS


def test_the_notebook_runs_top_to_bottom_and_shows_what_is_committed() -> None:
    committed = nbformat.read(REPORTS / "analysis.ipynb", as_version=4)
    run = nbformat.reads(nbformat.writes(committed), as_version=4)
    NotebookClient(run, timeout=120, resources={"metadata": {"path": str(REPORTS)}}).execute()
    for before, after in zip(committed.cells, run.cells, strict=True):
        if before.cell_type == "code":
            assert _texts(after) == _texts(before), before.source
            assert _texts(after), before.source


def _texts(cell: nbformat.NotebookNode) -> list[str]:
    return [output.get("text") or output["data"]["text/plain"] for output in cell.outputs]
