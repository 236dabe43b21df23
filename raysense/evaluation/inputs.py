"""What a study's rows depend on beside its definition, by content: weights, texts, images, code, software, device.

It is stored where a study begins, is part of every key, and is compared wherever one is measured, resumed or exported.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import raysense
from raysense import plugins
from raysense.errors import RaysenseError
from raysense.hashing import DIGITS, content_key, file_hash, files_hash, visible_files
from raysense.names import BUNDLED_PIPELINES
from raysense.prompts.sets import Prompt, PromptSets, load_prompts
from raysense.store.checksummed_json import seal
from raysense.store.differences import contents_differ
from raysense.store.disk import Disk, read_sealed
from raysense.study import Reference, Study, bundled_pipeline

if TYPE_CHECKING:
    from raysense.evaluation.scoring import ImageScorer

_CODE = "plugins.json"
_PROMPTS = "prompts/{}.json"
COMMIT = re.compile(r"[0-9a-f]{40}")

TAKEN_AWAY = ("pipeline", "plugins")
"""What an export or a picture shows of a study; the rest only decides how it was judged."""


def inputs_of(study: Study, prompts: PromptSets, scorer: ImageScorer, device: str) -> dict[str, Any]:
    """Everything that the study's rows depend on beside its definition, each by its content.

    Args:
        study: The study.
        prompts: Its prompts.
        scorer: Its networks, loaded.
        device: ``cpu`` or ``cuda``.

    Raises:
        RaysenseError: Something cannot be read.
    """
    return {
        **taken_away(study),
        "prompts": prompts_content(prompts),
        "judges": scorer.contents,
        "reference": reference_content(study.metrics.reference),
        "versions": {name: text.partition("+")[0] for name, text in versions().items()},
        "device": device,
    }


def taken_away(study: Study) -> dict[str, Any]:
    """The part that an export depends on: what is pruned, and how weights are chosen."""
    return {
        "pipeline": pipeline_content(study.pipeline, study.revision) | _beside(study),
        "plugins": {name: plugins.sources(name).hash for name in plugins.named_by(study)},
    }


def device_of(study: Study) -> str:
    """What kind of device a study's evaluators run on: ``cpu`` or ``cuda``."""
    return "cuda" if study.cluster.gpus_per_evaluator > 0 else "cpu"


def identity_of_choice(study: Study) -> str:
    """A hash of what the choice of weights follows from beside the study itself: files, plug-ins, software, device."""
    return content_key(taken_away(study), versions(), device_of(study))


def _beside(study: Study) -> dict[str, str]:
    """What else weights follow from: adapters, and the configuration that a single file is read by."""
    found = {f"lora {number}": file_hash(Path(lora.path)) for number, lora in enumerate(study.lora)}
    if Path(study.pipeline).is_file():
        found |= _configuration(study)
    return found


def _configuration(study: Study) -> dict[str, str]:
    """What a single file is read by: configuration and tokenizers, and weights of what the file holds nothing of."""
    if study.config is not None and Path(study.config).is_dir():
        return {f"config {name}": found for name, found in pipeline_content(study.config, None).items()}
    from raysense.pipelines.origin import Origin
    from raysense.pipelines.single_file import configuration_of

    return {"config": Path(configuration_of(Origin.of(study))).name}  # of the hub: its commit


def prompts_content(prompts: PromptSets) -> str:
    """A hash of ids and texts, in order."""
    return content_key([[(p.id, p.text) for p in pool] for pool in (prompts.search, prompts.validation)])


def keep_prompts(disk: Disk, prompts: PromptSets) -> None:
    """Put the prompts into the study's store, where workers and later commands find them."""
    content = prompts_content(prompts)
    if stored_prompts(disk, content) is None:
        pools = {"search": prompts.search, "validation": prompts.validation}
        plain = {split: [[p.id, p.text] for p in pool] for split, pool in pools.items()}
        disk.write(_PROMPTS.format(content), json.dumps(plain, indent=0).encode())


def stored_prompts(disk: Disk, content: str) -> PromptSets | None:
    """The prompts that `keep_prompts` was given, or None if these are not there, whole."""
    raw = disk.read(_PROMPTS.format(content))
    if raw is None:
        return None
    try:
        plain = json.loads(raw)
        search, validation = (
            tuple(Prompt(id, text) for id, text in plain[split]) for split in ("search", "validation")
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    found = PromptSets(search, validation)
    return found if prompts_content(found) == content else None


def prompts_of(record: Mapping[str, Any], study: Study, disk: Disk) -> PromptSets:
    """The prompts that a stored study was measured on, wherever its file has gone."""
    kept = record["inputs"].get("prompts", "")
    return stored_prompts(disk, kept) or load_prompts(study.prompts)


def keep_code(disk: Disk, study: Study) -> None:
    """Put the plug-ins' code into the study's store, if it has any."""
    if names := plugins.named_by(study):
        disk.write(_CODE, seal(plugins.packed(names), indent=1))


def use_code(disk: Disk) -> None:
    """Let the plug-ins of a stored study be imported."""
    record = read_sealed(disk, _CODE, "Delete it and run the study again with --resume; it is written anew.")
    if record is not None:
        plugins.unpack(record)


def pipeline_content(source: str, revision: str | None) -> dict[str, str]:
    """Component -> hash of its files; for a pipeline of the hub, its commit.

    Raises:
        RaysenseError: A file cannot be read, or the hub's commit is not known here.
    """
    place = bundled_pipeline(source) if source in BUNDLED_PIPELINES else Path(source)
    if place.is_file():
        return {place.name: file_hash(place)}
    if not place.is_dir():
        commit = hub_commit(source, revision)
        if not commit:
            raise RaysenseError(
                f"`pipeline`: the commit of `{source}` is not in the hub's cache on this machine, so its rows could "
                "not be told from another one's; run `raysense prepare`, or give `revision` a commit of 40 digits"
            )
        return {"commit": commit}
    parts: dict[str, list[Path]] = {}
    for file in visible_files(place):
        name = file.relative_to(place).parts
        if len(name) > 1 or file.suffix in (".json", ".py"):
            parts.setdefault(name[0], []).append(file)
    return {name: files_hash(place, found) for name, found in sorted(parts.items())}


def hub_commit(source: str, revision: str | None) -> str:
    """The commit of a hub pipeline in the local cache, or an empty string for a folder or the bundle."""
    if source in BUNDLED_PIPELINES or Path(source).exists():
        return ""
    from huggingface_hub import try_to_load_from_cache

    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    file = try_to_load_from_cache(source, "model_index.json", revision=revision)
    commit = Path(file).parent.name if isinstance(file, str) else ""
    return commit if COMMIT.fullmatch(commit) else ""


def reference_content(reference: Reference) -> str | None:
    """A hash of the reference's images, those that are used, in order; of a file of statistics."""
    if reference.path is None:
        return None
    path = Path(reference.path)
    if reference.is_saved:
        return file_hash(path)
    from raysense.metrics.references import pictures

    return content_key(
        [
            hashlib.sha256(picture.image).hexdigest()[:DIGITS]
            if isinstance(picture.image, bytes)
            else file_hash(picture.image)
            for picture in pictures(path, reference.limit)
        ]
    )


def versions() -> dict[str, str]:
    """Package -> version of what decides a row's numbers."""
    import diffusers
    import open_clip
    import torch
    import torch_fidelity
    import transformers

    found = {
        module.__name__: module.__version__
        for module in (torch, diffusers, transformers, open_clip, torch_fidelity)
    }
    return {"raysense": raysense.__version__, **{name: str(version) for name, version in found.items()}}


def device_in_words(device: str) -> str:
    """``cpu``, or ``cuda: `` and the name of the card."""
    import torch

    return f"{device}: {torch.cuda.get_device_name()}" if device == "cuda" else device


def ranked_by(inputs: Mapping[str, Any], study: Study) -> dict[str, Any]:
    """Contents without the plug-ins that only judge: no weight depends on them."""
    own = inputs.get("plugins", {})
    return {**inputs, "plugins": {name: own[name] for name in own if name in study.prune.methods}}


def refuse_other(record: Mapping[str, Any], study: Study, uri: str) -> None:
    """Refuse to show or export a study from other weights, or by another saliency's code, than it measured.

    Raises:
        RaysenseError: See above; names what changed.
    """
    if changed := contents_differ(
        ranked_by(record["inputs"], study), ranked_by(taken_away(study), study), TAKEN_AWAY
    ):
        what = "; ".join(map(str.strip, changed))
        raise RaysenseError(
            f"`{uri}`: what the study measured has changed since: {what}. Its quality is that of what was there "
            "before: put that back, or run the study anew in another folder"
        )
