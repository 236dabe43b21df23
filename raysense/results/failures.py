"""What could not be measured, in words: quality is not to blame for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from raysense.allocation import Allocation
from raysense.errors import MeasuringFailed
from raysense.records import Evaluation

IMAGE_RUNGS = ("preview", "score", "validation")
_SHOWN, _LONGEST = 3, 300


def failures(evaluations: Sequence[Evaluation]) -> str:
    """How many of the evaluations failed, and why, most frequent first; an empty text if none did."""
    failed = [evaluation for evaluation in evaluations if evaluation.failed]
    if not failed:
        return ""
    return (
        f"{len(failed):,} of {len(evaluations):,} evaluations failed: {_reasons(failed)}. They say nothing about "
        "quality; once the cause is mended, --resume measures them again."
    )


def refuse_if_nothing_was_measured(evaluations: Sequence[Evaluation]) -> None:
    """Refuse to call a study's pruned pipelines too bad when not one of them could be judged.

    Raises:
        MeasuringFailed: All evaluations of pruned pipelines failed, or all of those by images.
    """
    pruned = [evaluation for evaluation in evaluations if evaluation.allocation != Allocation().key]
    judged = [evaluation for evaluation in pruned if evaluation.rung in IMAGE_RUNGS]
    for asked, what in ((judged, "by images "), (pruned, "")):
        if asked and all(evaluation.failed for evaluation in asked):
            raise MeasuringFailed(
                f"all {len(asked):,} evaluations {what}of pruned pipelines failed: {_reasons(asked)}. Nothing is known "
                "about their quality; mend the cause and go on with --resume, which measures them again"
            )


def _reasons(failed: Sequence[Evaluation]) -> str:
    counts = Counter(" ".join(evaluation.failed.split())[:_LONGEST] for evaluation in failed)
    shown = [f"{why} ({n:,} times)" if len(counts) > 1 else why for why, n in counts.most_common(_SHOWN)]
    more = len(counts) - len(shown)
    return "; ".join(shown) + (f"; and {more} other reasons" if more else "")
