"""Which parts a large set of images is sampled in, each by whichever evaluator is free."""

from __future__ import annotations

from raysense.evaluation.records import PART, Part, Task
from raysense.pruning.allocation import Allocation
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
    """`n` images in as few parts of at most `most` as there can be, all of about the same size.

    Example:
        >>> ranges(10, 4)
        [range(0, 3), range(3, 6), range(6, 10)]
    """
    count = max(1, -(-n // most))
    return [range(n * number // count, n * (number + 1) // count) for number in range(count)]


def is_split(study: Study, rung: str, reference: bool = False) -> bool:
    """Whether the images of a rung, or of its reference, are too many for one evaluator at a time."""
    return images_of(study, rung, reference) > study.cluster.images_per_part


def parts_of(study: Study, allocation: Allocation, rung: str) -> list[Task]:
    """The tasks that sample an evaluation's images beforehand; none where one evaluator does it at once."""
    if not isinstance(getattr(study.rungs, rung, None), ImageRung):
        return []
    sets = [(rung, False)]
    if not allocation and study.metrics.reference.path is None:
        sets.append((reference_rung(rung), True))
    return [
        Task(allocation, PART, part=Part(name, reference, number, count))
        for name, reference in sets
        if (count := len(ranges(images_of(study, name, reference), study.cluster.images_per_part))) > 1
        for number in range(count)
    ]
