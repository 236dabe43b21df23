"""Do the intervals hold what they say? Simulated studies, and real pairs of images.

``python -m benchmarks.intervals [--quick] [--studies N] [--out DIR] [--seed N]``

1. Coverage: how often the 95 % interval of a paired difference contains the true one, for a per-image metric
   (several kinds of damage, numbers of prompts and seeds) and for the Fréchet distance and KID below and above
   as many images as features, where the truth is the expected difference *at that number of images*.
2. Early stop: a candidate whose true drop lies exactly on the bound climbs three nested rungs; how often is it
   stopped (or let through) wrongly, with `look_levels` and with plain 95 % intervals.
3. Winner: finalists of which most lie on or past the bound; how often is an unfit one chosen, by fixed-sequence
   testing and by taking the sparsest that passes on its own.
4. The bundled pipeline, dense and pruned by one ratio, 600 prompts × 6 seeds, 4 steps: coverage of the mean
   difference of 3,570 pairs of images by intervals from 210 disjoint parts of 17 prompts each; with
   ``--quick`` 96 pairs in 12 parts. ``--out`` keeps the dense images' features for the next time.

The last line is one JSON object: benchmark, figures, bar, holds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from raysense.evaluation.engine import Evaluator
from raysense.evaluation.records import Task
from raysense.metrics import frechet, kid
from raysense.metrics.statistics import (
    Floats,
    Interval,
    look_levels,
    mean_interval,
    paired_drop,
    sparsest_passing,
)
from raysense.study import load

REAL_SPARSITY = 0.3
COVERAGE = (0.93, 0.97)
LOOKS = (1 / 16, 1 / 4, 1.0)
ALPHA = 0.05
ENOUGH = 2000

# The spread of CLIP scores: between prompts, and within a prompt from seed to seed.
BETWEEN, WITHIN = 0.030, 0.023

Damage = Callable[[np.random.Generator, int], Floats]
"""How much each of n prompts suffers from pruning; its mean is the true drop."""


def even(rng: np.random.Generator, n: int) -> Floats:
    """Every prompt suffers about alike; mean 0.01."""
    return rng.normal(0.01, 0.005, n)


def skewed(rng: np.random.Generator, n: int) -> Floats:
    """Most prompts suffer little, some much; mean 0.01."""
    return rng.gamma(2, 0.005, n)


def broken(rng: np.random.Generator, n: int) -> Floats:
    """One prompt in eight loses its subject altogether; mean 0.01."""
    return np.where(rng.random(n) < 0.125, 0.08, 0.0)


def pairs(
    rng: np.random.Generator, prompts: int, seeds: int, damage: Damage
) -> tuple[Floats, Floats, list[int]]:
    """One evaluation: the metric of dense and pruned images, (prompts · seeds,) each, and their prompts.

    The same noise starts both images of a pair, so half of the variance within a prompt is common.
    """
    common = rng.normal(0, BETWEEN, prompts)[:, None] + rng.normal(0, WITHIN * 0.5**0.5, (prompts, seeds))
    own = rng.normal(0, WITHIN * 0.5**0.5, (2, prompts, seeds))
    dense = 0.31 + common + own[0]
    pruned = 0.31 + common + own[1] - damage(rng, prompts)[:, None]
    return dense.ravel(), pruned.ravel(), np.repeat(np.arange(prompts), seeds).tolist()


def mean_coverage(rng: np.random.Generator, studies: int) -> dict[str, float]:
    """Share of studies whose interval contains the true drop of 0.01."""
    found = {}
    for damage in (even, skewed, broken):
        for prompts, seeds in ((32, 1), (96, 1), (64, 4)):
            intervals = (paired_drop(*pairs(rng, prompts, seeds, damage)) for _ in range(studies))
            found[f"{damage.__name__}, {prompts} prompts x {seeds}"] = share_covering(intervals, 0.01)
    return found


def share_covering(intervals: Iterator[Interval], truth: float) -> float:
    """Share of the intervals that contain the truth."""
    return float(np.mean([interval.low <= truth <= interval.high for interval in intervals]))


def distribution_coverage(seed: int, studies: int) -> dict[str, float]:
    """Share of studies whose interval contains the expected rise of a Fréchet distance or of KID.

    Features have a decaying spectrum; pruning shrinks them, adds noise and shifts them. Prompts have two seeds
    with a common part. The truth is the mean over all studies, which is far more precise than one study.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for dimensions, prompts in ((96, 32), (24, 64)):
        spectrum = torch.arange(1, dimensions + 1).double() ** -0.7
        reference = draw(generator, 300, dimensions) * spectrum
        statistics = frechet.statistics(reference)
        ids = [index // 2 for index in range(2 * prompts)]
        frechet_rises, kid_rises = [], []
        for _ in range(studies):
            subject = draw(generator, prompts, dimensions).repeat_interleave(2, dim=0)
            dense = (0.8 * subject + 0.6 * draw(generator, 2 * prompts, dimensions)) * spectrum
            noise = draw(generator, 2 * prompts, dimensions) * spectrum
            pruned = 0.8 * dense + 0.4 * noise + 0.15 * spectrum
            frechet_rises.append(frechet.frechet_rise(pruned, dense, statistics, ids))
            kid_rises.append(kid.kid_rise(pruned, dense, reference, ids))
        for name, rises in (("frechet", frechet_rises), ("kid", kid_rises)):
            truth = float(np.mean([rise.value for rise in rises]))
            found[f"{name}, {2 * prompts} images, {dimensions} features"] = share_covering(iter(rises), truth)
    return found


def draw(generator: torch.Generator, n: int, dimensions: int) -> Tensor:
    """Standard normal features, (n, dimensions) float64."""
    return torch.randn(n, dimensions, generator=generator, dtype=torch.float64)


def early_stop(rng: np.random.Generator, studies: int, prompts: int = 256) -> dict[str, float]:
    """Wrong stops at the bound, and what stopping saves far from it."""
    levels = look_levels(LOOKS, ALPHA)
    wrong, wrong_plain, spent = 0, 0, []
    for _ in range(studies):
        dense, pruned, _ = pairs(rng, prompts, 1, skewed)
        wrong += first_exclusion(dense - pruned, 0.01, levels) is not None
        wrong_plain += first_exclusion(dense - pruned, 0.01, [0.95] * len(LOOKS)) is not None
        hopeless = first_exclusion(dense - pruned + 0.04, 0.01, levels)
        spent.append(1.0 if hopeless is None else hopeless)
    return {
        "wrong stops": wrong / studies,
        "wrong stops with plain intervals": wrong_plain / studies,
        "share of prompts spent on a candidate .04 past the bound": float(np.mean(spent)),
    }


def first_exclusion(drops: Floats, bound: float, levels: list[float]) -> float | None:
    """The fraction of prompts at which an interval first excludes the bound, if any does."""
    for fraction, level in zip(LOOKS, levels, strict=True):
        interval = mean_interval(drops[: round(fraction * len(drops))], level=level)
        if not interval.low <= bound <= interval.high:
            return fraction
    return None


def winner(
    rng: np.random.Generator, studies: int, finalists: int = 6, prompts: int = 128
) -> dict[str, float]:
    """How often an unfit finalist wins, when the first is fit and all others lie exactly on the bound."""
    bound, wrong, wrong_plain, useful = 0.01, 0, 0, 0
    for _ in range(studies):
        dense, _, _ = pairs(rng, prompts, 1, even)
        # The first loses half of what is allowed; the dense images are common to all comparisons.
        true = np.array([0.5 * bound] + [bound] * (finalists - 1))
        drops = true + rng.normal(0, WITHIN, (prompts, finalists)) + (dense - 0.31)[:, None] * 0.3
        # One-sided 95 %: the upper end of a two-sided 90 % interval must clear the bound.
        passes = [mean_interval(drops[:, k], level=1 - 2 * ALPHA).high < bound for k in range(finalists)]
        chosen = sparsest_passing([0.1 * k for k in range(finalists)], passes.__getitem__)
        wrong += chosen is not None and chosen > 0
        useful += chosen is not None
        wrong_plain += any(passes[1:])
    return {
        "unfit winners": wrong / studies,
        "unfit winners when the sparsest passing one is taken": wrong_plain / studies,
        "studies with a winner": useful / studies,
    }


def real_coverage(
    rng: np.random.Generator, folder: str, prompts: int, seeds: int, size: int
) -> dict[str, float]:
    """Coverage of the mean over all real pairs by intervals from disjoint parts, for each per-image measure."""
    study = load(
        overrides=[
            "sampling.steps=4",
            "rungs.preview.prompts=8",
            f"rungs.score={{prompts: {prompts}, seeds: {seeds}}}",
        ]
    )
    evaluator = Evaluator(study, folder)
    evaluation = evaluator.evaluate(Task(evaluator.grid.uniform(REAL_SPARSITY), "score"))
    table = pd.DataFrame(list(evaluation.samples))
    # Parts never see a prompt twice: they are consecutive prompts, in random order, under one seed.
    order = rng.permutation(table["prompt_id"].unique())
    found = {}
    for measure in ("clip_score_drop", "closeness"):
        values = table.pivot(index="seed", columns="prompt_id", values=measure)[order].to_numpy()
        parts = values[:, : values.shape[1] // size * size].reshape(-1, size)
        intervals = (mean_interval(part) for part in parts)
        share = share_covering(intervals, float(parts.mean()))
        found[f"{measure}, {len(parts)} parts of {size} prompts"] = share
    return found


def main() -> None:
    """Run all parts, print what was found, end with one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the Fréchet and KID studies")
    parser.add_argument("--studies", type=int, default=4000, help="simulated studies of each kind")
    parser.add_argument("--out", help="the cache of part 4; default: a temporary folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, began = np.random.default_rng(options.seed), time.perf_counter()

    figures: dict[str, dict[str, float]] = {"mean": mean_coverage(rng, options.studies)}
    sets = options.studies // 10 if options.quick else options.studies
    figures["distribution"] = distribution_coverage(options.seed, sets)
    # Its rate is close to what is allowed: more studies, so that chance does not decide.
    figures["early stop"] = early_stop(rng, 10 * options.studies)
    figures["winner"] = winner(rng, options.studies)
    size = (48, 2, 8) if options.quick else (600, 6, 17)
    with tempfile.TemporaryDirectory() as temporary:
        figures["real"] = real_coverage(rng, options.out or temporary, *size)
    for part, values in figures.items():
        for name, value in values.items():
            print(f"{part:13} {name:58} {value:.4f}")
    print(f"{options.studies} studies of each kind ({sets} of sets) in {time.perf_counter() - began:.0f} s")

    low, high = COVERAGE
    slack = {
        "mean": margin(low, options.studies),
        "distribution": margin(low, sets),
        "real": margin(low, size[0] // size[2] * size[1]),
    }
    checks = {
        f"{part}: {name}": low - slack[part] <= value <= high + slack[part]
        for part in slack
        for name, value in figures.get(part, {}).items()
    }
    rate = ALPHA + margin(ALPHA, options.studies)
    checks["wrong stops"] = figures["early stop"]["wrong stops"] <= rate
    checks["unfit winners"] = figures["winner"]["unfit winners"] <= rate
    bar = f"coverage {low}-{high}, error rates <= {ALPHA}; 3 Monte-Carlo standard errors of slack below {ENOUGH} trials"
    figures["failed"] = {name: 1.0 for name, holds in checks.items() if not holds}
    print(
        json.dumps({"benchmark": "intervals", "figures": figures, "bar": bar, "holds": all(checks.values())})
    )


def margin(share: float, trials: int) -> float:
    """Slack for a share estimated from few trials, three standard errors; none where they are many."""
    return 0.0 if trials >= ENOUGH else float(3 * np.sqrt(share * (1 - share) / trials))


if __name__ == "__main__":
    main()
