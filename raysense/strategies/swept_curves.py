"""What a stored sweep knows of groups alone: curves for a later search, and for an answer without a new image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from raysense.allocation import LevelGrid
from raysense.metrics.builtin.probe_error import PROBE_ERROR
from raysense.records import Evaluation
from raysense.study import Study

Points = dict[str, dict[int, float]]
"""Group -> zeros -> damage, everything else being dense."""


def is_ordinary(point: Mapping[str, Any], study: Study) -> bool:
    """Whether a point is pruned as the study itself prunes: by its own method, in all steps."""
    return point["method"] == study.prune.saliency and point["steps_from"] is None


def probed(evaluation: Evaluation) -> float | None:
    """An evaluation's probe error; None where it has none."""
    return evaluation.measures[PROBE_ERROR].value if PROBE_ERROR in evaluation.measures else None


def swept_points(
    points: Iterable[Mapping[str, Any]],
    evaluations: Mapping[str, Evaluation],
    levels: Mapping[str, Mapping[str, int]],
    grid: LevelGrid,
    study: Study,
    rung: str,
    damage: Callable[[Evaluation], float | None],
) -> Points:
    """Groups of the study's granularity that a sweep pruned alone, by one ratio, on a rung.

    Args:
        points: Rows of the table `points`.
        evaluations: By key.
        levels: Allocation -> layer -> level.
        grid: The layers' levels.
        study: The study.
        rung: Which points.
        damage: An evaluation's damage; None where it says nothing.
    """
    found: Points = {}
    for point, evaluation in of_curves(points, evaluations, study, rung):
        value, zeros = damage(evaluation), grid.zeros(levels.get(evaluation.allocation, {}))
        if value is not None and zeros:
            found.setdefault(point["groups"], {})[zeros] = max(value, 0.0)
    return found


def of_curves(
    points: Iterable[Mapping[str, Any]], evaluations: Mapping[str, Evaluation], study: Study, rung: str
) -> Iterator[tuple[Mapping[str, Any], Evaluation]]:
    """The points that `swept_points` makes curves of, each with its evaluation."""
    for point in points:
        fits = (point["granularity"], point["rule"], point["rung"]) == (
            study.search.granularity, "uniform", rung
        )  # fmt: skip
        evaluation = evaluations.get(point["key"])
        if fits and is_ordinary(point, study) and evaluation is not None and not evaluation.failed:
            yield point, evaluation
