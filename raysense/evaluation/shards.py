"""Which shards a large set of images is sampled in, each by whichever evaluator is free."""

from __future__ import annotations

from raysense.allocation import Allocation
from raysense.records import SHARD, EvaluationRequest, Shard
from raysense.study import ImageRung, Study

REFERENCE_SEEDS = 2
"""Dense images a prompt in the reference of the distribution metrics."""


def images_of(study: Study, rung: str, reference: bool = False) -> int:
    """How many images one evaluation on a rung has, or the reference that it is compared with."""
    if reference:
        largest: ImageRung = getattr(study.rungs, reference_rung(rung))
        return REFERENCE_SEEDS * largest.prompts
    own: ImageRung = getattr(study.rungs, rung)
    return own.prompts * own.seeds


def reference_rung(rung: str) -> str:
    """The rung whose prompts the reference of `rung` has: the largest of its set of prompts."""
    return "validation" if rung == "validation" else "score"


def ranges(n: int, most: int) -> list[range]:
    """`n` images in as few shards of at most `most` as there can be, all of about the same size.

    Example:
        >>> ranges(10, 4)
        [range(0, 3), range(3, 6), range(6, 10)]
    """
    count = max(1, -(-n // most))
    return [range(n * number // count, n * (number + 1) // count) for number in range(count)]


def is_split(study: Study, rung: str, reference: bool = False) -> bool:
    """Whether the images of a rung, or of its reference, are too many for one evaluator at a time."""
    return images_of(study, rung, reference) > study.cluster.images_per_shard


def ranges_of(study: Study, rung: str, reference: bool = False) -> list[range]:
    """The shards of a rung's images, or of its reference's; one where it is not split.

    The score rung begins with the preview's shards: a candidate that climbs has them already.
    """
    n, most = images_of(study, rung, reference), study.cluster.images_per_shard
    if n <= most:
        return [range(n)]
    head = [] if reference else _head(study, rung)
    start = head[-1].stop if head else 0
    return head + [range(start + shard.start, start + shard.stop) for shard in ranges(n - start, most)]


def is_kept(study: Study, rung: str) -> bool:
    """Whether the features of a rung's images go to the cache, for a later evaluation that needs them too."""
    return is_split(study, rung) or (
        rung == "preview" and is_split(study, "score") and bool(_head(study, "score"))
    )


def shards_of(study: Study, allocation: Allocation, rung: str) -> list[EvaluationRequest]:
    """The requests that sample an evaluation's images beforehand; none where one evaluator does it at once."""
    if not isinstance(getattr(study.rungs, rung, None), ImageRung):
        return []
    requests: list[EvaluationRequest] = []
    if is_split(study, rung):
        count = len(ranges_of(study, rung))
        requests += [
            EvaluationRequest(allocation, SHARD, shard=Shard(rung, False, number, count))
            for number in range(len(_head(study, rung)), count)
        ]
    largest = reference_rung(rung)
    if not allocation and study.metrics.reference.path is None and is_split(study, largest, reference=True):
        count = len(ranges_of(study, largest, reference=True))
        requests += [
            EvaluationRequest(allocation, SHARD, shard=Shard(largest, True, number, count))
            for number in range(count)
        ]
    return requests


def _head(study: Study, rung: str) -> list[range]:
    """The preview's shards, where these are the first of the rung's images."""
    preview, score = study.rungs.preview, study.rungs.score
    leads = preview.seeds == 1 and preview.prompts < score.prompts
    return ranges_of(study, "preview") if rung == "score" and leads else []
