"""What 2:4 kernels buy: sampling an exported 2:4 pipeline with dense kernels and with 2:4 ones, side by side.

``python -m benchmarks.semi_structured FOLDER [--quick] [--dtype bfloat16] [--batch 8] [--steps 12] [--rounds 9]``

Both pipelines hold the same weights on the same GPU and sample the same prompts from the same noise, in turns; a first
round warms up and does not count. Without a GPU that has the kernels it says "not measured", and why; no folder is
needed for that. The last line is one JSON object: benchmark, figures, bar, holds (null where nothing was measured).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from raysense.errors import RaysenseError
from raysense.export.semi_structured import check_device, load_either, load_semi_structured, read_record
from raysense.names import BUNDLED
from raysense.pipelines.sample import call_pipeline
from raysense.prompts.sets import load_prompts
from raysense.study import Sampling

BAR = 1.0
"""Dense time over 2:4 time, at least."""


def main() -> int:
    """Measure and print; 2 where the folder is not one to measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", help="what `raysense export` wrote of a study with prune.pattern 2:4"
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds of 2 images, 4 steps")
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    if args.quick:
        args.batch, args.steps, args.rounds = 2, 4, 2
    try:
        if args.folder is not None:
            read_record(args.folder)
    except RaysenseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        check_device("cuda")
    except RaysenseError as error:
        return conclude(f"speed: not measured ({error})", {})
    if args.folder is None:
        print("error: give FOLDER, an exported 2:4 pipeline: this GPU has the kernels", file=sys.stderr)
        return 2
    dtype = getattr(torch, args.dtype)
    dense = load_either(args.folder, torch_dtype=dtype).to("cuda")
    sparse, conversion = load_semi_structured(args.folder, torch_dtype=dtype)
    print(conversion.in_words())
    if not conversion.converted:
        return conclude("speed: not measured (no layer runs on 2:4 kernels)", {})
    prompts = load_prompts(BUNDLED).validation[: args.batch]
    sampling = Sampling(steps=args.steps, batch=args.batch)
    for pipeline in (dense, sparse):
        pipeline.set_progress_bar_config(disable=True)
    ratios = side_by_side(
        lambda: call_pipeline(dense, prompts, [0] * len(prompts), sampling),
        lambda: call_pipeline(sparse, prompts, [0] * len(prompts), sampling),
        args.rounds,
    )
    return conclude(
        f"dense time / 2:4 time: {statistics.median(ratios):.3f} (median of {len(ratios)} rounds, {min(ratios):.3f} to "
        f"{max(ratios):.3f}); {torch.cuda.get_device_name()}, {args.dtype}, {len(prompts)} images, {args.steps} steps",
        {"dense_over_sparse": round(statistics.median(ratios), 3)},
    )


def conclude(words: str, figures: dict[str, float]) -> int:
    """Prints what was found, in words and as JSON; the exit status."""
    print(words)
    holds = figures["dense_over_sparse"] > BAR if figures else None
    bar = {"dense_over_sparse_above": BAR}
    print(json.dumps({"benchmark": "semi_structured", "figures": figures, "bar": bar, "holds": holds}))
    return 1 if holds is False else 0


def side_by_side(one: Callable[[], object], two: Callable[[], object], rounds: int) -> list[float]:
    """Time of `one` over time of `two`, round by round, the order changing every time; a first round warms up."""
    ratios = []
    for number in range(rounds + 1):
        if number % 2:
            second, first = _seconds(two), _seconds(one)
        else:
            first, second = _seconds(one), _seconds(two)
        ratios.append(first / second)
    return ratios[1:]


def _seconds(work: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
