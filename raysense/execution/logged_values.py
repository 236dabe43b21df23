"""An evaluation's numbers by name: what Ray Tune is told as ordinary metrics, and what MLflow and TensorBoard show."""

from __future__ import annotations

import math
from collections.abc import Mapping

from raysense.records import Evaluation


def figures(evaluation: Evaluation, denominators: Mapping[str, int] | None = None) -> dict[str, float]:
    """An evaluation's numbers by name, ``score/clip_score_drop`` say; what is not finite is left out.

    Args:
        evaluation: The evaluation.
        denominators: The integers that turn zeros into sparsities, as the store has them; without them there are none.
    """
    found: dict[str, float] = {
        "zeros": evaluation.zeros,
        "images": evaluation.images,
        "nfe": evaluation.nfe,
        "seconds": evaluation.seconds,
        "collapsed": int(bool(evaluation.collapsed)),
        "failed": int(bool(evaluation.failed)),
    }
    for name, n in (denominators or {}).items():
        if name.startswith("n_") and n:
            found[f"sparsity_{name.removeprefix('n_')}"] = evaluation.zeros / n
    for metric, measure in evaluation.measures.items():
        found |= {
            metric: measure.value,
            f"{metric}_ci_low": measure.ci_low,
            f"{metric}_ci_high": measure.ci_high,
        }
    return {f"{evaluation.rung}/{name}": value for name, value in found.items() if math.isfinite(value)}
