"""`raysense prepare`: fetch and check everything a study needs, once, so that workers start warm and offline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from raysense.evaluation.cache import TensorCache
from raysense.evaluation.identity import external_key, inventory_and_grid
from raysense.evaluation.inputs import hub_commit, inputs_of
from raysense.evaluation.scoring import ImageScorer
from raysense.metrics import gaussians, photographs
from raysense.metrics.spec import FEATURES
from raysense.pipelines.load import load_for, modules_of
from raysense.pipelines.text_cache import cut_off
from raysense.prompts.sets import PromptSets, load_prompts
from raysense.store.disk import Disk
from raysense.study import Study
from raysense.study.complete import complete


@dataclass(frozen=True)
class Found:
    """One thing that a study needs and that is there.

    Attributes:
        what: ``pipeline``, ``prompts``, ``clip``, ``features``, a metric with weights of its own, ``custom``,
            ``photographs`` or ``reference``.
        text: What was found, for a person.
        advice: What the study's author should change, or an empty string.
    """

    what: str
    text: str
    advice: str = ""


def prepare(study: Study, out: str) -> Iterator[Found]:
    """Fetch and check what a study needs, thing by thing.

    Hub downloads go to the hub's own cache, with the hub's own token (``HF_TOKEN`` or a login); features of the
    reference's images go to the study's cache, where every worker finds them.

    Args:
        study: The study.
        out: Its store.

    Yields:
        What was found, as soon as it was.

    Raises:
        RaysenseError: Something cannot be had.
    """
    study = complete(study)
    prompts = load_prompts(study.prompts)
    yield Found("prompts", f"{len(prompts.search):,} for the search, {len(prompts.validation):,} held out")
    if study.metrics.reference.path == photographs.NAME:
        yield from _photographs(study.metrics.reference.limit)

    pipeline = load_for(study)
    inventory, _ = inventory_and_grid(study, pipeline.components)
    commit = hub_commit(study.pipeline, study.revision)
    where = f" at commit {commit}" if commit else ""
    parameters = sum(p.numel() for module in modules_of(pipeline).values() for p in module.parameters())
    advice = ""
    if commit and study.revision != commit:
        advice = f"pin it: `revision: {commit}`, or a later push to the hub changes what the study measures"
    text = f"{study.pipeline}{where}: {parameters:,} parameters, {len(inventory.layers):,} layers selected"
    yield Found("pipeline", text, advice)
    size = side_of(pipeline, study)
    texts = [prompt.text for prompt in (*prompts.search, *prompts.validation)]
    for name, count in cut_off(pipeline, texts).items():
        advice = f"{count} prompts are longer than `{name}` reads; only their beginning counts"
        yield Found("prompts", f"{count} of {len(texts):,} are cut off by the pipeline's `{name}`", advice)
    del pipeline

    # Where there is no GPU, an evaluator that has one makes the reference's features anew.
    on_gpu = study.cluster.gpus_per_evaluator > 0 and torch.cuda.is_available()
    scorer = ImageScorer(study, "cuda" if on_gpu else "cpu")
    cut = scorer.truncated(texts)
    advice = f"{len(cut)} prompts are longer than it reads; only their beginning counts" if cut else ""
    clip, features = scorer.identity
    yield Found("clip", clip, advice)
    yield Found("features", features)
    for metric, weights in scorer.downloads.items():
        yield Found(metric, weights)
    for name, own in study.metrics.own.items():
        yield Found("custom", f"{name}: {own.path}")
    yield _reference(study, prompts, scorer, TensorCache(Disk(out)), size)


def _photographs(limit: int | None) -> Iterator[Found]:
    wanted = photographs.count(limit)
    for done in photographs.fetch(limit):
        yield Found("photographs", f"{done:,} of {wanted:,} of COCO in {photographs.folder()}")


def _reference(
    study: Study, prompts: PromptSets, scorer: ImageScorer, cache: TensorCache, size: int | None
) -> Found:
    external = scorer.external
    if external.path is None:
        return Found("reference", "dense images of other seeds; sampled by the study's first evaluation")
    if external.is_saved:
        gaussian = scorer.saved_reference()
        images = f"{gaussian.n:,} images" if gaussian.n else "an unknown number of images"
        return Found("reference", f"{external.path}: mean and covariance of {images}")
    if size is None:
        return Found(
            "reference",
            f"{external.path}: read by the study's first evaluation, which knows the images' size",
        )
    key = external_key(inputs_of(study, prompts, scorer, scorer.device), scorer, size)
    stored = cache.get(key)
    if stored is None:
        stored = scorer.external_features(size)
        cache.put(key, stored)
    n = gaussians.statistics(stored[FEATURES]).n
    return Found("reference", f"{external.path}: features of {n:,} images, cached as {key}")


def side_of(pipeline: object, study: Study) -> int | None:
    """The side of the images that will be sampled, in pixels, if the pipeline tells before sampling."""
    if study.sampling.width is not None:
        return study.sampling.width
    sample_size = getattr(pipeline, "default_sample_size", None)
    if sample_size is None:
        denoiser = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
        sample_size = getattr(getattr(denoiser, "config", None), "sample_size", None)
    factor = getattr(pipeline, "vae_scale_factor", None)
    return int(sample_size * factor) if isinstance(sample_size, int) and isinstance(factor, int) else None
