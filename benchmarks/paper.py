"""The paper that raysense starts from, re-run on both bundled pipelines: each of its claims, with intervals.

    python -m benchmarks.paper                  # reads the committed rows and writes docs/paper.md; was it up to date?
    python -m benchmarks.paper --measure DIR    # measures all rows anew into DIR, then writes the page from them
    python -m benchmarks.paper --quick          # measures two committed points again: do they agree?

Ramesh & Zhao, "Efficient Pruning of Text-to-Image Models: Insights from Pruning Stable Diffusion" (arXiv 2411.15113).
Its grid is search/sd2_paper.yaml's; search/paper_bundled.yaml and search/paper_transformer.yaml are the same grid on
pipelines that paint 32 x 32 pictograms. Differences between two points are paired prompt by prompt. A verdict follows
from intervals alone, by the rules in `verdict`; the last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

import raysense as rs
from benchmarks.sd2_table import DATA, LINEAR, PARAMETERS
from raysense.metrics.intervals import LEVEL, Interval, mean_interval, quantile
from raysense.results.sweeps import points_of

Floats = npt.NDArray[np.float64]

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "reports/paper"
PAGE = ROOT / "docs/paper.md"

LOSS = "clip_score_drop"
BOUND = 0.01
"""Share of the dense CLIP score whose loss counts as minimal: the paper's recommended point gave up 0.9 %."""

TEXT = (0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8)
METHODS = {"magnitude": ("magnitude", False), "Wanda": ("wanda", False), "OWL-magnitude": ("magnitude", True),
           "OWL-Wanda": ("wanda", True)}  # fmt: skip


@dataclass(frozen=True)
class Bed:
    """A pipeline's rows.

    Attributes:
        name: In a sentence.
        folder: Below the rows' folder.
        run: Its sweep.
        encoders: Components that read text.
        denoiser: The component that paints.
    """

    name: str
    folder: str
    run: rs.Run
    encoders: tuple[str, ...]
    denoiser: str

    @cached_property
    def points(self) -> pd.DataFrame:
        """Every point with its shares: ``text`` and ``paint``, 0 where a part is dense."""
        points = points_of(self.run)
        shares = points["shares"].map(json.loads)
        encoder, denoiser = self.encoders[0], self.denoiser
        found = points.assign(
            text=[_share(one, encoder) for one in shares], paint=[_share(one, denoiser) for one in shares]
        )
        return found.assign(
            owl=found["rule"].str.contains("owl"), wanda=found["method"].str.contains("wanda")
        )

    @cached_property
    def by_prompt(self) -> pd.DataFrame:
        """CLIP score lost: a row a point's key, a column a prompt."""
        samples = self.run.table("samples")
        lost = samples[(samples["metric"] == LOSS) & samples["key"].isin(self.points["key"])]
        return lost.pivot_table(index="key", columns="prompt_id", values="value")

    @cached_property
    def dense(self) -> pd.Series[Any]:
        """The dense pipeline's CLIP score on the rung of the points, as the table `measures` has it."""
        rows = self.run.table("evaluations").query("stage == 'baseline' and rung == 'score'")
        measures = self.run.table("measures")
        own = measures[(measures["key"] == rows["key"].iloc[0]) & (measures["metric"] == "clip_score")]
        first: pd.Series[Any] = own.iloc[0]
        return first

    @property
    def bound(self) -> float:
        """The loss of CLIP score that counts as minimal."""
        return BOUND * float(self.dense["value"])

    def of_text(self, method: str, share: float) -> Floats:
        """What each prompt lost by a method at a share of the text encoders' Linear weights."""
        base, owl = METHODS[method]
        own = self.points[
            (self.points["point_set"] == "text-encoder") & np.isclose(self.points["text"], share)
        ]
        own = own[(own["wanda"] == (base == "wanda")) & (own["owl"] == owl)]
        return self._lost(own)

    def of_denoiser(self, share: float, name: str = "denoiser") -> Floats:
        """What each prompt lost at a share of the denoiser's Linear weights, by magnitude."""
        own = self.points[(self.points["point_set"] == name) & np.isclose(self.points["paint"], share)]
        return self._lost(own[own["rule"] == "uniform"])

    def joint(self, text: float, paint: float) -> Floats:
        """What each prompt lost with both pruned, by magnitude."""
        return self._lost(self.pair(text, paint))

    @property
    def pairs(self) -> pd.DataFrame:
        """The points with both pruned, by magnitude."""
        own = self.points[self.points["point_set"].isin(["diagonal", "ratios"])]
        return own[(own["rule"] == "uniform") & ~own["wanda"]]

    def pair(self, text: float, paint: float) -> pd.DataFrame:
        """One of them."""
        return self.pairs[np.isclose(self.pairs["text"], text) & np.isclose(self.pairs["paint"], paint)]

    def _lost(self, own: pd.DataFrame) -> Floats:
        return np.asarray(self.by_prompt.loc[own["key"].iloc[0]].to_numpy(dtype=np.float64))

    def between(self, lost: dict[float, Floats], share: float) -> Floats:
        """What each prompt lost at a share between measured ones, on the straight line; nothing at 0."""
        at = [0.0, *sorted(lost)]
        rows = np.stack([np.zeros_like(next(iter(lost.values()))), *(lost[s] for s in sorted(lost))])
        return np.array([np.interp(share, at, column) for column in rows.T])


def _share(shares: dict[str, float], component: str) -> float:
    return next((share for group, share in shares.items() if group.split(":")[0] == component), 0.0)


def beds(rows: Path) -> list[Bed]:
    """Both pipelines' rows."""
    return [
        Bed("`bundled`", "bundled", rs.Run(str(rows / "bundled")), ("text_encoder",), "unet"),
        Bed("`bundled-transformer`", "transformer", rs.Run(str(rows / "transformer")),
            ("text_encoder", "text_encoder_2"), "transformer"),
    ]  # fmt: skip


def of_all(values: Floats, looks: int) -> Interval:
    """The mean over prompts with an interval that holds for so many looks at once (Bonferroni)."""
    return mean_interval(values, level=1 - (1 - LEVEL) / looks)


def verdict(favour: int, against: int, of: int = 1) -> str:
    """Of a claim, from how many of its places surely favour it and how many surely contradict it."""
    if 2 * favour >= of and not against:
        return "confirmed"
    if 2 * against >= of and not favour:
        return "refuted"
    return "undecided"


# --- the claims -----------------------------------------------------------------------------------------


def against_magnitude(bed: Bed, rival: str) -> list[tuple[float, Interval]]:
    """What a rival loses more than magnitude at each share of the text encoder; intervals hold for all shares."""
    return [
        (share, of_all(bed.of_text(rival, share) - bed.of_text("magnitude", share), len(TEXT)))
        for share in TEXT
    ]


def reaching(curve: dict[float, Floats], bound: float) -> tuple[float | None, float, float]:
    """The share at which a loss reaches a bound, and where its interval's ends do: (place, earliest, latest)."""
    shares = [0.0, *sorted(curve)]
    means = [mean_interval(curve[share]) for share in sorted(curve)]

    def first(values: Sequence[float]) -> float | None:
        told = [0.0, *values]
        for i in range(1, len(told)):
            if told[i - 1] < bound <= told[i]:
                part = (bound - told[i - 1]) / (told[i] - told[i - 1])
                return float(shares[i - 1] + part * (shares[i] - shares[i - 1]))
        return None

    place = first([m.value for m in means])
    early, late = first([m.ci_high for m in means]), first([m.ci_low for m in means])
    return place, early if early is not None else shares[-1], late if late is not None else 1.0


def text_curve(bed: Bed) -> dict[float, Floats]:
    """Magnitude on the text encoder."""
    return {share: bed.of_text("magnitude", share) for share in TEXT}


def denoiser_curve(bed: Bed, name: str = "denoiser", rule: str = "uniform") -> dict[float, Floats]:
    """Magnitude on the denoiser."""
    own = bed.points[(bed.points["point_set"] == name) & (bed.points["rule"] == rule)]
    own = own[~own["wanda"]]
    return {float(row["paint"]): bed._lost(own[own["key"] == row["key"]]) for row in own.to_dict("records")}


def beyond_the_sum(bed: Bed) -> list[tuple[float, float, Interval, Interval]]:
    """Along the diagonal: lost together, and beyond the sum of both alone; intervals of this hold for all points."""
    text, paint = text_curve(bed), denoiser_curve(bed)
    pairs = sorted(
        {
            (row["text"], row["paint"])
            for row in bed.points.query("point_set == 'diagonal'").to_dict("records")
        }
    )
    found = []
    for a, b in pairs:
        joint = bed.joint(a, b)
        alone = bed.between(text, a) + bed.between(paint, b)
        found.append((a, b, mean_interval(joint), of_all(joint - alone, len(pairs))))
    return found


def frechet_rises(bed: Bed) -> list[tuple[float, Interval]]:
    """The Fréchet distance's rise at each share of lightly pruned denoisers; intervals hold for all shares."""
    own = bed.points[(bed.points["point_set"] == "denoiser") & (bed.points["paint"] <= 0.31)]
    # Every image has a prompt of its own here; see `raysense.metrics.intervals.influence_interval`.
    freedom = bed.by_prompt.shape[1] - 1
    wider = quantile(freedom, 1 - (1 - LEVEL) / len(own)) / quantile(freedom)
    found = []
    for row in own.sort_values("paint").to_dict("records"):
        value, low, high = (row[f"frechet_rise{end}"] for end in ("", "_ci_low", "_ci_high"))
        interval = Interval(
            value, value - wider * (value - low), value + wider * (high - value), int(row["frechet_rise_n"])
        )
        found.append((float(row["paint"]), interval))
    return found


def at_the_bound(bed: Bed) -> list[tuple[str, float | None, float, float]]:
    """Zeros over all parameters of the denoiser where 1 % of the CLIP score is lost, by what may be pruned."""
    layers = bed.run.table("layers").query("component == @bed.denoiser")
    parameters = float(layers["weights"].sum())
    linear = float(layers.query("kind == 'linear'")["weights"].sum())
    found = []
    for label, name, rule, size in (
        ("Linear layers, one ratio", "denoiser", "uniform", linear),
        ("all kinds, one ratio", "all-kinds", "uniform", parameters),
        ("all kinds, LAMP's shares", "all-kinds", "lamp", parameters),
    ):
        place, early, late = reaching(denoiser_curve(bed, name, rule), bed.bound)
        scale = size / parameters
        found.append((label, None if place is None else place * scale, early * scale, late * scale))
    return found


Updates = dict[str, list[dict[str, Any]]]
"""Pipeline -> what `updating` gave."""


def updating(rows: Path, bed: Bed) -> list[dict[str, Any]]:
    """What methods that update weights lose less than magnitude at the same shares, if it was measured."""
    folder = rows / f"{bed.folder}-updates"
    if not (folder / "study.json").exists():
        return []
    run = rs.Run(str(folder))
    points = points_of(run)
    samples = run.table("samples")
    lost = samples[samples["metric"] == LOSS].pivot_table(index="key", columns="prompt_id", values="value")
    found = []
    groups = points["groups"].unique()
    looks = int(points[points["method"] != "magnitude"].shape[0])
    for group in groups:
        for row in points[points["groups"] == group].sort_values("sparsity").to_dict("records"):
            if row["method"] == "magnitude":
                continue
            same = points[(points["groups"] == group) & (points["method"] == "magnitude")]
            base = same.iloc[(same["sparsity"] - row["sparsity"]).abs().argsort()[:1]]["key"].iloc[0]
            difference = of_all((lost.loc[row["key"]] - lost.loc[base]).to_numpy(dtype=float), looks)
            found.append(
                {"group": group, "share": row["sparsity"], "method": row["method"], "loss": row[LOSS],
                 "magnitude": mean_interval(lost.loc[base].to_numpy(dtype=float)), "difference": difference}
            )  # fmt: skip
    return found


# --- the page -------------------------------------------------------------------------------------------


def published() -> pd.DataFrame:
    """The published rows of Stable Diffusion 2."""
    return pd.read_csv(DATA, comment="#")


def sd2(text: float, paint: float, method: str = "magnitude") -> str:
    """FID and CLIP score of a published point, or a dash."""
    table = published()
    own = table[np.isclose(table["text_encoder_sparsity"], text) & np.isclose(table["unet_sparsity"], paint)]
    if text:
        own = own[own["text_encoder_method"] == method]
    own = own[own["batch"] == "main"] if (own["batch"] == "main").any() else own
    if own.empty:
        return "–"
    return f"{own['fid_10k'].iloc[0]:.1f} / {own['clip_vit_b32_cosine'].iloc[0]:.4f}"


def sd2_alone(column: str, part: str) -> dict[float, float]:
    """Share -> the published damage of pruning one component by magnitude: what FID rose, or the CLIP score fell by."""
    table, sign = published(), 1 if column == "fid_10k" else -1
    own = table[(table["scope"] == part) & (table[f"{part}_method"] == "magnitude")]
    dense = table[table["scope"] == "dense"][column].iloc[0]
    found = zip(own[f"{part}_sparsity"], sign * (own[column] - dense), strict=True)
    return {0.0: 0.0} | {float(share): float(damage) for share, damage in sorted(found)}


def sd2_bracket(lost: dict[float, float]) -> str:
    """The published shares between which 1 % of the dense CLIP score is lost."""
    dense = published().query("scope == 'dense'")["clip_vit_b32_cosine"].iloc[0]
    high = next(share for share in lost if lost[share] >= BOUND * dense)
    return f"{max(share for share in lost if share < high):.0%} to {high:.0%}"


def sd2_together(pairs: Iterable[tuple[float, float]]) -> list[str]:
    """Published joint damage over the sum of both alone, on straight lines, where that sum is a damage."""
    table, found = published(), []
    for a, b in pairs:
        own = table[np.isclose(table["text_encoder_sparsity"], a) & np.isclose(table["unet_sparsity"], b)]
        own = own[own["text_encoder_method"] == "magnitude"]
        if own.empty:
            continue
        parts = []
        for column, sign in (("fid_10k", 1), ("clip_vit_b32_cosine", -1)):
            joint = sign * (own[column].iloc[0] - table[table["scope"] == "dense"][column].iloc[0])
            text, paint = sd2_alone(column, "text_encoder"), sd2_alone(column, "unet")
            alone = float(np.interp(a, [*text], [*text.values()]) + np.interp(b, [*paint], [*paint.values()]))
            parts.append(f"{joint / alone:.2f}" if alone > 0 else "–")
        if set(parts) != {"–"}:
            found.append(f"{a:.1%} / {b:.1%}: {' and '.join(parts)}")
    return found


def told(interval: Interval) -> str:
    """An interval in thousandths of the CLIP score."""
    value, low, high = (1000 * end for end in (interval.value, interval.ci_low, interval.ci_high))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def share_told(interval: Interval) -> str:
    """A share of the CLIP score with its interval."""
    return f"{interval.value:.1%} [{interval.ci_low:.1%}, {interval.ci_high:.1%}]"


def counted(intervals: Sequence[Interval], what: str, favour: str, against: str, up: bool = True) -> str:
    """A verdict over several places, with the counts; up: what favours the claim lies above 0."""
    above, below = sum(i.ci_low > 0 for i in intervals), sum(i.ci_high < 0 for i in intervals)
    yes, no = (above, below) if up else (below, above)
    return f"{verdict(yes, no, len(intervals))} ({yes} of {len(intervals)} {what} {favour}, {no} {against})"


def place_told(place: float | None, early: float, late: float) -> str:
    """A share with its interval."""
    where = "not reached" if place is None else f"{place:.1%}"
    return f"{where} [{early:.1%}, {'–' if late >= 1 else f'{late:.1%}'}]"


def claims(all_beds: Sequence[Bed], updates: Updates) -> dict[str, dict[str, str]]:
    """Claim -> pipeline -> verdict."""
    found: dict[str, dict[str, str]] = {}
    for bed in all_beds:
        for rival in ("Wanda", "OWL-magnitude", "OWL-Wanda"):
            found.setdefault(f"magnitude beats {rival} on the text encoder", {})[bed.folder] = counted(
                [interval for _, interval in against_magnitude(bed, rival)], "shares", "for", "against"
            )
        text, paint = reaching(text_curve(bed), bed.bound), reaching(denoiser_curve(bed), bed.bound)
        found.setdefault("the text encoder takes more than the denoiser", {})[bed.folder] = verdict(
            int(text[1] > paint[2]), int(text[2] < paint[1])
        )
        lost = mean_interval(bed.joint(0.475, 0.35) / bed.dense["value"])
        found.setdefault("47.5 % and 35 % lose at most 1 % of the CLIP score", {})[bed.folder] = (
            f"{verdict(int(lost.ci_high <= BOUND), int(lost.ci_low > BOUND))} ({share_told(lost)})"
        )
        for label, four in (
            ("text encoder", [bed.of_text("magnitude", s) for s in (0.5, 0.6, 0.7, 0.8)]),
            ("denoiser", [bed.of_denoiser(s) for s in (0.3, 0.4, 0.5, 0.6)]),
        ):
            bend = mean_interval((four[3] - four[2]) - (four[1] - four[0]))
            found.setdefault(f"the {label}'s damage accelerates", {})[bed.folder] = verdict(
                int(bend.ci_low > 0), int(bend.ci_high < 0)
            )
        found.setdefault("components damage more together than apart past the cliff", {})[bed.folder] = (
            counted([interval for *_, interval in beyond_the_sum(bed)], "points", "more", "less")
        )
        found.setdefault("the Fréchet distance improves under light pruning of the denoiser", {})[
            bed.folder
        ] = counted([interval for _, interval in frechet_rises(bed)], "shares", "for", "against", up=False)
        kinds = at_the_bound(bed)
        found.setdefault(
            "beyond the paper: pruning all kinds removes more at 1 % lost than Linear layers alone", {}
        )[bed.folder] = verdict(int(kinds[1][2] > kinds[0][3]), int(kinds[1][3] < kinds[0][2]))
        own = [row["difference"] for row in updates[bed.folder] if row["method"] in ("sparsegpt", "obs_diff")]
        found.setdefault("magnitude beats SparseGPT and OBS-Diff (not in the paper)", {})[bed.folder] = (
            counted(own, "comparisons", "for", "against") if own else "not measured"
        )
    return found


HEAD = """# The paper, re-run

Ramesh & Zhao, *Efficient Pruning of Text-to-Image Models: Insights from Pruning Stable Diffusion* (arXiv 2411.15113),
prune the Linear layers of Stable Diffusion 2 at 100 configurations and judge each by FID and CLIP score on 10,000
captions, without intervals or noise seeds. Here the same grid (one configuration dense, 32 of the text encoder by
four methods, 9 of the denoiser, 36 on the joint diagonal, 22 on the ratio grid) was measured on the two pipelines
that raysense carries, beside the 69 rows of Stable Diffusion 2 that are public. Of the 36 + 22 joint configurations
only {public} are among the public rows; which the others were is not known, so the diagonal is walked by all four
methods.

This page is written by `python -m benchmarks.paper` from the committed rows (`reports/paper`); `--measure DIR`
measures them anew, `--quick` two of them. [The sweeps](guides/sensitivity.md) are `search/paper_bundled.yaml` and
`search/paper_transformer.yaml`; for Stable Diffusion 2 itself, `search/sd2_paper.yaml`, priced by `raysense plan
search/sd2_paper.yaml --sweep`, **not measured**.

## What can be concluded, and what not

- The two pipelines paint 32 × 32 pictograms, 2.7 and 3.6 M parameters in the denoiser, {prompts} prompts a point, one
  seed. They say how the claims fare *on them*. Nothing here says that a claim is true or false of Stable Diffusion 2.
- CLIP score: the bundled scorer ({scorer}), whose dense values are
  {dense}; Stable Diffusion 2's are ViT-B/32 cosines, dense
  {sd2_dense:.4f}. Losses are compared as shares of the dense value where that matters. Closeness and Fréchet distances:
  {features}. The reference of the latter is dense images of other seeds, not photographs, and {prompts}
  images are fewer than features: its values compare with no published FID.
- Differences are paired prompt by prompt; intervals are 95 %, and where a claim is looked at in several places they
  hold for all of them (Bonferroni). *Confirmed*: at least half of the places surely favour the claim and none surely
  contradicts it; *refuted*: the other way round; *undecided*: all else, with the counts.

## The claims
"""


def page(all_beds: Sequence[Bed], updates: Updates, found: dict[str, dict[str, str]]) -> str:
    """The whole page, of what `claims` found among others."""
    parts = [
        _head(all_beds),
        _claims_table(all_beds, found),
        _methods(all_beds),
        _components(all_beds),
        _together(all_beds),
        _counts(all_beds),
        _kinds(all_beds),
        _updates(all_beds, updates),
    ]
    return "\n".join(parts).rstrip() + "\n"


def header(*cells: str) -> list[str]:
    """The first two lines of a table."""
    line = f"| {' | '.join(cells)} |"
    return [line, "|" + "---|" * (line.count("|") - 1)]


def _head(all_beds: Sequence[Bed]) -> str:
    table = published()
    joint = table[(table["text_encoder_sparsity"] > 0) & (table["unet_sparsity"] > 0)]
    measures = pd.concat([bed.run.table("measures") for bed in all_beds])
    extractor = {
        str(metric): " and ".join(own.unique()) for metric, own in measures.groupby("metric")["extractor"]
    }
    assert extractor["closeness"] == extractor["frechet_rise"]
    dense = [bed.dense for bed in all_beds]
    return HEAD.format(
        public=len(joint),
        dense=" and ".join(f"{d['value']:.4f} [{d['ci_low']:.4f}, {d['ci_high']:.4f}]" for d in dense),
        prompts=" and ".join(dict.fromkeys(str(bed.by_prompt.shape[1]) for bed in all_beds)),
        scorer=f"`{extractor[LOSS]}`",
        features=f"`{extractor['closeness']}`",
        sd2_dense=table[table["scope"] == "dense"]["clip_vit_b32_cosine"].iloc[0],
    )


def _claims_table(all_beds: Sequence[Bed], found: dict[str, dict[str, str]]) -> str:
    lines = header("claim", *(bed.name for bed in all_beds))
    lines += [
        f"| {claim} | {' | '.join(verdicts[bed.folder] for bed in all_beds)} |"
        for claim, verdicts in found.items()
    ]
    return "\n".join(lines) + "\n"


def _methods(all_beds: Sequence[Bed]) -> str:
    lines = [
        "## Methods on the text encoder\n",
        "Thousandths of CLIP score that a rival loses *more* than magnitude at the same share of the text "
        "encoder's Linear weights "
        "(negative: it loses less), interval for all eight shares; beside it Stable Diffusion 2's FID / CLIP score "
        "of the rival, and "
        "of magnitude. OWL as published: one ratio a transformer block (λ = 0.08, M = 7).\n",
    ]  # fmt: skip
    for rival in ("Wanda", "OWL-magnitude", "OWL-Wanda"):
        named = rival.lower()
        lines += header(rival, *(bed.name for bed in all_beds), f"SD 2, {rival}", "SD 2, magnitude")
        of_beds = [dict(against_magnitude(bed, rival)) for bed in all_beds]
        for share in TEXT:
            cells = [*(told(one[share]) for one in of_beds), sd2(share, 0, named), sd2(share, 0)]
            lines.append(f"| {share:.0%} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _components(all_beds: Sequence[Bed]) -> str:
    lines = [
        "## Text encoder against denoiser\n",
        "Thousandths of CLIP score lost by magnitude, one part pruned and the other dense.\n",
        *header(
            "share", *(f"{bed.name}, {part}" for bed in all_beds for part in ("text encoder", "denoiser"))
        ),
    ]
    curves = [denoiser_curve(bed) for bed in all_beds]
    for share in sorted({*TEXT, 0.1, 0.2, 0.35, 0.45}):
        cells = []
        for bed, paint in zip(all_beds, curves, strict=True):
            cells.append(told(mean_interval(bed.of_text("magnitude", share))) if share in TEXT else "–")
            own = next((lost for at, lost in paint.items() if np.isclose(at, share)), None)
            cells.append("–" if own is None else told(mean_interval(own)))
        lines.append(f"| {share:.0%} | {' | '.join(cells)} |")
    lines += [
        "",
        "Where 1 % of the dense CLIP score is lost (read off straight lines; interval from the points' intervals):\n",
    ]
    for bed, paint in zip(all_beds, curves, strict=True):
        places = [place_told(*reaching(curve, bed.bound)) for curve in (text_curve(bed), paint)]
        lines.append(f"- {bed.name}: text encoder {places[0]}, denoiser {places[1]} of their Linear weights.")
    text, unet = (sd2_bracket(sd2_alone("clip_vit_b32_cosine", part)) for part in ("text_encoder", "unet"))
    lines.append(f"- Stable Diffusion 2, between its public rows: text encoder {text}, U-Net {unet}.\n")
    return "\n".join(lines)


def _together(all_beds: Sequence[Bed]) -> str:
    lines = [
        "## Do components add up?\n",
        "Along the diagonal, magnitude: thousandths of CLIP score lost by both together beyond the sum of each alone "
        "(straight lines between the measured single points), interval for all nine. Stable Diffusion 2: FID / CLIP "
        "score of the joint point.\n",
        *header("text / denoiser", *(f"{bed.name}, together | beyond the sum" for bed in all_beds), "SD 2"),
    ]  # fmt: skip
    sums = [beyond_the_sum(bed) for bed in all_beds]
    for rows in zip(*sums, strict=True):
        text, paint = rows[0][:2]
        cells = [cell for row in rows for cell in (told(row[2]), told(row[3]))]
        lines.append(f"| {text:.1%} / {paint:.1%} | {' | '.join(cells)} | {sd2(text, paint)} |")
    lines += [
        "",
        "Straight lines lie above a curve that bends upwards, so sums are rather too large, and what is beyond them "
        "rather too small. Stable Diffusion 2 (public rows, no intervals): what both lose together over the sum of "
        f"each alone, FID and CLIP score: {'; '.join(sd2_together((a, b) for a, b, *_ in sums[0]))}.\n",
    ]
    return "\n".join(lines)


def _counts(all_beds: Sequence[Bed]) -> str:
    zeros = LINEAR["text_encoder"] * 0.475 + LINEAR["unet"] * 0.35
    lines = [
        "## What 47.5 % and 35 % count\n",
        "The paper's 38.5 % of Stable Diffusion 2 counts weights that its code never prunes. Zeros written at "
        "47.5 / 35 %: "
        f"{zeros / PARAMETERS:.1%} of text encoder and U-Net, whose convolutions hold most weights.\n",
    ]
    for bed in all_beds:
        row = bed.pair(0.475, 0.35).iloc[0]
        total = bed.run.record["denominators"]["n_components"]
        lost = mean_interval(bed.joint(0.475, 0.35) / bed.dense["value"])
        lines.append(
            f"- {bed.name}: {int(row['zeros']):,} zeros counted, {row['zeros'] / total:.1%} of the studied "
            "components' parameters; "
            f"{share_told(lost)} of the CLIP score lost, likeness to the dense images (closeness) "
            f"{row['closeness']:.3f} [{row['closeness_ci_low']:.3f}, {row['closeness_ci_high']:.3f}]."
        )
    lines.append(
        "\nThe sparsest measured pair whose whole interval stays within 1 % of the CLIP score, by magnitude:\n"
    )
    for bed in all_beds:
        lines.append(f"- {bed.name}: {best_pair(bed)}")
    return "\n".join(lines) + "\n"


def best_pair(bed: Bed) -> str:
    """The sparsest joint point within 1 %, in words."""
    own = bed.pairs[bed.pairs[f"{LOSS}_ci_high"] <= bed.bound]
    if own.empty:
        return "none"
    row = own.sort_values("zeros").iloc[-1]
    lost = mean_interval(bed.joint(row["text"], row["paint"]) / bed.dense["value"])
    zeros = row["zeros"] / bed.run.record["denominators"]["n_components"]
    return (
        f"text encoder {row['text']:.1%}, denoiser {row['paint']:.1%}: {zeros:.1%} of the parameters, "
        f"{share_told(lost)} lost"
    )


def _kinds(all_beds: Sequence[Bed]) -> str:
    lines = [
        "## What convolutions and shares by layer add\n",
        "Zeros over all prunable weights of the denoiser at which 1 % of the CLIP score is lost, magnitude, text "
        "encoder dense. The "
        "transformer has hardly any convolution, so there all kinds are nearly its Linear layers.\n",
        *header("what is pruned", *(bed.name for bed in all_beds)),
    ]  # fmt: skip
    for rows in zip(*(at_the_bound(bed) for bed in all_beds), strict=True):
        lines.append(f"| {rows[0][0]} | {' | '.join(place_told(*row[1:]) for row in rows)} |")
    return "\n".join(lines) + "\n"


def _updates(all_beds: Sequence[Bed], updates: Updates) -> str:
    lines = ["## Methods that update what stays\n"]
    if not any(updates.values()):
        return "\n".join([*lines, "SparseGPT and OBS-Diff on this grid: not measured.\n"])
    lines += [
        "Not in the paper, whose code has no Hessian method. Linear layers only, of 16 levels here (5 % each, so "
        "that one ratio is only nearly one). Thousandths of CLIP score lost more than magnitude at the same share "
        "(negative: less), interval for all comparisons of the pipeline. `search/paper_bundled_updates.yaml`, "
        "`search/paper_transformer_updates.yaml`.\n",
    ]
    for bed in all_beds:
        found = pd.DataFrame(updates[bed.folder])
        if found.empty:
            lines.append(f"{bed.name}: not measured.\n")
            continue
        names = list(dict.fromkeys(found["method"]))
        lines += header(bed.name, "share", "magnitude loses", *names)
        found["level"] = found["share"].round(2)
        for (group, share), own in found.groupby(["group", "level"], sort=False):
            cells = [told(own[own["method"] == name]["difference"].iloc[0]) for name in names]
            lines.append(
                f"| {group} | {share:.0%} | {told(own['magnitude'].iloc[0])} | {' | '.join(cells)} |"
            )
        lines.append("")
    return "\n".join(lines)


def told_by(rows: Path) -> tuple[list[Bed], Updates, dict[str, dict[str, str]]]:
    """What the page is made from: both pipelines, their methods that update weights, the claims."""
    all_beds = beds(rows)
    updates = {bed.folder: updating(rows, bed) for bed in all_beds}
    return all_beds, updates, claims(all_beds, updates)


def words_of(found: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The verdicts alone, without what they rest on."""
    return {claim: {bed: text.split()[0] for bed, text in own.items()} for claim, own in found.items()}


# --- rows -----------------------------------------------------------------------------------------------


def measure(out: Path) -> Path:
    """Measure all rows anew."""
    for bed in ("bundled", "transformer"):
        for kind in ("", "-updates"):
            study = ROOT / f"search/paper_{bed}{kind.replace('-', '_')}.yaml"
            rs.sweep(study, out=out / f"{bed}{kind}", resume=True, page=False)
    return out


def again(rows: Path) -> tuple[int, int]:
    """Measure two committed points anew in this process: how many agree within their intervals, of how many.

    The heaviest of their sets: their intervals lie far from 0, which pruning nothing would give.
    """
    import tempfile

    from raysense.evaluation.evaluator import Evaluator
    from raysense.records import EvaluationRequest

    run = rs.Run(str(rows / "bundled"))
    points = points_of(run)
    chosen = points[(points["method"] == "magnitude") & (points["rule"] == "uniform")]
    chosen = chosen[chosen["point_set"].isin(["denoiser", "diagonal"])]
    picked, agreed = chosen.sort_values("sparsity").groupby("point_set").tail(1), 0
    with tempfile.TemporaryDirectory(prefix="raysense-paper-") as place:
        evaluator = Evaluator(run.study, place)
        for row in picked.to_dict("records"):
            found = evaluator.evaluate(EvaluationRequest(run.allocation(row["allocation"]), row["rung"]))
            value = found.measures[LOSS].value
            inside = row[f"{LOSS}_ci_low"] <= value <= row[f"{LOSS}_ci_high"]
            agreed += inside
            print(
                f"{row['groups']} {row['sparsity']:.1%}: {value:.4f}, stored {row[LOSS]:.4f}: {bool(inside)}"
            )
    return agreed, len(picked)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page; the last line is one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--measure", type=Path, metavar="DIR", help="measure all rows anew into DIR first")
    parser.add_argument(
        "--quick", action="store_true", help="measure two committed points again, write no page"
    )
    given = parser.parse_args(arguments)
    rows = measure(given.measure) if given.measure else ROWS
    all_beds, updates, found = told_by(rows)
    figures: dict[str, Any] = {"claims": found}
    if given.quick:
        agreed, of = again(rows)
        figures |= {"measured_again": of, "agree": agreed}
        bar, holds = {"agree": "all"}, agreed == of > 0
    else:
        before, text = PAGE.read_text(encoding="utf-8"), page(all_beds, updates, found)
        PAGE.write_text(text, encoding="utf-8")
        print(f"wrote {PAGE.relative_to(ROOT)}")
        if given.measure:
            bar, holds = (
                {"verdicts": "those of the committed rows"},
                words_of(found) == words_of(told_by(ROWS)[2]),
            )
        else:
            bar, holds = {"page": "as it was"}, text == before
    print(json.dumps({"benchmark": "paper", "figures": figures, "bar": bar, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
