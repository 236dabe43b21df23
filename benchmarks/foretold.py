"""What `raysense resolve` foretells of a real study for other bounds, and what a test says; for `benchmarks.search`.

The test is an evaluation on the study's own held-out prompts, judged as a study with these bounds would judge it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from raysense.allocation import Allocation
from raysense.evaluation.evaluator import Evaluator
from raysense.feasibility import utilisation
from raysense.records import EvaluationRequest
from raysense.search.resolve import asked_of, resolve
from raysense.strategies.verdict import held_out_stretch
from raysense.study import Study

TIMES = (0.75, 1.0, 2.0)
"""The bounds that are asked for, as multiples of the study's own; that on KID is never tightened: noise needs it."""


def rows_of(study: Study, run: Path) -> list[dict[str, Any]]:
    """One row for each bound: what is foretold, and what the test says; nulls where nothing is foretold.

    Args:
        study: The study, with a drop of the CLIP score and a rise of KID bounded.
        run: Its folder, finished.
    """
    assert study.constraints.clip_score is not None
    assert study.constraints.clip_score.max_drop is not None
    assert study.constraints.kid is not None
    assert study.constraints.kid.max_rise is not None
    own = {"bed": study.pipeline, "max_drop": study.constraints.clip_score.max_drop, "seed": study.seed}
    rows, evaluator = [], Evaluator(study, str(run))
    for times in TIMES:
        bounds = [
            f"constraints.clip_score.max_drop={times * study.constraints.clip_score.max_drop}",
            f"constraints.kid.max_rise={max(times, 1.0) * study.constraints.kid.max_rise}",
        ]
        answer = resolve(str(run), bounds)["predicted"]
        row = {
            **own, "times": times, "sparsity_components": answer["sparsity_components"],
            "foretold": None, "ci_low": None, "ci_high": None, "tested": None,
        }  # fmt: skip
        if answer["zeros"]:
            tested = evaluator.evaluate(EvaluationRequest(Allocation(answer["levels"]), "validation"))
            asked = asked_of(study, bounds)
            row |= {
                "foretold": answer["utilisation"], "ci_low": answer["utilisation_ci_low"],
                "ci_high": answer["utilisation_ci_high"],
                "tested": utilisation(tested, asked.constraints.bounds(), held_out_stretch(asked)),
            }  # fmt: skip
        rows.append(row)
    return rows


def in_words(rows: pd.DataFrame) -> str:
    """How often the tests said what was foretold, a paragraph and a table."""
    made = rows.dropna(subset=["foretold"])
    lines = [
        f"`raysense resolve` on studies of the default bound, for {_list(TIMES)} times their limit on the CLIP score's "
        f"drop, the predicted allocation tested on the same held-out prompts: {len(rows)} questions, {len(made)} "
        "predictions.",
        "",
        "| pipeline | times | predictions | interval holds the test | test inside the bounds | sparsity_components |",
        "|---|---|---|---|---|---|",
    ]
    for (bed, times), part in made.groupby(["bed", "times"]):
        inside = (part["ci_low"] <= part["tested"]) & (part["tested"] <= part["ci_high"])
        lines.append(
            f"| {bed} | {times:g} | {len(part)} | {int(inside.sum())} | {int((part['tested'] <= 1).sum())} | "
            f"{part['sparsity_components'].mean():.1%} |"
        )
    return "\n".join(lines)


def _list(numbers: Sequence[float]) -> str:
    *most, last = (f"{number:g}" for number in numbers)
    return f"{', '.join(most)} and {last}"
