"""Metrics of the user's own: functions in a module outside the package, called and held to their contract.

A metric of images takes three things, row by row the same prompt and noise, and returns one number an image:

    def sharpness(images: Tensor, prompts: Sequence[str], dense: Tensor) -> Tensor: ...

Per-image numbers are all that raysense needs: means, paired differences and their intervals follow from
`raysense.metrics.intervals`.

A metric of the set takes the features of two sets of images, those that are judged and those of the reference, by the
study's extractor (which may be the user's own, see `raysense.metrics.features`), and returns one number:

    def far(features: Tensor, reference: Tensor) -> float: ...

Its interval, and that of its paired difference from the dense pipeline, is a delete-a-group jackknife over prompts
(`intervals.jackknife`): 33 calls on subsets of `features`, the reference fixed. Limits of this interval:

* The metric must be smooth: a small change of one image changes it little. A maximum, a median or a count of nearest
  neighbours is not, and its interval may be too narrow.
* It is an interval for the metric at this number of images: a bias that depends on their number stays. So a preview on
  fewer images never drops a candidate by such a metric.
* It does not say how the metric would change with another reference.
* Subsets are smaller than the set: with a group of prompts left out, a metric that needs more images than dimensions
  may fail there first.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysense.errors import RaysenseError
from raysense.metrics.intervals import Floats, Integers, Interval, jackknife
from raysense.metrics.spec import OfSet
from raysense.registry import declaration_of, find

CustomMetric = Callable[[Tensor, Sequence[str], Tensor], npt.ArrayLike]
SetMetric = Callable[[Tensor, Tensor], float | Tensor]


def custom_metric(path: str, field: str = "metric") -> Callable[[Tensor, Sequence[str], Tensor], Floats]:
    """The metric of images at a dotted path, its answers checked.

    Args:
        path: ``package.module.function``.
        field: Which field of the study holds the path, for error messages.

    Returns:
        A function of images (n, 3, h, w) in [0, 1], their n prompts, and the dense pipeline's images of the
        same prompts and noise, that gives (n,) float64.

    Raises:
        RaysenseError: If the path names nothing callable; on a call, if the answer is not one finite number
            an image.
    """
    return checked_metric(find(path, field), f"{field} {path!r}")


def checked_metric(metric: CustomMetric, name: str) -> Callable[[Tensor, Sequence[str], Tensor], Floats]:
    """A metric of images whose answers are checked; see `custom_metric`."""

    def measure(images: Tensor, prompts: Sequence[str], dense: Tensor) -> Floats:
        values = _numbers(lambda: metric(images, prompts, dense), name)
        if values.shape != (len(images),):
            raise RaysenseError(
                f"{name}: must return one number an image, shape ({len(images)},), but gave {values.shape}."
            )
        if not np.isfinite(values).all():
            raise RaysenseError(f"{name}: returned NaN or infinity for images that are neither.")
        return values

    return measure


def set_metric(path: str, field: str = "metric") -> Callable[[Tensor, Tensor], float]:
    """The metric of the set at a dotted path, its answers checked.

    Args:
        path: ``package.module.function``.
        field: Which field of the study holds the path, for error messages.

    Returns:
        A function of float32 (n, d) features and an (m, d) reference.

    Raises:
        RaysenseError: If the path names nothing callable; on a call, if the answer is not one finite number.
    """
    return checked_set_metric(find(path, field), f"{field} {path!r}")


def checked_set_metric(metric: SetMetric, name: str) -> Callable[[Tensor, Tensor], float]:
    """A metric of the set whose answers are checked; see `set_metric`."""

    def measure(features: Tensor, reference: Tensor) -> float:
        value = _numbers(lambda: metric(features, reference), name)
        if value.shape != ():
            raise RaysenseError(f"{name}: must return one number, but gave an array of shape {value.shape}.")
        if not np.isfinite(value):
            raise RaysenseError(
                f"{name}: returned {value} for {len(features)} images of finite features; more images a rung may help."
            )
        return float(value)

    return measure


Answers = dict[bytes, tuple[Any, Any]]
"""Which images were kept -> what a function of the set says of the pruned and of the dense pipeline's."""


def set_intervals(
    metric: OfSet,
    pruned: Tensor,
    dense: Tensor,
    reference: Tensor,
    prompt_ids: Sequence[Hashable],
    *,
    higher_is_better: bool,
    known: Answers | None = None,
) -> tuple[Interval, Interval]:
    """A metric of the set, and how much worse it is than the dense pipeline's.

    Args:
        metric: How it is measured; one of a user's own is checked, see `set_metric`.
        pruned: (n, d) features of the pruned pipeline's images.
        dense: (n, d) of the dense pipeline's, image by image the same prompt and noise.
        reference: (m, d), counted as fixed.
        prompt_ids: (n,) the prompt of each pair.
        higher_is_better: Which way is good.
        known: What `metric.value` said of these images before, for another metric that is a part of it.

    Returns:
        Intervals of the value and of the drop (dense minus pruned), or, where lower is better, of the rise (pruned
        minus dense): positive is worse.

    Raises:
        RaysenseError: See `intervals.jackknife`, and `set_metric`.
    """
    answers: Answers = {} if known is None else known

    def values(kept: Integers) -> tuple[float, float]:
        key = kept.tobytes()  # both jackknives ask for the same subsets
        if key not in answers:
            rows = torch.from_numpy(kept)
            answers[key] = metric.value(pruned[rows], reference), metric.value(dense[rows], reference)
        after, before = answers[key]
        return metric.of(after), metric.of(before)

    def loss(kept: Integers) -> float:
        after, before = values(kept)
        return before - after if higher_is_better else after - before

    return jackknife(lambda kept: values(kept)[0], prompt_ids), jackknife(loss, prompt_ids)


def refuse_other_facts(path: str, field: str, *, higher_is_better: bool, of_set: bool) -> None:
    """Refuse a study that reads a metric otherwise than its decorator says.

    A study is completed from the source of its plug-ins; what stands there as an expression is seen only now.

    Raises:
        RaysenseError: See above; says what to write into the study.
    """
    said = declaration_of(find(path, field))
    if said is None or said.kind != "metric":
        return
    kind = "set" if of_set else "image"
    for name, here in (("higher_is_better", higher_is_better), ("kind", kind)):
        there = said.facts[name]
        if there != here:
            raise RaysenseError(
                f"`{field}`: the decorator of {path} says {name}={there!r}, but the study is read with {here!r}; set "
                f"`{field}` to {{path: {path}, {name}: {str(there).lower()}}}, or change the decorator"
            )


def _numbers(call: Callable[[], object], name: str) -> npt.NDArray[np.float64]:
    """What a metric answers, as numbers.

    Raises:
        RaysenseError: It ends the process, or its answer is no number.
    """
    try:
        answer = call()
    except SystemExit as leaving:
        raise RaysenseError(
            f"{name}: ended the process (SystemExit {leaving.code}); raise an error instead"
        ) from None
    try:
        return np.asarray(answer.cpu() if isinstance(answer, Tensor) else answer, dtype=np.float64)
    except (TypeError, ValueError):
        raise RaysenseError(f"{name}: must return numbers, but gave {answer!r:.80}") from None
