"""A commented study for a given pipeline, from its configuration alone: `raysense init`."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

from raysense.names import BUNDLED_PIPELINES
from raysense.pipelines.origin import Origin
from raysense.pipelines.single_file import configuration_folder
from raysense.search.doctor import components_to_prune
from raysense.study import Sampling, Study

TEMPLATE = """\
# Every key: `raysense schema --markdown`. Check: `raysense validate FILE`. Price: `raysense plan FILE`.
name: {name}
pipeline: {pipeline}
{revision}dtype: {dtype}
prompts: {prompts}                  # a file of captions: .csv, .jsonl, .txt, .parquet; or coco-train2017, bundled
prune:
  components: [{components}]        # what may be pruned; `raysense layers --pipeline …` lists the layers
  max_layer_sparsity: 0.95          # largest sparsity of any one layer
sampling:
  steps: {steps}
  guidance: {guidance}
  batch: {batch}
{zeros}{metrics}constraints:                        # all must hold, each with its whole 95 % interval
  clip_score: {{max_drop: {drop}}}      # dense minus pruned, on the same prompts and noise
rungs:
  preview: {{prompts: {preview}}}
  score: {{prompts: {score}}}           # the images that the search decides by
  validation: {{prompts: {validation}}}      # held out: only what passes here can win
cluster:
  gpus_per_evaluator: {gpus}            # 0 for CPUs
# budget: {{max_hours: 24}}             # hard; or max_nfe, or max_price with price_per_hour
"""

FEWER_ZEROS = "  max_sequence_length: 1            # no T5 here: of its zero embeddings one is enough\n"


def study_for(study: Study) -> str:
    """A study file for a study's pipeline, with what the pipeline's own call does by default.

    Args:
        study: Which pipeline; nothing else of it matters.

    Raises:
        RaysenseError: There is no such pipeline, or it is none that raysense measures.
    """
    origin = Origin.of(study)
    pipeline = study.pipeline
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", pipeline.rstrip("/").rpartition("/")[2]).strip("-._") or "study"
    index = DiffusionPipeline.load_config(configuration_folder(origin), revision=origin.revision)
    common = {
        "name": name,
        "pipeline": json.dumps(pipeline),
        "revision": f"revision: {study.revision}\n" if study.revision else "",
        "components": ", ".join(components_to_prune(origin)),
        "zeros": FEWER_ZEROS if pipeline in BUNDLED_PIPELINES and _embeds_zeros(index) else "",
    }
    if pipeline in BUNDLED_PIPELINES:
        own = Sampling()
        return TEMPLATE.format(
            **common, dtype="float32", prompts="bundled", steps=own.steps, guidance=own.guidance, batch=own.batch,
            metrics="", drop=0.01, preview=24, score=80, validation=160, gpus=0,
        )  # fmt: skip
    call = _defaults(index)
    return TEMPLATE.format(
        **common, dtype="bfloat16", prompts="coco-train2017", steps=call.get("num_inference_steps", 28),
        guidance=call.get("guidance_scale", 1.0), batch=8,
        metrics="metrics:\n  clip: {model: ViT-B-32, pretrained: openai}\n", drop=0.003,
        preview=64, score=512, validation=2048, gpus=1,
    )  # fmt: skip


def _embeds_zeros(index: Mapping[str, Any]) -> bool:
    """Whether a Stable Diffusion 3 stands without its T5, whose 256 embeddings are zeros then."""
    return index.get("text_encoder_3", [""])[0] is None


def _defaults(index: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of a pipeline's own call; empty for a class that diffusers does not have."""
    kind = getattr(diffusers, str(index.get("_class_name")), None)
    if kind is None:
        return {}
    known = inspect.signature(kind.__call__).parameters
    return {name: one.default for name, one in known.items() if isinstance(one.default, int | float)}
