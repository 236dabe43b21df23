"""Live objects of a study written in Python become files beside the study, once, named by their content."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from raysense.errors import RaysenseError
from raysense.hashing import content_key, files_hash, visible_files
from raysense.store.disk import write_whole
from raysense.study import Study

FOLDER = "given"


def written(study: Study, out: str) -> Study:
    """The study with paths in place of live objects.

    A pipeline is saved as it is, with ``save_pretrained``; like any other it is loaded in the study's `dtype`.

    Args:
        study: The study.
        out: Its folder; what is written goes into ``given/`` there.

    Raises:
        RaysenseError: There is something to write, and `out` is no folder of this machine.
    """
    live, changes = study.live, dict[str, Any]()
    if live.pipeline is None and live.prompts is None:
        return study
    if "://" in out:
        raise RaysenseError(
            f"`out` is {out!r}: a live pipeline or a list of prompts is written beside the study, which needs a "
            "folder; save them where every worker can read them, and give their paths"
        )
    place = Path(out).resolve() / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    if live.pipeline is not None:
        changes["pipeline"] = str(_saved_pipeline(live.pipeline, place))
    if live.prompts is not None:
        changes["prompts"] = str(_saved_prompts(live.prompts, place))
    return study.model_copy(update=changes)


def _saved_pipeline(pipeline: Any, place: Path) -> Path:
    """Saved each time and named by all that was written: weights, but schedulers' and other settings too."""
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=place) as scratch:
        saved = Path(scratch) / "pipeline"
        pipeline.save_pretrained(saved, safe_serialization=True)
        folder = place / f"pipeline-{files_hash(saved, visible_files(saved))}"
        if not folder.exists():
            saved.rename(folder)
    return folder


def _saved_prompts(prompts: tuple[str, ...], place: Path) -> Path:
    file = place / f"prompts-{content_key(prompts)}.jsonl"
    rows = [{"prompt": text} for text in prompts]
    write_whole(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return file
