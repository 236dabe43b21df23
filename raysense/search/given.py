"""Live objects of a study written in Python become files beside the study, once, named by their content."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from raysense.errors import RaysenseError
from raysense.evaluation.scoring import weights_hash
from raysense.hashing import content_key
from raysense.pipelines.load import modules_of
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
    hashes = {name: weights_hash(module) for name, module in modules_of(pipeline).items()}
    config = {name: str(value) for name, value in pipeline.config.items() if name[0] != "_"}
    folder = place / f"pipeline-{content_key(sorted(hashes.items()), sorted(config.items()))}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            pipeline.save_pretrained(scratch, safe_serialization=True)
            shutil.copytree(scratch, folder.with_suffix(".partial"), dirs_exist_ok=True)
        folder.with_suffix(".partial").rename(folder)
    return folder


def _saved_prompts(prompts: tuple[str, ...], place: Path) -> Path:
    file = place / f"prompts-{content_key(prompts)}.jsonl"
    rows = [{"prompt": text} for text in prompts]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file
