"""How well do the cheap rungs order allocations of *equal* total sparsity?

    python -m benchmarks.proxies [--bed BED] --out reports/runs/proxies  # both beds; stop and start again at will
    python -m benchmarks.proxies --quick       # 3 allocations a band, of few prompts, in a temporary folder
    python -m benchmarks.proxies --table       # measure nothing: the tables of the committed rows

On both bundled pipelines, three bands of total sparsity around the cliff. In each, allocations that are equal in their
zeros and differ in where these are: allocation rules, and mixtures of them jolted at random. Each is measured on every
rung; the truth is the validation rung's closeness to the dense images. Spearman's rank correlation of each proxy with
the truth is taken within each band and averaged, beside the truth's own split-half reliability (correlation of the
closeness on two halves of the prompts, stepped up by Spearman & Brown to the whole): what no proxy can be expected to
exceed. The same within the better half of each band is harder and given beside it. Variants of the probe (other weights
of the timesteps) are measured beside the default.

What a search optimises, it over-fits: from the allocation of each band that the probe likes best, a random descent on
the probe alone goes on, and what it ends at is measured as the others are. The probe error falls by construction;
the closeness says what that was worth.

Everything but the descents' own probes is kept in a store, so a killed run goes on; ``BED.parquet`` beside it has the
rows that all figures follow from. The last line of the output is one JSON object.
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
import pandas as pd
from scipy import stats

from benchmarks.beds import STUDIES, study_of
from raysense.allocation import Allocation
from raysense.evaluation.evaluator import Evaluator
from raysense.execution.local import LocalExecutor
from raysense.pipelines.load import modules_of
from raysense.pruning import allocation_rules
from raysense.records import Evaluation, EvaluationRequest, TrialSpec
from raysense.store import Store
from raysense.strategies.verdict import quality_budget
from raysense.study import EXTENSIONS, Study

COMMITTED = Path(__file__).parents[1] / "reports/benchmarks/proxies"
BANDS = (0.25, 0.35, 0.45)
STOPPED = "stopped; start again with the same --out to go on"
RUNGS = ("layer", "probe", "preview", "validation")
TILTS = (-2.0, 2.0)
DESCENT = 20
"""Probes of each band's descent."""
EACH, QUICK_EACH = 16, 3
"""Allocations of a band."""
FULL = (
    "rungs.probe={prompts: 6, timesteps: 3}",
    "rungs.preview.prompts=12",
    "rungs.score.prompts=12",
    "rungs.validation.prompts=64",
    "sampling.steps=6",
)
QUICK = (
    "rungs.probe={prompts: 4, timesteps: 2}",
    "rungs.preview.prompts=8",
    "rungs.score.prompts=8",
    "rungs.validation.prompts=8",
    "sampling.steps=2",
)
KEPT = {
    "layer": ("layer_error",),
    "probe": ("probe_error", "text_error"),
    "preview": ("closeness",),
    "validation": ("closeness",),
}
"""Rung -> measures of the rows."""
DESCENDED = "descended"
PROXIES = {
    "layer_error": "layer",
    "probe_error": "probe",
    **{f"probe_error, tilt {tilt:+g}": "probe" for tilt in TILTS},
    "text_error": "probe",
    "preview": "preview",
}
"""Proxy -> the rung whose cost it has."""

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


def each_band(x: Mapping[str, float], y: Mapping[str, float]) -> list[float]:
    """Spearman's correlation of two figures of the same allocations, a band each."""
    return [
        float(stats.spearmanr([x[n] for n in band], [y[n] for n in band]).statistic)
        for band in by_band(x.keys() & y.keys())
        if len(band) > 2
    ]


def within_bands(x: Mapping[str, float], y: Mapping[str, float]) -> float:
    """The mean over the bands of `each_band`; NaN if none has three allocations."""
    found = each_band(x, y)
    return float(np.mean(found)) if found else float("nan")


def better_half(truth: Mapping[str, float]) -> set[str]:
    """The allocations of each band whose truth is below the band's median."""
    found = set()
    for band in by_band(truth):
        median = np.median([truth[name] for name in band])
        found |= {name for name in band if truth[name] < median}
    return found


def run(bed: str, study: Study, out: Path, each: int) -> pd.DataFrame:
    """Measures what the bed's store lacks; its rows."""
    folder = out / bed
    evaluator = Evaluator(study, str(folder))
    chosen = allocations(evaluator, each, study.seed)
    store = Store.open(str(folder), create=True)
    store.begin(
        study.model_dump(mode="json"),
        signature=evaluator.signature,
        inputs=evaluator.inputs,
        denominators={},
        extensions=EXTENSIONS,
        budget=quality_budget(study),
    )
    answers = asked(evaluator, store, {"dense": Allocation(), **chosen}, RUNGS)
    del answers["dense"]
    sound = {n: chosen[n] for n, rungs in answers.items() if not any(e.collapsed for e in rungs.values())}
    ends = descents(evaluator, sound, {name: probe_error(answers[name]) for name in sound})
    answers |= asked(evaluator, store, ends, ("probe", "validation"))
    rows = rows_of(bed, answers, halves(store))
    return pd.DataFrame(rows + tilted_rows(bed, study, sound))


def asked(
    evaluator: Evaluator, store: Store, wanted: Mapping[str, Allocation], rungs: Sequence[str]
) -> dict[str, dict[str, Evaluation]]:
    """The answers to some allocations on some rungs; what is stored is not measured again."""
    specs = [
        TrialSpec(name, "search", tuple(EvaluationRequest(allocation, rung) for rung in rungs))
        for name, allocation in wanted.items()
    ]
    strategy = Fixed(specs)
    LocalExecutor(evaluator).run(strategy, store, signature=evaluator.signature)
    if not strategy.done:
        raise SystemExit(STOPPED)
    return {name: dict(zip(rungs, strategy.answers[name], strict=True)) for name in wanted}


def probe_error(rungs: Mapping[str, Evaluation]) -> float:
    """Of an allocation."""
    return rungs["probe"].measures["probe_error"].value


def descents(
    evaluator: Evaluator, chosen: Mapping[str, Allocation], errors: Mapping[str, float]
) -> dict[str, Allocation]:
    """Where optimising the probe ends in each band that has an allocation to start from."""
    rng = np.random.default_rng(evaluator.study.seed)
    found = {}
    for names in by_band(chosen):
        start, band = min(names, key=errors.__getitem__), names[0].split("/")[0]
        zeros = int(float(band) * evaluator.grid.n)
        found[f"{band}/{DESCENDED}"] = descended(evaluator, chosen[start], zeros, rng)
    return found


def halves(store: Store) -> dict[tuple[str, int], float]:
    """Mean closeness on every other prompt (0), and on the others (1), by key."""
    samples = store.table("samples").to_pandas()
    samples = samples[samples["metric"] == "closeness"]
    order = samples.groupby("key")["prompt_id"].rank(method="first").astype(int) % 2
    means = samples.groupby(["key", order])["value"].mean()
    return {(str(key), int(half)): float(value) for (key, half), value in means.items()}


def rows_of(
    bed: str, answers: Mapping[str, Mapping[str, Evaluation]], half: Mapping[tuple[str, int], float]
) -> list[dict[str, Any]]:
    """One a measure of an allocation on a rung."""
    rows = []
    for name, rungs in answers.items():
        for rung, e in rungs.items():
            common = {"bed": bed, "allocation": name, "rung": rung, "zeros": e.zeros, "nfe": e.nfe,
                      "seconds": e.seconds, "collapsed": bool(e.collapsed)}  # fmt: skip
            rows += [
                {**common, "metric": metric, "value": m.value, "ci_low": m.ci_low, "ci_high": m.ci_high}
                for metric, m in e.measures.items()
                if metric in KEPT[rung]
            ]
            if rung == "validation" and (e.key, 0) in half:
                rows += [
                    {**common, "metric": f"closeness, half {i}", "value": half[e.key, i]} for i in (0, 1)
                ]
    return rows


def tilted_rows(bed: str, study: Study, chosen: Mapping[str, Allocation]) -> list[dict[str, Any]]:
    """The probe with other weights of its timesteps; not stored: it costs next to nothing."""
    rows = []
    for tilt in TILTS:
        probe = study.rungs.probe.model_copy(update={"tilt": tilt})
        other = study.model_copy(update={"rungs": study.rungs.model_copy(update={"probe": probe})})
        with tempfile.TemporaryDirectory() as folder:
            evaluator = Evaluator(other, folder)
            for name, allocation in chosen.items():
                e = evaluator.evaluate(EvaluationRequest(allocation, "probe"))
                rows.append(
                    {
                        "bed": bed,
                        "allocation": name,
                        "rung": "probe",
                        "metric": f"probe_error, tilt {tilt:+g}",
                        "value": e.measures["probe_error"].value,
                        "zeros": e.zeros,
                        "nfe": e.nfe,
                        "seconds": e.seconds,
                        "collapsed": bool(e.collapsed),
                    }
                )
    return rows


def figures_of(rows: pd.DataFrame) -> dict[str, Any]:
    """What one bed's rows say."""
    compared = rows[~rows["allocation"].str.endswith(DESCENDED)]
    bad = set(compared[compared["collapsed"]]["allocation"])
    sound = compared[~compared["allocation"].isin(bad)]

    def values(rung: str, metric: str, sign: float = 1.0) -> dict[str, float]:
        found = sound[(sound["rung"] == rung) & (sound["metric"] == metric)]
        return dict(zip(found["allocation"], sign * found["value"], strict=True))

    truth = values("validation", "closeness", -1.0)
    half = within_bands(*(values("validation", f"closeness, half {i}") for i in (0, 1)))
    reliability = 2 * half / (1 + half)
    upper = better_half(truth)
    cost = sound.groupby("rung")[["nfe", "seconds"]].median()
    figures: dict[str, Any] = {
        "allocations": int(compared["allocation"].nunique()),
        "collapsed": len(bad),
        "split_half_reliability": round(reliability, 3),
    }
    for name, rung in PROXIES.items():
        found = values("preview", "closeness", -1.0) if name == "preview" else values(rung, name)
        correlation = within_bands(found, truth)
        figures[name] = {
            "spearman_within_bands": round(correlation, 3),
            "spearman_of_each_band": [round(value, 3) for value in each_band(found, truth)],
            "of_reliability": round(correlation / reliability, 3),
            "spearman_in_better_half": round(
                within_bands({n: v for n, v in found.items() if n in upper}, truth), 3
            ),
            "cost_to_top": round(float(cost["nfe"][rung] / cost["nfe"]["validation"]), 4),
            "seconds_to_top": round(float(cost["seconds"][rung] / cost["seconds"]["validation"]), 4),
        }
    figures["descents"] = descents_of(rows, bad)
    return figures


def committed() -> dict[str, dict[str, Any]]:
    """The figures of each bed, from the committed rows."""
    return {bed: figures_of(pd.read_parquet(COMMITTED / f"{bed}.parquet")) for bed in STUDIES}


def descents_of(rows: pd.DataFrame, bad: set[str]) -> dict[str, Any]:
    """What optimising the probe did to the probe, and to the closeness, in each band."""
    probes = rows[(rows["metric"] == "probe_error") & ~rows["allocation"].isin(bad)]
    errors = dict(zip(probes["allocation"], probes["value"].tolist(), strict=True))
    truths = rows[(rows["metric"] == "closeness") & (rows["rung"] == "validation")]
    intervals = dict(
        zip(truths["allocation"], truths[["value", "ci_low", "ci_high"]].to_numpy().tolist(), strict=True)
    )

    def shown(name: str) -> dict[str, Any]:
        return {
            "probe_error": round(errors[name], 5),
            "closeness": [round(value, 4) for value in intervals[name]],
        }

    found = {}
    for names in by_band(errors):
        band = names[0].split("/")[0]
        starts = [name for name in names if not name.endswith(DESCENDED)]
        found[band] = {
            "start": shown(min(starts, key=errors.__getitem__)),
            "end": shown(f"{band}/{DESCENDED}"),
        }
    return found


def tables(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures of some beds in Markdown: the correlations, and the descents."""
    names = ("cost, top rung = 1", "Spearman (of each band)", "in the better half of each band")
    lines = [
        "| | " + " | ".join(f"{bed}: {name}" for bed in figures for name in names) + " |",
        "|---" * (1 + len(names) * len(figures)) + "|",
    ]
    for proxy in PROXIES:
        cells = []
        for found in (of_bed[proxy] for of_bed in figures.values()):
            bands = ", ".join(f"{value:.2f}" for value in found["spearman_of_each_band"])
            cells += [
                f"{found['cost_to_top']:.3f}",
                f"{found['spearman_within_bands']:.2f} ({bands})",
                f"{found['spearman_in_better_half']:.2f}",
            ]
        lines.append(f"| {proxy} | " + " | ".join(cells).replace("-", "−") + " |")
    lines += ["", "| descent | probe error: start, end | closeness: start | end |", "|---|---|---|---|"]
    for bed, found in figures.items():
        for band, ends in found["descents"].items():
            errors = ", ".join(f"{ends[end]['probe_error']:.4f}" for end in ("start", "end"))
            seen = ("{:.3f} [{:.3f}, {:.3f}]".format(*ends[end]["closeness"]) for end in ("start", "end"))
            lines.append(f"| {bed}, {100 * float(band):.0f} % | {errors} | " + " | ".join(seen) + " |")
    return "\n".join(lines)


def holds(figures: Mapping[str, Any]) -> bool:
    """Whether one bed's figures meet the bars."""
    return all(
        figures[name]["of_reliability"] >= bar and figures[name]["cost_to_top"] <= cost
        for name, (bar, cost) in BARS.items()
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs and prints the result as JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_EACH} allocations a band, of few prompts"
    )
    parser.add_argument("--bed", choices=STUDIES, action="append", help="default: both")
    parser.add_argument("--out", type=Path, help="folder of the stores; a run that stopped goes on there")
    parser.add_argument("--table", action="store_true", help="measure nothing: tables of the committed rows")
    options = parser.parse_args(arguments)
    if options.table:
        print(tables(committed()))
        return 0
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        for bed in options.bed or STUDIES:
            began = time.perf_counter()
            study = study_of(bed, ["name=proxies", *(QUICK if options.quick else FULL)])
            rows = run(bed, study, out, QUICK_EACH if options.quick else EACH)
            rows.to_parquet(out / f"{bed}.parquet", index=False, write_page_checksum=True)
            figures[bed] = figures_of(rows) | {"seconds": round(time.perf_counter() - began, 1)}
    print(tables(figures))
    held = all(holds(found) for found in figures.values())
    bar = {name: {"of_reliability": b, "cost_to_top": c} for name, (b, c) in BARS.items()}
    print(json.dumps({"benchmark": "proxies", "figures": figures, "bar": bar, "holds": held}))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
