"""How well do the cheap rungs order allocations of *equal* total sparsity?

    python -m benchmarks.proxies --out reports/runs/proxies    # 126 allocations; stop and start again at will
    python -m benchmarks.proxies --quick                       # 12 allocations of few prompts, in a temporary folder

Three bands of total sparsity around the cliff. In each, allocations that are equal in their zeros and differ in
where these are: allocation rules, and mixtures of them jolted at random. Each is measured on every rung; the truth is
the validation rung's closeness to the dense images. Spearman's rank correlation of each proxy with the truth is
taken within each band and averaged, beside the truth's own split-half reliability (correlation of the closeness on
two halves of the prompts, stepped up by Spearman & Brown to the whole): what no proxy can be expected to exceed.
The same within the better half of each band is harder and given beside it. Variants of the probe (other weights of
the timesteps) are measured beside the default.

What a search optimises, it over-fits: from the allocation of each band that the probe likes best, a random descent on
the probe alone goes on, and what it ends at is measured as the others are. The probe error falls by construction;
the closeness says what that was worth.

Everything but the descents' own probes is kept in a store, so a killed run goes on; ``proxies.parquet`` beside it has
every measure of every allocation. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from raysense.allocation import Allocation
from raysense.evaluation.evaluator import Evaluator
from raysense.execution.local import LocalExecutor
from raysense.pipelines.load import modules_of
from raysense.pruning import allocation_rules
from raysense.records import Evaluation, EvaluationRequest, TrialSpec
from raysense.store import Store
from raysense.strategies.verdict import quality_budget
from raysense.study import EXTENSIONS, Study, load

BANDS = (0.25, 0.35, 0.45)
STOPPED = "stopped; start again with the same --out to go on"
RUNGS = ("layer", "probe", "preview", "validation")
TILTS = (-2.0, 2.0)
DESCENT = 40
"""Probes of each band's descent."""

BARS = {"probe_error": (0.8, 1 / 20), "preview": (0.9, 1 / 5)}


class Fixed:
    """A strategy that asks a list of trials, whatever the answers."""

    def __init__(self, specs: Sequence[TrialSpec]) -> None:
        self._specs = list(specs)
        self._asked = 0
        self.answers: dict[str, Sequence[Evaluation]] = {}

    @property
    def done(self) -> bool:
        return len(self.answers) == len(self._specs)

    @property
    def headline(self) -> str:
        return f"{len(self.answers)} of {len(self._specs)}"

    def ask(self) -> TrialSpec | None:
        if self._asked == len(self._specs):
            return None
        self._asked += 1
        return self._specs[self._asked - 1]

    def tell(self, spec: TrialSpec, evaluations: Sequence[Evaluation]) -> None:
        self.answers[spec.name] = evaluations


def allocations(evaluator: Evaluator, each: int, seed: int) -> dict[str, Allocation]:
    """`each` allocations a band, by name ``band/number``, of equal zeros within a band."""
    inventory, grid, modules = evaluator.inventory, evaluator.grid, modules_of(evaluator.pipeline)
    sizes = {layer.address: layer.n for layer in inventory.layers}
    found = {}
    for band in BANDS:
        zeros = int(band * grid.n)
        pure = [
            allocation_rules.uniform(inventory, grid, zeros),
            allocation_rules.lamp(inventory, grid, modules)(zeros),
            allocation_rules.erk(inventory, grid, zeros),
            allocation_rules.global_magnitude(inventory, grid, modules)(zeros),
        ]
        rng = np.random.default_rng([seed, int(1000 * band)])
        for number in range(each):
            if number < len(pure):
                found[f"{band}/{number}"] = pure[number]
                continue
            share = rng.dirichlet(np.ones(len(pure)))
            mixture = {
                address: sum(
                    s * grid.removed(address, p[grid.leader(address)])
                    for s, p in zip(share, pure, strict=True)
                )
                for address in sizes
            }
            found[f"{band}/{number}"] = grid.nearest(jolted(mixture, rng, 0.4, 0.5), zeros)
    return found


def jolted(
    wish: Mapping[str, float], rng: np.random.Generator, of_components: float, of_layers: float
) -> dict[str, float]:
    """Zeros wished for, each component's and each layer's times a random factor of that standard deviation."""
    common = {c: rng.normal(0, of_components) for c in sorted({a.split(":")[0] for a in wish})}
    return {
        address: zeros * float(np.exp(common[address.split(":")[0]] + rng.normal(0, of_layers)))
        for address, zeros in wish.items()
    }


def descended(evaluator: Evaluator, start: Allocation, zeros: int, rng: np.random.Generator) -> Allocation:
    """The end of a random descent on the probe error at a constant total."""
    grid, layers = evaluator.grid, [layer.address for layer in evaluator.inventory.layers]

    def error(allocation: Allocation) -> float:
        return evaluator.evaluate(EvaluationRequest(allocation, "probe")).measures["probe_error"].value

    best, least = start, error(start)
    for _ in range(DESCENT):
        wish = {a: float(grid.removed(a, best[grid.leader(a)])) for a in layers}
        candidate = grid.nearest(jolted(wish, rng, 0.1, 0.2), zeros)
        found = error(candidate)
        if found < least:
            best, least = candidate, found
    return best


def by_band(names: Iterable[str]) -> list[list[str]]:
    """The names of each band's allocations, in order."""
    bands: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        bands[name.split("/")[0]].append(name)
    return list(bands.values())


def within_bands(x: Mapping[str, float], y: Mapping[str, float]) -> float:
    """Mean over the bands of Spearman's correlation of two figures of the same allocations."""
    found = [
        float(stats.spearmanr([x[n] for n in band], [y[n] for n in band]).statistic)
        for band in by_band(x.keys() & y.keys())
        if len(band) > 2
    ]
    return float(np.mean(found))


def better_half(truth: Mapping[str, float]) -> set[str]:
    """The allocations of each band whose truth is below the band's median."""
    found = set()
    for band in by_band(truth):
        median = np.median([truth[name] for name in band])
        found |= {name for name in band if truth[name] < median}
    return found


def halves(store: Store, keys: Mapping[str, str]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean closeness on every other prompt, and on the others, by allocation."""
    samples = store.table("samples").to_pandas()
    samples = samples[samples["metric"] == "closeness"]
    order = {prompt: rank for rank, prompt in enumerate(sorted(samples["prompt_id"].unique()))}
    samples["half"] = samples["prompt_id"].map(order) % 2
    means = samples.groupby(["key", "half"])["value"].mean()
    first, second = ({name: float(means[key, half]) for name, key in keys.items()} for half in (0, 1))
    return first, second


def run(study: Study, out: str, each: int) -> dict[str, Any]:
    """Measure what the store lacks, then correlate."""
    evaluator = Evaluator(study, out)
    chosen = allocations(evaluator, each, study.seed)
    identity = evaluator.signature
    store = Store.open(out, create=True)
    store.begin(
        study.model_dump(mode="json"),
        signature=identity,
        inputs=evaluator.inputs,
        denominators={},
        extensions=EXTENSIONS,
        budget=quality_budget(study),
    )
    dense = TrialSpec("dense", "baseline", tuple(EvaluationRequest(Allocation(), rung) for rung in RUNGS))
    asked = [
        TrialSpec(name, "search", tuple(EvaluationRequest(allocation, rung) for rung in RUNGS))
        for name, allocation in chosen.items()
    ]
    strategy = Fixed([dense, *asked])
    LocalExecutor(evaluator).run(strategy, store, signature=identity)
    if not strategy.done:
        raise SystemExit(STOPPED)
    answers = {name: dict(zip(RUNGS, strategy.answers[name], strict=True)) for name in chosen}
    sound = {name: rungs for name, rungs in answers.items() if not any(e.collapsed for e in rungs.values())}

    truth = {name: -rungs["validation"].measures["closeness"].value for name, rungs in sound.items()}
    proxies = {
        "layer_error": {n: r["layer"].measures["layer_error"].value for n, r in sound.items()},
        "probe_error": {n: r["probe"].measures["probe_error"].value for n, r in sound.items()},
        "text_error": {n: r["probe"].measures["text_error"].value for n, r in sound.items()},
        "preview": {n: -r["preview"].measures["closeness"].value for n, r in sound.items()},
    }
    proxies |= {f"probe_error, tilt {tilt:+g}": tilted(study, sound, chosen, tilt) for tilt in TILTS}
    first, second = halves(store, {n: r["validation"].key for n, r in sound.items()})
    half = within_bands(first, second)
    reliability = 2 * half / (1 + half)
    top = {
        name: np.median([getattr(r["validation"], name) for r in sound.values()])
        for name in ("nfe", "seconds")
    }
    upper = better_half(truth)
    figures: dict[str, Any] = {
        "allocations": len(chosen),
        "collapsed": len(chosen) - len(sound),
        "bands": list(BANDS),
        "split_half_reliability": round(reliability, 3),
    }
    for name, values in proxies.items():
        rung = "layer" if name.startswith("layer") else "preview" if name == "preview" else "probe"
        rows = [r[rung] for r in sound.values()]
        figures[name] = {
            "spearman_within_bands": round(within_bands(values, truth), 3),
            "of_reliability": round(within_bands(values, truth) / reliability, 3),
            "spearman_in_better_half": round(
                within_bands({n: v for n, v in values.items() if n in upper}, truth), 3
            ),
            "cost_to_top": round(float(np.median([e.nfe for e in rows]) / top["nfe"]), 4),
            "seconds_to_top": round(float(np.median([e.seconds for e in rows]) / top["seconds"]), 4),
        }
    figures["descents"] = descents(evaluator, store, identity, chosen, answers)
    evaluations = store.table("evaluations").to_pandas()
    evaluations[["key", "trial", "rung", "zeros", "nfe", "seconds"]].merge(
        store.table("measures").to_pandas(), on="key"
    ).drop(columns="key").to_parquet(Path(out) / "proxies.parquet", index=False, write_page_checksum=True)
    return figures


def descents(
    evaluator: Evaluator,
    store: Store,
    identity: str,
    chosen: Mapping[str, Allocation],
    answers: Mapping[str, Mapping[str, Evaluation]],
) -> dict[str, Any]:
    """What optimising the probe does to the probe, and to the closeness, in each band."""

    def probed(name: str) -> float:
        return answers[name]["probe"].measures["probe_error"].value

    def figures_of(rungs: Mapping[str, Evaluation]) -> dict[str, Any]:
        closeness = rungs["validation"].measures["closeness"]
        return {
            "probe_error": round(rungs["probe"].measures["probe_error"].value, 5),
            "closeness": [round(x, 4) for x in (closeness.value, closeness.ci_low, closeness.ci_high)],
        }

    starts = {}
    for band in BANDS:
        inside = [
            name for name in chosen if name.startswith(f"{band}/") and not answers[name]["probe"].collapsed
        ]
        starts[band] = min(inside, key=probed)
    rng = np.random.default_rng(evaluator.study.seed)
    ends = {
        band: descended(evaluator, chosen[start], int(band * evaluator.grid.n), rng)
        for band, start in starts.items()
    }
    strategy = Fixed(
        [
            TrialSpec(
                f"{band}/descended",
                "search",
                tuple(EvaluationRequest(end, rung) for rung in ("probe", "validation")),
            )
            for band, end in ends.items()
        ]
    )
    LocalExecutor(evaluator).run(strategy, store, signature=identity)
    if not strategy.done:
        raise SystemExit(STOPPED)
    found = {}
    for band, start in starts.items():
        probe, validation = strategy.answers[f"{band}/descended"]
        found[str(band)] = {
            "start": figures_of(answers[start]),
            "end": figures_of({"probe": probe, "validation": validation}),
        }
    return found


def tilted(
    study: Study, sound: Mapping[str, Any], chosen: Mapping[str, Allocation], tilt: float
) -> dict[str, float]:
    """The probe with other weights of its timesteps; not stored: it costs next to nothing."""
    probe = study.rungs.probe.model_copy(update={"tilt": tilt})
    other = study.model_copy(update={"rungs": study.rungs.model_copy(update={"probe": probe})})
    with tempfile.TemporaryDirectory() as folder:
        evaluator = Evaluator(other, folder)
        return {
            name: evaluator.evaluate(EvaluationRequest(chosen[name], "probe")).measures["probe_error"].value
            for name in sound
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs and prints the result as JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="12 allocations of few prompts")
    parser.add_argument("--out", type=Path, help="folder of the store; a run that stopped goes on there")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    sizes = ["rungs.probe={prompts: 16, timesteps: 4}", "rungs.preview.prompts=24", "rungs.score.prompts=24",
             "rungs.validation.prompts=192"]  # fmt: skip
    if options.quick:
        sizes = ["rungs.probe={prompts: 4, timesteps: 2}", "rungs.preview.prompts=8", "rungs.score.prompts=8",
                 "rungs.validation.prompts=16", "sampling.steps=4"]  # fmt: skip
    study = load(overrides=["name=proxies", *sizes])
    with tempfile.TemporaryDirectory() as temporary:
        figures = run(study, str(options.out or temporary), 4 if options.quick else 42)
    figures["seconds"] = round(time.perf_counter() - began, 1)
    holds = all(
        figures[name]["of_reliability"] >= bar and figures[name]["cost_to_top"] <= cost
        for name, (bar, cost) in BARS.items()
    )
    bar = {name: {"of_reliability": b, "cost_to_top": c} for name, (b, c) in BARS.items()}
    print(json.dumps({"benchmark": "proxies", "figures": figures, "bar": bar, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
