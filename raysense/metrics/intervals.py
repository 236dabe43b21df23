"""Intervals for metrics: paired by prompt, honest about clusters, valid under repeated looks.

The unit that is drawn at random is the *prompt*: two seeds of one prompt share its difficulty, so they are
averaged before anything is compared, and a jackknife moves or leaves out whole prompts.

Sources:
    Mean over clusters: Student's t on the prompts' means.
    Distribution metrics: the infinitesimal jackknife, Jaeckel (Bell Laboratories, 1972), see Efron, "The
        Jackknife, the Bootstrap and Other Resampling Plans" (1982), chapter 6: the spread of the prompts'
        influences on the statistic. It needs one pass instead of one a group left out.
    Pairs of prompts: a jackknife counts twice what two prompts do to a statistic together: Efron & Stein,
        "The jackknife estimate of variance", Annals of Statistics 9 (1981); for a statistic made of pairs
        (Hoeffding, Annals of Mathematical Statistics 19, 1948) that part is known and is taken off once.
    Any other statistic: the delete-a-group jackknife with groups of unequal size: Busing, Meijer & van der
        Leeden, "Delete-m jackknife for unequal m", Statistics and Computing 9 (1999).
    Why no bootstrap: drawing with replacement repeats images, which lowers the rank of a covariance and
        raises every Fréchet distance; the interval then misses the value it is meant for.
    Repeated looks: Lan & DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 70
        (1983); the power family of spending functions: Kim & DeMets, Biometrika 74 (1987).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit  # `stats` takes half a second to import

from raysense.errors import RaysenseError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

LEVEL = 0.95
"""Confidence of every interval that is reported: two-sided 95 %, so 97.5 % on each side."""

NORMAL = float(ndtri((1 + LEVEL) / 2))
"""The normal distribution's quantile of such an interval."""

GROUPS = 32
"""Groups left out in turn by the jackknife: Student's t of 31 degrees of freedom is 4 % above normal."""


@dataclass(frozen=True)
class Interval:
    """A value between its limits.

    Attributes:
        value: The point estimate, in the metric's own unit.
        ci_low: Lower end of the two-sided interval.
        ci_high: Upper end.
        n: Images (not prompts) behind it.
    """

    value: float
    ci_low: float
    ci_high: float
    n: int


def prompt_means(values: npt.ArrayLike, prompt_ids: Sequence[Hashable] | None = None) -> Floats:
    """Average the images of each prompt.

    Args:
        values: (n,) one number an image.
        prompt_ids: (n,) which prompt each image belongs to; None when every image has a prompt of its own.

    Returns:
        (prompts,) float64, in order of first appearance.

    Raises:
        RaysenseError: If the lengths differ, nothing is given, or a value is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise RaysenseError(f"`values` must be a list of numbers, one an image, but got shape {x.shape}.")
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).sum())
        raise RaysenseError(
            f"`values` holds {bad} of {x.size} that are not finite; ask `why_collapsed` before measuring."
        )
    if prompt_ids is None:
        return x
    labels = prompt_labels(prompt_ids, x.size)
    return np.bincount(labels, weights=x) / np.bincount(labels)


def prompt_labels(prompt_ids: Sequence[Hashable] | None, n: int) -> Integers:
    """Number the prompts 0, 1, 2 … in order of first appearance; (n,) int64."""
    if prompt_ids is None:
        return np.arange(n, dtype=np.int64)
    if len(prompt_ids) != n:
        raise RaysenseError(f"`prompt_ids` has {len(prompt_ids)} entries for {n} images; give one an image.")
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(prompt, len(seen)) for prompt in prompt_ids], dtype=np.int64)


def mean_interval(
    values: npt.ArrayLike, prompt_ids: Sequence[Hashable] | None = None, level: float = LEVEL
) -> Interval:
    """Mean over prompts with Student's t interval.

    Args:
        values: (n,) one number an image.
        prompt_ids: (n,) the prompt of each image; None when all differ.
        level: Two-sided confidence, in (0, 1).

    Returns:
        The interval; infinitely wide for a single prompt, which says nothing about others.

    Raises:
        RaysenseError: See `prompt_means`.

    Example:
        >>> mean_interval([0.31, 0.29, 0.30, 0.30]).value
        0.3
    """
    means = prompt_means(values, prompt_ids)
    centre, n = float(means.mean()), len(np.asarray(values))
    if means.size < 2:
        return Interval(centre, -np.inf, np.inf, n)
    error = float(means.std(ddof=1)) / np.sqrt(means.size)
    return around(centre, error, means.size - 1, n, level)


def quantile(freedom: int, level: float = LEVEL) -> float:
    """Student's t quantile of a two-sided interval."""
    return float(stdtrit(freedom, (1 + level) / 2))


def around(centre: float, error: float, freedom: int, n: int, level: float = LEVEL) -> Interval:
    """The t interval `centre` ± quantile × standard `error`."""
    if not 0 < level < 1:
        raise RaysenseError(f"`level` must lie between 0 and 1, but got {level}; 0.95 is usual.")
    reach = float(quantile(freedom, level) * error)
    return Interval(centre, centre - reach, centre + reach, n)


def paired_drop(
    dense: npt.ArrayLike,
    pruned: npt.ArrayLike,
    prompt_ids: Sequence[Hashable] | None = None,
    level: float = LEVEL,
) -> Interval:
    """How much a per-image metric falls from the dense to the pruned pipeline, same prompts and seeds.

    Args:
        dense: (n,) the metric of the dense pipeline's images.
        pruned: (n,) of the pruned pipeline's, image by image the same prompt and noise.
        prompt_ids: (n,) the prompt of each pair; None when all differ.
        level: Two-sided confidence.

    Returns:
        Interval of mean(dense − pruned): positive is worse for a metric where higher is better.

    Raises:
        RaysenseError: If the two differ in length; see also `prompt_means`.
    """
    a, b = np.asarray(dense, dtype=np.float64), np.asarray(pruned, dtype=np.float64)
    if a.shape != b.shape:
        raise RaysenseError(f"`dense` {a.shape} and `pruned` {b.shape} must pair up image by image.")
    return mean_interval(a - b, prompt_ids, level)


@dataclass(frozen=True)
class Estimate:
    """A statistic of a whole set of images, and what each image does to it.

    Attributes:
        value: The statistic.
        influence: (n,) float64 with mean zero: to first order the statistic moves by influence[i] · ε when
            the share ε of all weight is moved from the set as it is to image i.
        joint: (n, n) float64, symmetric, rows with mean zero, nothing on the diagonal: what two images do to the
            statistic together beyond what each does alone, for a statistic that is a mean over pairs of
            images. None where there is no such part, or where it is too small to matter.
        reference: (m,) float64 with mean zero: the same as `influence` for the images of the reference. None where they
            are not known (saved statistics), and then the interval holds for this very reference only.
        across: (n, m) float64, rows and columns with mean zero: what an image and one of the reference do together
            beyond what each does alone. None as for `joint`.
        joint_reference: (m, m) float64, as `joint` for the images of the reference.
    """

    value: float
    influence: Floats
    joint: Floats | None = None
    reference: Floats | None = None
    across: Floats | None = None
    joint_reference: Floats | None = None

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference of two statistics of the same images, in their order.

        Raises:
            RaysenseError: If the two do not have the same number of images.
        """
        if len(self.influence) != len(other.influence):
            raise RaysenseError(
                f"estimates of {len(self.influence)} and {len(other.influence)} images; they must pair."
            )

        def less(a: Floats | None, b: Floats | None) -> Floats | None:
            return None if a is None or b is None else a - b

        return Estimate(
            self.value - other.value,
            self.influence - other.influence,
            less(self.joint, other.joint),
            less(self.reference, other.reference),
            less(self.across, other.across),
            less(self.joint_reference, other.joint_reference),
        )


def influence_interval(
    estimate: Estimate,
    prompt_ids: Sequence[Hashable] | None = None,
    level: float = LEVEL,
    reference_ids: Sequence[Hashable] | None = None,
) -> Interval:
    """Interval of a statistic by the infinitesimal jackknife over prompts.

    Prompts are drawn anew, and with them the images of the reference; a reference with images of its own is drawn anew
    apart from them. What two images do together is counted by each of them, so it is taken off once (Efron and Stein
    1981). The interval is for the statistic *at this sample size*: a Fréchet distance keeps the bias that its number of
    images gives it.

    Args:
        estimate: The statistic and the images' influences.
        prompt_ids: (n,) the prompt of each image; None when all differ.
        level: Two-sided confidence.
        reference_ids: (m,) the prompt of each image of the reference; None when it has nothing to do with the prompts.

    Raises:
        RaysenseError: If `prompt_ids` or `reference_ids` does not fit.
    """
    n = len(estimate.influence)
    labels = prompt_labels(prompt_ids, n)
    # What one prompt moves the statistic by.
    moves = np.bincount(labels, weights=estimate.influence).astype(np.float64) / n
    if moves.size < 2:
        return Interval(estimate.value, -np.inf, np.inf, n)
    theirs: Integers = np.zeros(0, dtype=np.int64)
    if estimate.reference is not None:
        m = len(estimate.reference)
        theirs = reference_labels(prompt_ids, labels, reference_ids, m)
        sums = np.bincount(theirs, weights=estimate.reference, minlength=moves.size).astype(np.float64) / m
        sums[: moves.size] += moves
        moves, apart = np.split(sums, [moves.size])
    else:
        apart = np.zeros(0)
    variance = between(moves) + between(apart)
    if estimate.joint is not None:
        pairs = _pairs(estimate, estimate.joint, labels, theirs, moves.size + apart.size)
        # Two images of one prompt stand in the influence of both.
        variance = between(moves - pairs.diagonal()[: moves.size] * n / (n - 1)) + between(apart)
        np.fill_diagonal(pairs, 0)
        # Where pairs are all there is, half of it is there twice: never take off more.
        variance = max(variance - 2 * float((pairs**2).sum()), variance / 2)
    return around(estimate.value, float(np.sqrt(variance)), moves.size - 1, n, level)


def _pairs(estimate: Estimate, joint: Floats, labels: Integers, theirs: Integers, prompts: int) -> Floats:
    """What two prompts do to the statistic together, with all of their images: (prompts, prompts), symmetric."""
    n = len(labels)
    if estimate.across is None or estimate.joint_reference is None:
        own = np.eye(int(labels.max()) + 1)[labels]
        return np.asarray(own.T @ joint @ own / n**2)
    own, other, m = np.eye(prompts)[labels], np.eye(prompts)[theirs], len(theirs)
    total = own.T @ joint @ own / n**2 + own.T @ estimate.across @ other / (n * m)
    total += other.T @ estimate.joint_reference @ other / m**2
    return np.asarray((total + total.T) / 2)


def reference_labels(
    prompt_ids: Sequence[Hashable] | None, labels: Integers, reference_ids: Sequence[Hashable] | None, m: int
) -> Integers:
    """Number the prompts of the reference's images, (m,): as `labels` where they are the same, counted on otherwise.

    Args:
        prompt_ids: (n,) as `prompt_labels` was given.
        labels: (n,) what it made of them.
        reference_ids: (m,) the prompt of each image of the reference; None when it has nothing to do with the prompts.
        m: Images of the reference.
    """
    prompts = int(labels.max()) + 1
    if reference_ids is None:
        return prompts + np.arange(m, dtype=np.int64)
    if len(reference_ids) != m:
        raise RaysenseError(
            f"`reference_ids` has {len(reference_ids)} entries for {m} images; give one an image."
        )
    ids = list(range(len(labels))) if prompt_ids is None else prompt_ids
    numbers: dict[Hashable, int] = {name: int(label) for name, label in zip(ids, labels, strict=True)}
    return np.array([numbers.setdefault(name, len(numbers)) for name in reference_ids], dtype=np.int64)


def between(sums: Floats) -> float:
    """Variance of the total of (prompts,) independent sums."""
    return sums.size * float(sums.var(ddof=1)) if sums.size > 1 else 0.0


def influence_rise(
    pruned: Estimate,
    dense: Estimate,
    prompt_ids: Sequence[Hashable] | None = None,
    level: float = LEVEL,
    reference_ids: Sequence[Hashable] | None = None,
) -> Interval:
    """How much a statistic of the set grows from the dense to the pruned pipeline, same prompts and seeds.

    Args:
        pruned: The statistic of the pruned pipeline's images.
        dense: Of the dense pipeline's, image by image the same prompt and noise, against the same reference.
        prompt_ids: (n,) the prompt of each pair; None when all differ.
        level: Two-sided confidence.
        reference_ids: (m,) see `influence_interval`.

    Returns:
        Interval of pruned − dense; what both have in common, bias and noise, cancels.

    Raises:
        RaysenseError: If the two do not pair up.
    """
    return influence_interval(pruned - dense, prompt_ids, level, reference_ids)


def jackknife(
    value_of: Callable[[Integers], float],
    prompt_ids: Sequence[Hashable] | int,
    groups: int = GROUPS,
    level: float = LEVEL,
) -> Interval:
    """Interval of any statistic by leaving out one group of prompts at a time.

    Prompt k belongs to group k mod `groups`, so nothing here is random. The interval is for the statistic
    *at this sample size*: a Fréchet distance keeps the bias that its number of images gives it.

    Args:
        value_of: The statistic on a subset of the images, given their indices, int64, ascending.
        prompt_ids: (n,) the prompt of each image, or n when all differ.
        groups: How many groups, at most the number of prompts.
        level: Two-sided confidence.

    Returns:
        The value on all images with a t interval of `groups` − 1 degrees of freedom.

    Raises:
        RaysenseError: If fewer than two prompts are given.
    """
    n = prompt_ids if isinstance(prompt_ids, int) else len(prompt_ids)
    labels = prompt_labels(None if isinstance(prompt_ids, int) else prompt_ids, n)
    prompts = int(labels.max()) + 1 if n else 0
    if prompts < 2 or groups < 2:
        raise RaysenseError(
            f"a jackknife needs at least 2 prompts and 2 groups, but got {prompts} and {groups}; add prompts."
        )
    groups = min(groups, prompts)
    group = labels % groups
    everything = np.arange(n, dtype=np.int64)
    whole = value_of(everything)
    left_out = np.array([value_of(everything[group != g]) for g in range(groups)])
    # h = n / m: how often the left-out group fits into the sample.
    h = n / np.bincount(group, minlength=groups)
    pseudo = h * whole - (h - 1) * left_out
    centre = groups * whole - float(((h - 1) / h * left_out).sum())
    variance = float(((pseudo - centre) ** 2 / (h - 1)).mean())
    return around(whole, float(np.sqrt(variance)), groups - 1, n, level)


def look_levels(fractions: Sequence[float], alpha: float = 1 - LEVEL, power: float = 1.0) -> list[float]:
    """Confidence of each look at a growing sample, so that all looks together err at most `alpha`.

    A look at fraction t of the planned sample may have used up alpha · t^power of the error; each look gets
    what its predecessors left, and the union bound adds them up. The bound holds whatever the dependence
    between the looks, at the price of slightly wider intervals than the exact recursion gives.

    Args:
        fractions: Share of the planned sample at each look, ascending, in (0, 1].
        alpha: Two-sided error of the whole sequence.
        power: 1 spends evenly; 3 saves almost everything for the last look.

    Returns:
        One level a look, for `mean_interval`, `paired_drop` and `jackknife`: stop at the first interval
        that excludes the bound.

    Raises:
        RaysenseError: If the fractions do not ascend within (0, 1].

    Example:
        >>> [round(level, 4) for level in look_levels([0.0625, 0.25, 1])]
        [0.9969, 0.9906, 0.9625]
    """
    steps = np.diff([0.0, *fractions])
    if not len(fractions) or (steps <= 0).any() or fractions[-1] > 1:
        raise RaysenseError(
            f"`fractions` must ascend within (0, 1], but got {list(fractions)}; give each look once."
        )
    spent = alpha * np.array([0.0, *fractions]) ** power
    return [float(level) for level in 1 - np.diff(spent)]
