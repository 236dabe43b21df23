"""What an evaluation costs beyond sampling its images and extracting their features.

    python -m benchmarks.engine            # 7 pairs at the quickstart study's score rung, 96 images
    python -m benchmarks.engine --quick    # 3 pairs, 16 images, 4 steps

Two pipelines: the bundled one, and one in the shape of Stable Diffusion 2 (four levels of down- and up-blocks, a
text encoder of 12 layers) with reduced width and random weights. In each pair, in turn: `Evaluator.evaluate` on a
new allocation, and the bare work: a separately loaded pipeline that samples as many images in the same batches,
and the same two networks that extract their features. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from raysense.allocation import Allocation
from raysense.evaluation.evaluator import Evaluator
from raysense.evaluation.scoring import ImageScorer
from raysense.pipelines.load import load_pipeline
from raysense.pipelines.sample import call_pipeline
from raysense.pruning.allocation_rules import uniform
from raysense.records import EvaluationRequest
from raysense.study import Study, load

BAR = 1.05
RATES = (0.1, 0.2, 0.15, 0.25, 0.05, 0.3, 0.12, 0.22, 0.08, 0.18)


def sd2_shaped(folder: Path) -> str:
    """A pipeline with the blocks of Stable Diffusion 2, narrower, at 16×16 latents; random weights."""
    pipeline = load_pipeline("bundled")
    torch.manual_seed(0)
    tokens = pipeline.text_encoder.config
    text: Any = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=tokens.vocab_size,
            max_position_embeddings=tokens.max_position_embeddings,
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=12,
            num_attention_heads=4,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        )
    )
    build: Any = UNet2DConditionModel  # diffusers leaves its constructors untyped
    unet = build(
        sample_size=16,
        block_out_channels=(64, 128, 256, 256),
        cross_attention_dim=256,
        attention_head_dim=8,
        use_linear_projection=True,
    )
    pipeline.register_modules(unet=unet, text_encoder=text)
    pipeline.save_pretrained(folder)
    return str(folder)


def bare(study: Study, evaluator: Evaluator) -> Any:
    """The same images and features without the engine: a function to be timed."""
    pipeline = load_pipeline(study.pipeline, dtype=study.dtype, device=evaluator.live.device)
    scorer = ImageScorer(study, evaluator.live.device)
    prompts = evaluator.prompts.of("score", study.rungs.score.prompts)
    head, batch = study.rungs.preview.prompts, study.sampling.batch
    parts = [
        part[start : start + batch]
        for part in (prompts[:head], prompts[head:])
        for start in range(0, len(part), batch)
    ]

    @torch.inference_mode()
    def run() -> None:
        for part in parts:
            images = call_pipeline(pipeline, part, [0] * len(part), study.sampling)
            scorer.extract(images.clamp(0, 1))

    return run


def measure(study: Study, pairs: int) -> dict[str, Any]:
    """Interleaved pairs; each ratio and their median."""
    with tempfile.TemporaryDirectory() as folder:
        evaluator = Evaluator(study, folder)
        evaluator.evaluate(EvaluationRequest(Allocation(), "score"))  # dense references, once a study
        run = bare(study, evaluator)
        run()
        allocations = [
            uniform(evaluator.inventory, evaluator.grid, int(rate * evaluator.grid.n)) for rate in RATES
        ]
        ratios, seconds = [], []
        for number in range(pairs):
            times = {}
            # Who goes first alternates: a machine that warms up or slows down favours neither.
            for who in ("engine", "bare") if number % 2 else ("bare", "engine"):
                began = time.perf_counter()
                if who == "bare":
                    run()
                else:
                    evaluator.evaluate(EvaluationRequest(allocations[number % len(RATES)], "score"))
                times[who] = time.perf_counter() - began
            ratios.append(times["engine"] / times["bare"])
            seconds.append(times["bare"])
    return {
        "images": study.rungs.score.prompts * study.rungs.score.seeds,
        "steps": study.sampling.steps,
        "pairs": pairs,
        "bare_seconds": round(statistics.median(seconds), 2),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "evaluation_to_bare": round(statistics.median(ratios), 3),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs and prints the result as JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="3 pairs of 16 images")
    quick = parser.parse_args(arguments).quick
    small = ["rungs.preview.prompts=8", "rungs.score.prompts=16", "sampling.steps=4"] if quick else []
    pairs = 3 if quick else 7
    figures = {"bundled": measure(load(overrides=small), pairs)}
    with tempfile.TemporaryDirectory() as folder:
        shaped = sd2_shaped(Path(folder))
        sizes = ["rungs.preview.prompts=16", "rungs.score.prompts=48", "sampling.steps=8"]
        figures["sd2_shaped"] = measure(load(overrides=[f"pipeline={shaped}", *(small or sizes)]), pairs)
    holds = all(found["evaluation_to_bare"] <= BAR for found in figures.values())
    print(json.dumps({"benchmark": "engine", "figures": figures, "bar": BAR, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
