"""Ranks in the time of a few passes: which weights are the lowest, for many counts at once, exactly.

A stable sort says it too, at some 400 ns a weight. On a CPU the scores are counted in buckets instead, by their
bits, which have the order of their values; only buckets that a count cuts are looked into.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

NEVER = 255
"""The prune level of a weight that no level removes. A weight with prune level p is zero at the levels above p."""

_CHUNK = 1 << 16
"""Weights counted together: small enough that looking for the members of one bucket costs little."""

_FINE = 10
"""Bits of a 32-bit score that its bucket leaves out: 4 M buckets, of which the 255 that are cut hold few scores."""

Keys = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


def prune_levels(scores: Tensor, removed: Sequence[int]) -> Tensor:
    """The prune level of each weight: the highest level at which it stays, or `NEVER`.

    Args:
        scores: One a weight, float32, float16 or bfloat16, no NaN; the lowest leave first, equal ones in order
            of position.
        removed: How many weights are gone at levels 1, 2, …; non-decreasing, at most 255 entries.

    Returns:
        uint8, in the shape of `scores`: exactly ``removed[l - 1]`` entries are below ``l``.
    """
    flat, counts = scores.detach().flatten(), np.asarray(removed, dtype=np.int64)
    if flat.device.type != "cpu" or flat.numel() <= _CHUNK:
        return _by_sorting(flat, counts).view(scores.shape)
    find = _by_equal_keys if flat.element_size() == 2 else _by_buckets
    return find(flat, counts).view(scores.shape)


def sortable(values: Tensor) -> Keys:
    """Unsigned integers of the values' own size that have the order of the values; equal values have equal ones."""
    # Adding nothing turns -0.0 into 0.0, which equals it.
    numbers = values.detach() + 0.0
    size = numbers.element_size() * 8
    signed = numbers.view(torch.int16 if size == 16 else torch.int32).numpy()
    # Negative numbers: all bits turned round; others: the sign bit set.
    keys = (signed >> (size - 1)).view(f"uint{size}")
    keys |= keys.dtype.type(1 << (size - 1))
    keys ^= signed.view(keys.dtype)
    return keys


def magnitude_counts(weight: Tensor) -> tuple[npt.NDArray[np.float64], Integers]:
    """The magnitudes that occur in a 16-bit weight, ascending, and how often each does."""
    bits = weight.detach().flatten().cpu().view(torch.int16).numpy().view(np.uint16) & np.uint16(0x7FFF)
    counts = np.bincount(bits, minlength=1 << 15)
    there = counts.nonzero()[0]
    values = torch.from_numpy(there.astype(np.uint16).view(np.int16)).view(weight.dtype)
    return values.double().numpy(), counts[there]


def _level_of(ranks: Integers, removed: Integers) -> Bytes:
    """The byte of the weights at these positions of the sorted order."""
    level = np.searchsorted(removed, ranks, side="right")
    return np.where(level >= len(removed), NEVER, level).astype(np.uint8)


def _by_sorting(scores: Tensor, removed: Integers) -> Tensor:
    """The bytes of scores on any device, by a stable sort."""
    order = scores.argsort(stable=True)
    sizes = torch.tensor([0, *removed.tolist(), order.numel()], device=order.device).diff()
    values = torch.tensor([*range(len(removed)), NEVER], dtype=torch.uint8, device=order.device)
    levels = torch.empty(order.numel(), dtype=torch.uint8, device=order.device)
    levels[order] = values.repeat_interleave(sizes)
    return levels


def _by_equal_keys(scores: Tensor, removed: Integers) -> Tensor:
    """The bytes of 16-bit scores: a bucket a value, so the members of one are equal and leave in order of position.

    A bucket that some count cuts has another byte from chunk to chunk; within the one chunk where the cut falls its
    members are looked up.
    """
    keys = sortable(scores)
    chunks = [keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK)]
    counts = np.empty((len(chunks), 1 << 16), dtype=np.int32)
    for number, chunk in enumerate(chunks):
        counts[number] = np.bincount(chunk, minlength=1 << 16)
    sizes = counts.sum(axis=0, dtype=np.int64)
    starts = sizes.cumsum() - sizes
    table = _level_of(starts, removed)
    cut = ((table != _level_of(starts + np.maximum(sizes, 1) - 1, removed)) & (sizes > 0)).nonzero()[0]
    rank = starts[cut]  # of the next member, from chunk to chunk
    levels = np.empty(len(keys), dtype=np.uint8)
    for number, chunk in enumerate(chunks):
        here = counts[number, cut]
        first, last = _level_of(rank, removed), _level_of(rank + np.maximum(here, 1) - 1, removed)
        table[cut] = first
        part = levels[number * _CHUNK : number * _CHUNK + len(chunk)]
        np.take(table, chunk, out=part)
        for i in ((first != last) & (here > 0)).nonzero()[0]:
            members = (chunk == cut[i]).nonzero()[0]
            part[members] = _level_of(rank[i] + np.arange(len(members)), removed)
        rank = rank + here
    return torch.from_numpy(levels)


def _by_buckets(scores: Tensor, removed: Integers) -> Tensor:
    """The bytes of 32-bit scores: buckets of close values, of which those that some count cuts are sorted."""
    buckets = sortable(scores) >> _FINE
    sizes = np.bincount(buckets, minlength=1 << (32 - _FINE))
    starts = sizes.cumsum() - sizes
    table = _level_of(starts, removed)
    is_cut = (table != _level_of(starts + np.maximum(sizes, 1) - 1, removed)) & (sizes > 0)
    if sizes[is_cut].sum() > len(buckets) // 4:  # few different values: sorting all of them is quick
        return _by_sorting(scores, removed)
    levels = np.take(table, buckets)
    if is_cut.any():
        members = np.take(is_cut, buckets).nonzero()[0]
        members = members[scores[torch.from_numpy(members)].argsort(stable=True).numpy()]
        # Members of one bucket follow one another now; a member's rank is its bucket's start and its place there.
        own = buckets[members]
        places = np.arange(len(own))
        begins = np.maximum.accumulate(np.where(np.append(True, own[1:] != own[:-1]), places, 0))
        levels[members] = _level_of(starts[own] + places - begins, removed)
    return torch.from_numpy(levels)
