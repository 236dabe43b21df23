"""Which of diffusers' pipelines are measured rightly? A small random one of each, through `raysense doctor`.

``python -m benchmarks.families [--quick] [--write] [--jobs N] [CLASS …]``

Every class in the installed diffusers' ``AutoPipelineForText2Image`` mapping, and every other pipeline class whose
call takes ``prompt`` and gives images, is asked `raysense.pipelines.adapter.why_not`; of those that a prompt is enough
for, a small pipeline is built, saved, and examined by `raysense.search.doctor`. ``--quick``: a dozen. ``--write``
writes docs/reference/pipelines.md. The last line is one JSON object: benchmark, figures, bar, holds.
"""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import multiprocessing
import re
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

from benchmarks.families.builders import FAMILIES, Small, awake
from raysense.errors import RaysenseError
from raysense.pipelines.adapter import NOT_MEASURED, why_not
from raysense.pipelines.origin import Origin
from raysense.search.doctor import components_to_prune, examine
from raysense.study import Study, parse

BAR = 0.9
"""Share of the families that a prompt is enough for which must work; the others must be refused, none may be wrong."""

QUICK = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "Flux2KleinPipeline",
    "ChromaPipeline",
    "QwenImagePipeline",
    "ZImagePipeline",
    "PixArtSigmaPipeline",
    "Lumina2Pipeline",
    "KandinskyV22CombinedPipeline",
    "CogView4Pipeline",
)

OTHER_TASKS = re.compile(
    "Img2Img|ImageToImage|ToVideo|Video|Inpaint|Edit|Upscale|Adapter|Animate|Audio|Music|Pix2Pix|Depth|Refiner|"
    "Prior(?!.*Combined)|Fill|Redux|SuperResolution|I2V|T2V|Transfer|World|Blip|GLIGEN|Cycle|Layered|LLaDA|Gemma|ShapE"
)
"""Names of classes that do something else than make an image from a prompt."""

DOCUMENT = Path(__file__).parents[2] / "docs/reference/pipelines.md"


@dataclass(frozen=True)
class Row:
    """What became of a family.

    Attributes:
        kind: Its pipeline class.
        result: ``works``, ``refused``, ``wrong`` or ``other task``.
        told: Why, if it does not work; what departs from the plain case, if it does.
        components: What was pruned.
        parameters: Of the small pipeline.
        image: NFE an image of two steps costs.
        seconds: Spent on it.
    """

    kind: str
    result: str
    told: str = ""
    components: str = ""
    parameters: int = 0
    image: int = 0
    seconds: float = 0.0


def candidates() -> Iterator[type[DiffusionPipeline]]:
    """The classes in question, by name."""
    found = {kind.__name__: kind for kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}
    for name in dir(diffusers):
        kind = getattr(diffusers, name, None) if name.endswith("Pipeline") else None
        if not inspect.isclass(kind) or not issubclass(kind, DiffusionPipeline) or OTHER_TASKS.search(name):
            continue
        if ".deprecated." not in kind.__module__ and "prompt" in inspect.signature(kind.__call__).parameters:
            found.setdefault(name, kind)
    for name in sorted(found):
        yield found[name]


def try_family(name: str) -> Row:
    """Build, save and examine one."""
    began = time.perf_counter()
    small = FAMILIES[name]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="raysense-family-") as folder:
        try:
            pipeline = awake(small.build())
            pipeline.save_pretrained(folder)
            parameters = sum(
                p.numel()
                for m in pipeline.components.values()
                if hasattr(m, "parameters")
                for p in m.parameters()
            )
        except Exception as error:
            return Row(name, "wrong", f"cannot be built: {_last(error)}", seconds=time.perf_counter() - began)
        try:
            components = small.components or components_to_prune(Origin(folder))
            found = examine(_study(folder, components, small))
        except RaysenseError as error:
            return Row(name, "refused", str(error).replace(folder, "…"), seconds=time.perf_counter() - began)
        except Exception as error:
            return Row(
                name, "wrong", _last(error), ", ".join(components), parameters, 0, time.perf_counter() - began
            )
    wrong = [f"{finding.check}: {finding.told}" for finding in found.findings if finding.verdict == "wrong"]
    cost = next((int(f.told.split()[0]) for f in found.findings if f.check == "cost"), 0)
    told = "; ".join(wrong).replace(folder, "…") or small.said
    return Row(
        name,
        "wrong" if wrong else "works",
        told,
        ", ".join(components),
        parameters,
        cost,
        time.perf_counter() - began,
    )


def _study(folder: str, components: Sequence[str], small: Small) -> Study:
    sides = {} if small.size is None else {"height": small.size, "width": small.size}
    return parse(
        {
            "name": "family",
            "pipeline": folder,
            "prune": {"components": list(components), "exclude": list(small.exclude)},
            "constraints": {"clip_score": {"max_drop": 0.5}},
            "sampling": {"steps": 2, "guidance": 4.0, "batch": 2, **sides, **small.sampling},
        }
    )


def _last(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({Path(frame.filename).name}:{frame.lineno})"


def run(names: Sequence[str], jobs: int) -> list[Row]:
    """One row a class."""
    kinds = [kind for kind in candidates() if not names or kind.__name__ in names]
    rows = {}
    for kind in kinds:
        if why := why_not(kind):
            rows[kind.__name__] = Row(
                kind.__name__, "refused" if kind.__name__ in NOT_MEASURED else "other task", why
            )
        elif kind.__name__ not in FAMILIES:
            rows[kind.__name__] = Row(kind.__name__, "wrong", "no small pipeline of it is built here")
    wanted = [kind.__name__ for kind in kinds if kind.__name__ not in rows]
    # Forked: torch and diffusers are imported once.
    with ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("fork"), initializer=_quiet
    ) as pool:
        for row in pool.map(try_family, wanted):
            print(f"{row.kind:32}{row.result:10}{row.seconds:6.1f} s  {row.told[:300]}", flush=True)
            rows[row.kind] = row
    return [rows[kind.__name__] for kind in kinds]


def _quiet() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts, and who does not work."""
    counted = [row for row in rows if row.result != "other task"]
    by = {
        result: [row.kind for row in counted if row.result == result]
        for result in ("works", "refused", "wrong")
    }
    return {
        "families": len(counted),
        **{result: len(names) for result, names in by.items()},
        "share_that_works": round(len(by["works"]) / max(1, len(counted)), 3),
        "refused_ones": {row.kind: row.told for row in counted if row.result == "refused"},
        "wrong_ones": {row.kind: row.told for row in counted if row.result == "wrong"},
        "other_tasks": len(rows) - len(counted),
    }


def document(rows: Sequence[Row]) -> str:
    """docs/reference/pipelines.md."""
    found = figures(rows)
    lines = [
        "# Pipelines",
        "",
        "Generated by `python -m benchmarks.families --write`; do not edit. A small pipeline with random weights of",
        "every class in diffusers' text-to-image mapping, and of every other one that makes images from a prompt, was",
        "built, saved and examined by `raysense doctor`: inventory with and without weights, types, layers that never",
        "run, cost foretold and counted, pixels, the dense probe exactly 0, the probe of each pruned component above",
        "0, images independent of their batch, guidance, masks after sampling, exports, the dense weights restored bit",
        "for bit.",
        "",
        f"diffusers {diffusers.__version__}, transformers {transformers.__version__}: {found['works']} of "
        f"{found['families']} families work, {found['refused']} are refused before anything is measured, "
        f"{found['wrong']} are wrong.",
        "",
        "| pipeline | result | components | NFE of two steps | |",
        "|---|---|---|---:|---|",
    ]
    for row in rows:
        if row.result != "other task":
            cost = f"{row.image}" if row.image else ""
            lines.append(
                f"| {row.kind} | {row.result} | {row.components} | {cost} | {row.told.replace('|', '¦')} |"
            )
    lines += ["", "Not counted, as a prompt is not enough for them, or they make no images:", ""]
    lines += [f"- {row.kind}: {row.told}" for row in rows if row.result == "other task"]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the result as JSON on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="CLASS", help="only these pipeline classes")
    parser.add_argument("--quick", action="store_true", help="a dozen of them")
    parser.add_argument("--write", action="store_true", help="write docs/reference/pipelines.md")
    parser.add_argument("--jobs", type=int, default=2, help="side by side (default: %(default)s)")
    args = parser.parse_args(arguments)
    rows = run(args.names or (QUICK if args.quick else ()), args.jobs)
    if args.write:
        DOCUMENT.write_text(document(rows), encoding="utf-8")
    found = figures(rows)
    holds = found["share_that_works"] >= BAR and not found["wrong"]
    bar = {"share_that_works": f">= {BAR}", "wrong": 0}
    print(
        json.dumps(
            {
                "benchmark": "families",
                "figures": {**found, "rows": [asdict(row) for row in rows]},
                "bar": bar,
                "holds": holds,
            }
        )
    )
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
