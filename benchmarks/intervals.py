"""Do the intervals hold what they say? Simulated studies, and real pairs of images.

``python -m benchmarks.intervals [--quick] [--studies N] [--out DIR] [--seed N]``

1. Coverage: how often the 95 % interval of a paired difference contains the true one, for a per-image metric
   (several kinds of damage, numbers of prompts and seeds) and for the Fréchet distance and KID below and above
   as many images as features, the reference drawn anew each time, where the truth is the expected difference *at that
   number of images*.
2. Early stop: a candidate whose true drop lies exactly on the bound climbs preview and score rung; how often does
   the rule that the search gives its trials (`raysense.strategies.verdict.hopeless`) stop it, and how often would
   plain 95 % intervals. Who wins on held-out prompts is `benchmarks.verdicts`' question: it runs the whole plan.
3. Real pairs of both bundled pipelines (`benchmarks.pool`): prompts drawn anew from 240, two reference images of each
   drawn anew from three, measured by the product's own scorer at five sparsities; coverage of the population's value.
   ``--out`` keeps the painted images' features for the next time.

The last line is one JSON object: benchmark, figures, bar, holds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.pool import BEDS, Pool, Size
from benchmarks.pool import QUICK as QUICK_POOL
from raysense.metrics import gaussians
from raysense.metrics.builtin import SPECS
from raysense.metrics.intervals import (
    Floats,
    Interval,
    influence_rise,
    paired_drop,
    prompt_labels,
    reference_labels,
)
from raysense.metrics.spec import Distance
from raysense.records import Bound, Evaluation, Measure
from raysense.strategies.verdict import hopeless
from raysense.study import Rungs

COVERAGE = (0.93, 0.97)
WRONG_STOPS = 0.025
ENOUGH = 2000
QUICK = 200

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
    return float(np.mean([interval.ci_low <= truth <= interval.ci_high for interval in intervals]))


def distribution_coverage(seed: int, studies: int) -> dict[str, float]:
    """Share of studies whose interval contains the expected rise of a Fréchet distance or of KID.

    Features have a decaying spectrum; pruning draws them together, or adds noise and shifts them. Prompts, images and
    the reference are drawn anew in each study: a reference of the same prompts under two other seeds, or one of images
    that have nothing to do with the prompts. The truth is the mean over all studies, which is far more precise than one
    study.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for dimensions, prompts in ((96, 32), (24, 64)):
        spectrum = torch.arange(1, dimensions + 1).double() ** -0.7
        ids = [index // 2 for index in range(2 * prompts)]
        for damage, of_prompts in itertools.product(("noise", "shrunk"), (True, False)):
            theirs = list(range(prompts)) * 2 if of_prompts else None
            rises: dict[str, list[Interval]] = {"frechet": [], "kid": []}
            for _ in range(studies):
                subject = draw(generator, prompts, dimensions)
                of_subject = subject.repeat_interleave(2, dim=0)
                dense = (0.8 * of_subject + 0.6 * draw(generator, 2 * prompts, dimensions)) * spectrum
                pruned = 0.7 * dense
                if damage == "noise":
                    noise = draw(generator, 2 * prompts, dimensions) * spectrum
                    pruned = 0.8 * dense + 0.4 * noise + 0.15 * spectrum
                reference = draw(generator, 300, dimensions) * spectrum
                if of_prompts:
                    other = draw(generator, 2 * prompts, dimensions)
                    reference = (0.8 * subject.repeat(2, 1) + 0.6 * other) * spectrum
                for name, rise in distance_rises(pruned, dense, reference, ids, theirs).items():
                    rises[name].append(rise)
            for name, intervals in rises.items():
                truth = float(np.mean([rise.value for rise in intervals]))
                what = f"{2 * prompts} images, {dimensions} features, {damage}"
                kind = "reference of the same prompts" if of_prompts else "reference apart"
                found[f"{name}, {what}, {kind}"] = share_covering(iter(intervals), truth)
    return found


def distance_rises(
    pruned: Tensor, dense: Tensor, reference: Tensor, ids: list[int], theirs: list[int] | None
) -> dict[str, Interval]:
    """Fréchet and KID rise as an evaluator makes them."""
    gaussian, own = gaussians.statistics(reference), prompt_labels(ids, len(ids))
    labels = own, reference_labels(ids, own, theirs, len(reference))
    found = {}
    for name in ("frechet", "kid"):
        how = SPECS[name].how
        assert isinstance(how, Distance)
        after, before = (how.estimate(images, reference, gaussian, labels) for images in (pruned, dense))
        found[name] = influence_rise(after, before, ids, reference_ids=theirs)
    return found


def draw(generator: torch.Generator, n: int, dimensions: int) -> Tensor:
    """Standard normal features, (n, dimensions) float64."""
    return torch.randn(n, dimensions, generator=generator, dtype=torch.float64)


def early_stop(rng: np.random.Generator, studies: int) -> dict[str, float]:
    """How often the product's own rule stops a candidate on the bound, and what it saves far from it.

    The rungs are nested as in a study: the preview's prompts are the first of the score rung's.
    """
    rungs = Rungs.model_validate({"preview": {"prompts": 64}, "score": {"prompts": 256}})
    bound = Bound("constraints.clip_score.max_drop", "clip_score_drop", True, 0.01)
    rule = hopeless([bound], rungs)
    plain = replace(rule, stretch=1.0)
    stops, looks = {"": 0, " with plain intervals": 0}, []
    for _ in range(studies):
        dense, pruned, _ = pairs(rng, rungs.score.prompts, 1, skewed)
        climb = [clip_row(dense, pruned, rung.prompts) for rung in (rungs.preview, rungs.score)]
        stops[""] += any(map(rule.says_stop, climb))
        stops[" with plain intervals"] += any(map(plain.says_stop, climb))
        first = clip_row(dense, pruned - 0.04, rungs.preview.prompts)
        looks.append(rungs.preview.prompts / rungs.score.prompts if rule.says_stop(first) else 1.0)
    found = {f"wrong stops{how}": count / studies for how, count in stops.items()}
    return {**found, "share of prompts spent on a candidate .04 past the bound": float(np.mean(looks))}


def clip_row(dense: Floats, pruned: Floats, prompts: int) -> Evaluation:
    """What an evaluator says of the first so many prompts."""
    found = paired_drop(dense[:prompts], pruned[:prompts])
    measure = Measure(found.value, found.ci_low, found.ci_high, found.n, "simulated")
    return Evaluation(
        stage="search", measures={"clip_score_drop": measure}, zeros=0, images=0, nfe=0, seconds=0.0
    )


REAL = ("clip_score_drop", "closeness", "kid_rise")


def real_coverage(
    rng: np.random.Generator, folder: Path, size: Size, draws: int, counts: Sequence[int]
) -> dict[str, float]:
    """Coverage of the population's value by the intervals of draws from it, mean over the sparsities."""
    found = {}
    for bed, count in itertools.product(BEDS, counts):
        pool = Pool(bed, size, folder)
        rows: dict[str, list[list[Measure]]] = {name: [[] for _ in pool.levels] for name in REAL}
        for _ in range(draws):
            drawn = pool.drawn(rng, count)
            for level in range(len(pool.levels)):
                measures = drawn.measures(level)
                for name in REAL:
                    rows[name][level].append(measures[name])
        for name, levels in rows.items():
            # What a draw estimates is the mean over all draws, known far better than any one of them says.
            shares = []
            for each in levels:
                truth = float(np.mean([m.value for m in each]))
                shares.append(np.mean([m.ci_low <= truth <= m.ci_high for m in each]))
            found[f"{bed}, {name}, {count} prompts"] = float(np.mean(shares))
    return found


def main() -> None:
    """Run all parts, print what was found, end with one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few studies: shows that it works")
    parser.add_argument("--studies", type=int, default=4000, help="simulated studies of each kind")
    parser.add_argument("--draws", type=int, default=300, help="of part 3, for each number of prompts")
    parser.add_argument("--out", help="where part 3 keeps what it paints; default: a temporary folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, began = np.random.default_rng(options.seed), time.perf_counter()

    studies = QUICK if options.quick else options.studies
    figures: dict[str, dict[str, float]] = {"mean": mean_coverage(rng, studies)}
    sets = studies // 4 if options.quick else studies
    figures["distribution"] = distribution_coverage(options.seed, sets)
    # Its rate is close to what is allowed: more studies, so that chance does not decide.
    figures["early stop"] = early_stop(rng, 10 * studies)
    draws, counts, size = (20, (16,), QUICK_POOL) if options.quick else (options.draws, (64, 160), Size())
    with tempfile.TemporaryDirectory() as temporary:
        figures["real"] = real_coverage(rng, Path(options.out or temporary), size, draws, counts)
    print(f"{studies} studies of each kind ({sets} of sets) in {time.perf_counter() - began:.0f} s")

    low, high = COVERAGE
    slack = {
        "mean": margin(low, studies),
        "distribution": margin(low, sets),
        "real": margin(low, draws),
    }
    checks = {
        f"{part}: {name}": low - slack[part] <= value <= high + slack[part]
        for part in slack
        for name, value in figures.get(part, {}).items()
    }
    allowed = WRONG_STOPS + margin(WRONG_STOPS, 10 * studies)
    checks["wrong stops"] = figures["early stop"]["wrong stops"] <= allowed
    slacks = f"3 Monte-Carlo standard errors of slack below {ENOUGH} trials"
    bar = f"coverage {low}-{high}, wrong stops <= {WRONG_STOPS}; {slacks}"
    figures["failed"] = {name: 1.0 for name, holds in checks.items() if not holds}
    print(
        json.dumps({"benchmark": "intervals", "figures": figures, "bar": bar, "holds": all(checks.values())})
    )


def margin(share: float, trials: int) -> float:
    """Slack for a share estimated from few trials, three standard errors; none where they are many."""
    return 0.0 if trials >= ENOUGH else float(3 * np.sqrt(share * (1 - share) / trials))


if __name__ == "__main__":
    main()
