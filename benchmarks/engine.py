"""What an evaluation costs beyond sampling its images and extracting their features.

    python -m benchmarks.engine  # 7 pairs of 80 images on each bed, of 24 on the third pipeline: 6 CPU minutes
    python -m benchmarks.engine --quick  # 2 pairs of 12 images, 2 steps

Three pipelines: both bundled ones, with the sampling and the components of their studies, and one in the shape of
Stable Diffusion 2 (four levels of down- and up-blocks, a text encoder of 12 layers) with reduced width and random
weights. In each pair, in turn: `Evaluator.evaluate` on a new allocation, and the bare work: a separately loaded
pipeline that samples as many images in the same batches, and the same two networks that extract their features.
What comes once a study, the weights' order of removal, is done before by one more allocation, and given apart. Both
clocks are read: wall time, which the bar is about, and this process's CPU time, which other processes on the machine
disturb less. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.beds import STUDIES, study_of
from raysense.allocation import Allocation
from raysense.evaluation.evaluator import Evaluator
from raysense.evaluation.scoring import ImageScorer
from raysense.pipelines.load import load_pipeline
from raysense.pipelines.sample import call_pipeline
from raysense.pruning.allocation_rules import uniform
from raysense.records import EvaluationRequest
from raysense.study import Study

BAR = 1.05
SIZES = ["rungs.preview.prompts=24", "rungs.score.prompts=80"]
SHAPED_SIZES = ["rungs.preview.prompts=8", "rungs.score.prompts=24", "sampling.steps=4"]
QUICK = ["rungs.preview.prompts=8", "rungs.score.prompts=12", "sampling.steps=2"]
FIRST, RATES = 0.28, (0.1, 0.2, 0.15, 0.25, 0.05, 0.3, 0.12, 0.22, 0.08, 0.18)


def sd2_shaped(folder: Path, width: int) -> str:
    """A pipeline with the blocks of Stable Diffusion 2, narrower, at 16×16 latents; random weights.

    Args:
        folder: Where it goes.
        width: Channels of the outermost level; 320 in Stable Diffusion 2.
    """
    pipeline = load_pipeline("bundled")
    torch.manual_seed(0)
    tokens = pipeline.text_encoder.config
    text: Any = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=tokens.vocab_size,
            max_position_embeddings=tokens.max_position_embeddings,
            hidden_size=4 * width,
            intermediate_size=16 * width,
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
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        cross_attention_dim=4 * width,
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

        def evaluate(rate: float) -> None:
            allocation = uniform(evaluator.inventory, evaluator.grid, int(rate * evaluator.grid.n))
            evaluator.evaluate(EvaluationRequest(allocation, "score"))

        first = seconds_of(partial(evaluate, FIRST))
        found: dict[str, list[tuple[float, float]]] = {"bare": [], "engine": []}
        for number in range(pairs):
            sides = {"bare": run, "engine": partial(evaluate, RATES[number % len(RATES)])}
            # Who goes first alternates: a machine that warms up or slows down favours neither.
            for who in sorted(sides, reverse=bool(number % 2)):
                found[who].append(seconds_of(sides[who]))
            print(
                f"pair {number + 1} of {pairs}: wall and CPU seconds {found['engine'][-1]}, bare {found['bare'][-1]}",
                flush=True,
            )
    wall, cpu = (
        [engine[clock] / bare[clock] for engine, bare in zip(found["engine"], found["bare"], strict=True)]
        for clock in (0, 1)
    )
    return {
        "images": study.rungs.score.prompts * study.rungs.score.seeds,
        "steps": study.sampling.steps,
        "pairs": pairs,
        "bare_cpu_seconds": round(statistics.median(c for _, c in found["bare"]), 2),
        "bare_seconds": round(statistics.median(w for w, _ in found["bare"]), 2),
        "first_evaluation_cpu_seconds_more": round(
            first[1] - statistics.median(c for _, c in found["engine"]), 2
        ),
        "ratios": [round(ratio, 3) for ratio in wall],
        "evaluation_to_bare": round(statistics.median(wall), 3),
        "cpu_ratios": [round(ratio, 3) for ratio in cpu],
        "evaluation_to_bare_cpu": round(statistics.median(cpu), 3),
    }


def seconds_of(work: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds of a call, and CPU seconds of this process in it."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs and prints the result as JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="2 pairs of 12 images")
    quick = parser.parse_args(arguments).quick
    pairs = 2 if quick else 7
    figures = {bed: measure(study_of(bed, QUICK if quick else SIZES), pairs) for bed in STUDIES}
    with tempfile.TemporaryDirectory() as folder:
        shaped = f"pipeline={sd2_shaped(Path(folder), 32 if quick else 64)}"
        sizes = QUICK if quick else SHAPED_SIZES
        figures["sd2_shaped"] = measure(study_of("bundled", [shaped, *sizes]), pairs)
    holds = all(found["evaluation_to_bare"] <= BAR for found in figures.values())
    print(json.dumps({"benchmark": "engine", "figures": figures, "bar": BAR, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
