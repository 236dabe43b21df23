"""One self-contained HTML page of a study: the answer first, then why to believe it. No network, no server."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

import raysense
from raysense import plugins
from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.metrics.spec import base_of
from raysense.records import Bound
from raysense.results.charts.allocation_bars import allocation_bars
from raysense.results.charts.common import Spec
from raysense.results.charts.curves import curves
from raysense.results.charts.pareto import pareto
from raysense.results.charts.quality import quality
from raysense.results.charts.sensitivity_map import sensitivity_map
from raysense.results.looks import how_tested, look_in_words
from raysense.results.near_miss import at_max_layer_sparsity_in_words, miss_in_words
from raysense.results.pictures import Strip, in_words, strips
from raysense.results.run import TOLERABLE, Run
from raysense.store.disk import Disk
from raysense.strategies.verdict import held_out_stretch

logger = logging.getLogger(__name__)

NAME = "report.html"
GENERATOR = "raysense report"
_QUOTED = re.compile(r"`([^`]+)`")
REFRESH_SECONDS = 20

STRATEGIES = {
    "solver": "raysense: shared out by measured sensitivity",
    "joint": "raysense: the solver’s, corrected by what whole allocations were measured to do",
    "uniform": "one ratio for all layers",
    "linear_uniform": "one ratio for the Linear layers alone (Ramesh & Zhao)",
    "lamp": "LAMP: by layer-adaptive magnitude, not measured",
    "erk": "ERK: by the layers' shapes, not measured",
    "global": "one magnitude threshold for all layers, not measured",
}
"""Ways to share out the pruning, in words; others are shown by their own names."""


def write_page(
    uri: str,
    *,
    images: int = 6,
    paint: bool = True,
    code: bool = False,
    tell: Callable[[str], None] | None = None,
) -> str:
    """Write a study's page into its folder and return its path.

    Args:
        uri: The study's folder or ``s3://`` address; finished or not.
        images: Prompts in the picture table; 0 for none.
        paint: Whether pictures that are not painted yet may be painted now, which loads the pipeline.
        code: Whether they may be if that runs code that the study names.
        tell: Called with a line before each row of pictures that is painted.

    Raises:
        RaysenseError: There is no study, or what is there is damaged.
    """
    run = Run(uri)
    run.disk.write(NAME, build(run, images=images, paint=paint, code=code, tell=tell).encode())
    return run.disk.path(NAME)


def page_of(uri: str) -> str:
    """Where a study's page is."""
    return Disk(uri).path(NAME)


def is_finished_page(content: bytes | None) -> bool:
    """Whether this is the page of a finished study: that of a running one reloads itself."""
    return content is not None and b'http-equiv="refresh"' not in content[:4000]


def replaceable(path: Path) -> bool:
    """Whether a file is a page that `build` made, so that replacing it loses nothing."""
    try:
        with path.open("rb") as file:
            return f'<meta name="generator" content="{GENERATOR}'.encode() in file.read(2000)
    except OSError:
        return False


def build(
    run: Run,
    *,
    images: int = 6,
    paint: bool = True,
    code: bool = False,
    tell: Callable[[str], None] | None = None,
) -> str:
    """The page as text; see `write_page`."""
    candidates = run.candidates().query("stage != 'sweep'").reset_index(drop=True)
    summary = run.summary
    winner = run.allocation(summary["allocation"]) if summary and summary["feasible"] else None
    chosen = run.layer_sparsity(winner) if winner is not None else None
    shown = drawn(run, candidates, winner.key if winner else None, chosen)
    rows, missing = _pictures(run, candidates, images, paint, code, tell)
    page = environment().get_template("page.html.j2")
    return page.render(
        name=run.study.name,
        generator=f"{GENERATOR} {raysense.__version__}",
        refresh=REFRESH_SECONDS if summary is None else None,
        summary=summary,
        progress=_progress(run),
        answer=_answer(run, summary),
        budget=_budget(run, summary, candidates),
        missed=miss_in_words(summary) if summary and not summary["feasible"] else [],
        at_max_layer_sparsity=at_max_layer_sparsity_in_words((summary or {}).get("at_max_layer_sparsity")),
        stretch=held_out_stretch(run.study),
        look=look_in_words(how_tested(run.study, [look["run"] for look in run.record.get("looks", [])])),
        bounds=[in_words(bound.measure, run.study) for bound in run.bounds],
        winner=winner,
        pictures=rows,
        pictures_missing=missing,
        drawn=shown,
        cliffs=_cliffs(run),
        blocks=_blocks(chosen),
        strategies=_strategies(candidates, run.study.search.strategies),
        costs=costs_of(run),
        provenance=provenance_of(run, candidates),
        definition=run.study.to_yaml(),
        tolerable=TOLERABLE,
        specs=script_json(shown),
        library=library(),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def drawn(
    run: Run, candidates: pd.DataFrame, winner: str | None, chosen: pd.DataFrame | None
) -> dict[str, Spec]:
    """The page's charts, by the id of their place in the template; those with nothing to draw are left out.

    Args:
        run: The study.
        candidates: `Run.candidates`.
        winner: Key of the winning allocation.
        chosen: Its `Run.layer_sparsity`.
    """
    found: dict[str, Spec | None] = {
        f"quality-{number}": quality(candidates, bound, in_words(bound.measure, run.study), winner)
        for number, bound in enumerate(run.bounds)
    }
    found["map"] = sensitivity_map(run, chosen)
    found["allocation"] = None if chosen is None else allocation_bars(run, chosen)
    found["curves"] = curves(run)
    found["pareto"] = pareto(candidates, budget_used(candidates, run.bounds), winner)
    return {name: spec for name, spec in found.items() if spec is not None}


def budget_used(candidates: pd.DataFrame, bounds: Sequence[Bound]) -> pd.Series[float]:
    """Share of the quality budget that each row uses, by the bound that is nearest: 0 is dense, 1 is the bound.

    A row without the dense pipeline's measure on its own rung has none.
    """
    shares = []
    dense = candidates[candidates["strategy"] == "dense"].drop_duplicates("rung").set_index("rung")
    for bound in bounds:
        if bound.measure not in candidates or bound.measure not in dense:
            continue
        start = candidates["rung"].map(dense[bound.measure])
        room = bound.limit - start
        shares.append((candidates[bound.measure] - start) / room.where(room.abs() > 1e-12))
    if not shares:
        return pd.Series(float("nan"), index=candidates.index)
    worst: pd.Series[float] = pd.concat(shares, axis=1).max(axis=1)
    return worst.where(candidates["collapsed"] == "", 2.0)


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, no exponent where a person would write none."""
    if value is None or value != value:
        return "not measured"
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
        places = max(0, digits - whole) if whole else digits - 1 - _exponent(value)
        return f"{value:,.{places}f}"
    return f"{value:.{digits - 1}e}"


def _exponent(value: float) -> int:
    return int(f"{abs(value):e}".split("e")[1])


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    return "not measured" if value is None or value != value else f"{value:.{digits}%}"


# --- the parts of the page, as plain data -------------------------------------------------------------


def _progress(run: Run) -> dict[str, Any]:
    evaluations = run.table("evaluations")
    stages = ("baseline", "sensitivity", "search", "validation")
    done = [stage for stage in stages if (evaluations["stage"] == stage).any()]
    return {
        "evaluations": len(evaluations),
        "stage": done[-1] if done else "nothing yet",
        "missing": [stage for stage in stages if stage not in done],
    }


def _answer(run: Run, summary: Mapping[str, Any] | None) -> dict[str, Any]:
    """The headline figures."""
    if summary is None or not summary["feasible"]:
        return {}
    uniform = summary["uniform"]
    linear = (summary["strategies"] or {}).get("linear_uniform")
    # Both sides of the comparison with `linear_uniform` were judged on the search's prompts: it is not validated.
    best = max(
        (found for name, found in summary["strategies"].items() if found and name == summary["strategy"]),
        key=lambda found: found["zeros"],
        default=None,
    )
    n = next(iter(summary["metrics"].values()))["n"] if summary["metrics"] else 0
    return {
        "sparsity": summary["sparsity_components"],
        "prunable": summary["sparsity_prunable"],
        "pipeline": summary["sparsity_pipeline"],
        "zeros": summary["zeros"],
        "components": ", ".join(run.study.prune.components),
        "n": n,
        "gain": summary["gain_over_uniform"],
        "uniform": uniform["sparsity_components"] if uniform else None,
        "is_uniform": summary["strategy"] == "uniform",
        "linear_uniform_asked": "linear_uniform" in run.study.search.strategies,
        "linear_uniform": linear["sparsity_components"] if linear else None,
        "gain_over_linear_uniform": best["zeros"] / linear["zeros"]
        if linear and best and linear["zeros"]
        else None,
        "strategy": summary["strategy"],
    }


def _budget(run: Run, summary: Mapping[str, Any] | None, candidates: pd.DataFrame) -> list[dict[str, Any]]:
    """One row a bound: dense, pruned, difference with interval, bound, and how much of it is used."""
    known = (summary or {}).get("dense") or _dense_so_far(run, candidates)
    measured = {row["field"]: row for row in (summary or {}).get("constraints", [])}
    rows = []
    for bound in run.bounds:
        found = measured.get(bound.field, {})
        base = base_of(bound.measure)
        metrics = (summary or {}).get("metrics", {}) or {}
        dense = known.get(base)
        edge, value = found.get("ci_high" if bound.is_upper else "ci_low"), found.get("value")
        # An absolute bound leaves room from the dense pipeline's value on; a relative one counts from 0.
        start = 0.0 if base != bound.measure else dense["value"] if dense else None
        room = None if start is None else bound.limit - start
        share = max(0.0, (edge - start) / room) if edge is not None and room else None
        rows.append(
            {
                "measure": in_words(bound.measure, run.study),
                "base": in_words(base, run.study),
                "meaning": run.study.spec_of(base).meaning,
                "dense": dense["value"] if dense else None,
                "pruned": metrics[base]["value"] if base in metrics else None,
                "difference": None if value is None or start is None else value - start,
                "ci_low": found.get("ci_low"),
                "ci_high": found.get("ci_high"),
                "sign": "≤" if bound.is_upper else "≥",
                "limit": bound.limit,
                "share": share,
                "extractor": dense["extractor"].rsplit("/", 1)[-1] if dense else "",
            }
        )
    return rows


def _dense_so_far(run: Run, candidates: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Measures of the dense pipeline on its largest rung, while there is no summary."""
    dense = candidates[candidates["strategy"] == "dense"]
    if dense.empty:
        return {}
    # Rungs are in the study's order, the largest last.
    order = [name for name, _ in run.study.rungs]
    largest = max(dense.to_dict("records"), key=lambda row: order.index(row["rung"]))
    measures = run.table("measures")
    own = measures[measures["key"] == largest["key"]].to_dict("records")
    return {row["metric"]: {str(name): value for name, value in row.items()} for row in own}


def _pictures(
    run: Run,
    candidates: pd.DataFrame,
    images: int,
    paint: bool,
    code: bool,
    tell: Callable[[str], None] | None,
) -> tuple[list[dict[str, Any]], str]:
    """Rows of pictures with their labels, and why there are none."""
    if images <= 0:
        return [], "none were asked for"
    try:
        foreign = [] if code else plugins.code_of(run.study)
        found = strips(run, candidates, images, paint and not foreign, tell)
    except RaysenseError as error:
        logger.warning("no pictures: %s", error)
        return [], str(error)
    if not found:
        return [], "they are painted when the study has finished" if run.summary is None else (
            f"not painted yet: `raysense report {shlex.quote(run.uri)}{' --run-code' if foreign else ''}` paints them"
            + (f", and runs code that the study names: {', '.join(foreign)}" if foreign else "")
        )
    return [row_of(strip) for strip in found], ""


def row_of(strip: Strip) -> dict[str, Any]:
    """A row of pictures for the templates."""
    return {
        "label": strip.label,
        "note": strip.note,
        "kind": strip.kind,
        "images": [
            {"src": _data_uri(strip, position), "alt": f"{strip.label}: {prompt}", "prompt": prompt}
            for position, prompt in enumerate(strip.prompts)
        ],
    }


def _data_uri(strip: Strip, position: int) -> str:
    """A picture as the address of an image."""
    buffer = io.BytesIO()
    picture = Image.fromarray(strip.pixels[position])
    if max(picture.size) > 128:  # photographs: a tenth of the bytes, and no difference to be seen
        picture.save(buffer, "WEBP", quality=88)
        kind = "webp"
    else:
        picture.save(buffer, "PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _cliffs(run: Run, count: int = 8) -> dict[str, Any]:
    frame = run.cliffs()
    records = [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]
    for row in records:
        over = row["over"]
        row["over"] = None if over is None or over != over else over
    return {
        "groups": len(records),
        "granularity": run.study.search.granularity,
        "fragile": records[:count],
        "robust": records[::-1][:count] if len(records) > count else [],
        "never": sum(row["over"] is None for row in records),
    }


def _blocks(chosen: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Zeros by component and kind of layer."""
    if chosen is None:
        return []
    grouped = chosen.groupby(["component", "kind"], sort=False).agg(
        layers=("layer", "size"), weights=("weights", "sum"), zeros=("zeros", "sum")
    )
    rows = grouped.reset_index().to_dict("records")
    return [
        {**{str(k): v for k, v in row.items()}, "sparsity": row["zeros"] / row["weights"]} for row in rows
    ]


def _strategies(candidates: pd.DataFrame, asked: Sequence[str]) -> list[dict[str, Any]]:
    """The sparsest allocation of every strategy inside the budget, on the search's prompts and on held-out ones."""
    rows = []
    for strategy in dict.fromkeys([*asked, *candidates["strategy"]]):
        own = candidates[(candidates["strategy"] == strategy) & candidates["feasible"]]
        if strategy == "dense":
            continue
        best = {
            rung: own[own["rung"] == rung]["sparsity_components"].max() for rung in ("score", "validation")
        }
        tried = bool((candidates["strategy"] == strategy).any())
        tested = bool(((candidates["strategy"] == strategy) & (candidates["rung"] == "validation")).any())
        rows.append(
            {
                "strategy": strategy,
                "meaning": STRATEGIES.get(strategy, ""),
                **best,
                "tried": tried,
                "tested": tested,
            }
        )
    rows.sort(key=lambda row: -(row["score"] if row["score"] == row["score"] else -1.0))
    return rows


def costs_of(run: Run) -> dict[str, Any]:
    """What stages took, and all of them."""
    frame = run.costs()
    total = {name: float(frame[name].sum()) for name in ("evaluations", "images", "nfe", "seconds")}
    rows = [
        {
            **{str(k): v for k, v in row.items()},
            "share": row["nfe"] / total["nfe"] if total["nfe"] else 0.0,
        }
        for row in frame.to_dict("records")
    ]
    total |= {name: float(sum(map(int, frame[name]))) for name in ("failed", "taken")}
    return {"rows": rows, "total": total}


def provenance_of(run: Run, candidates: pd.DataFrame) -> list[tuple[str, str]]:
    """What the numbers come from, label and text."""
    study, record = run.study, run.record
    measures = run.table("measures")
    extractors = (
        measures.groupby("extractor")["metric"].unique().map(lambda names: ", ".join(sorted(map(str, names))))
    )
    replicates = sorted(set(map(int, run.table("evaluations")["replicate"])))
    rungs = [
        f"{name}: {rung.prompts * rung.seeds:,} images"
        for name, rung in study.rungs
        if name in set(candidates["rung"])
    ]
    denominators = record["denominators"]
    evaluators = run.table("evaluations")["evaluator"].nunique()
    collapsed = int((run.table("evaluations")["collapsed"] != "").sum())
    pruned = run.table("evaluations").loc[lambda rows: rows["allocation"] != Allocation().key]
    return [
        (
            "pipeline",
            study.pipeline + (f" @ {study.revision}" if study.revision else "") + f", {study.dtype}",
        ),
        ("study", f"{study.name}, signature {record['signature']}"),
        (
            "begun",
            f"{record.get('created', 'unknown')} by raysense {record.get('raysense_version', 'unknown')}",
        ),
        (
            "saliency",
            "; ".join(filter(None, dict.fromkeys(pruned["method"]))) or " or ".join(study.prune.methods),
        ),
        (
            "sampling",
            f"{study.sampling.steps} steps, guidance {study.sampling.guidance:g}, study seed {study.seed}, "
            f"sets of noise seeds {', '.join(map(str, replicates)) or 'none yet'}",
        ),
        ("sample sizes", "; ".join(rungs) or "none yet"),
        *((f"measured with {str(name).rsplit('/', 1)[-1]}", names) for name, names in extractors.items()),
        (
            "denominators",
            ", ".join(f"{name} {count:,}" for name, count in denominators.items()) or "not counted yet",
        ),
        (
            "measured by",
            f"{evaluators} evaluator lives; {collapsed} of {len(run.table('evaluations')):,} evaluations collapsed",
        ),
        ("measured on", "; ".join(_recorded(run, "device")) or "not recorded"),
        ("software", "; ".join(_recorded(run, "versions")) or "not recorded"),
        *((f"start {number}", _start_in_words(start)) for number, start in enumerate(_starts(run), 1)),
        (
            "again",
            f"python -m raysense.search study.yaml --out {shlex.quote(study.name)}  (study.yaml: below)",
        ),
    ]


def _recorded(run: Run, column: str) -> list[str]:
    """The different texts in a column of `evaluations`."""
    return sorted(filter(None, run.table("evaluations")[column].dropna().unique()))


def _starts(run: Run) -> list[dict[str, Any]]:
    return list((run.summary or {}).get("starts", []))


def _start_in_words(start: Mapping[str, Any]) -> str:
    return (
        f"{start['began']}, {start['seconds']:,.0f} s, {start['evaluators']} evaluators on {start['cluster']} "
        f"({start['cores']} cores of {start['machine']} where it was started)"
    )


# --- the machinery ------------------------------------------------------------------------------------


def environment() -> Environment:
    """Where templates are found, and the filters that they use."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(lambda name: (files("raysense.results") / name).read_text(encoding="utf-8")),
    )
    environment.filters.update(number=number, percent=percent, prose=prose)
    return environment


def prose(sentence: str) -> Markup:
    """A sentence as the terminal says it, with what stands in backticks set as code; all else stays text."""
    return Markup(_QUOTED.sub(r"<code>\1</code>", str(escape(sentence))))


def script_json(value: Any) -> Markup:
    """JSON that may stand inside a script element whatever texts it holds."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _plain(value: Any) -> Any:
    return value.item()


@cache
def library() -> Markup:
    """Vega, Vega-Lite and their embedding, as one script."""
    import vl_convert

    # Only the closing tag would end the script early; `</` alone also stands in regular expressions.
    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub forgets the default
    return Markup(bundle.replace("</script", "<\\/script"))


def refuse_to_replace(target: Path, force: bool) -> None:
    """Refuse a file that is there, unless asked to replace it.

    Raises:
        RaysenseError: See above.
    """
    if target.is_dir():
        raise RaysenseError(f"`--out {target}` is a folder; give the path of a file")
    if target.exists() and not force:
        raise RaysenseError(f"`{target}` is there already; add --force to replace it, or give another --out")
