"""Levels, allocations and their arithmetic: how many weights leave each layer, exact to the weight.

No torch here: a study is validated, and a strategy decides, without it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import groupby

from raysense.errors import RaysenseError

MAX_LEVELS = 255
"""Levels above 0 of any layer: the level at which a weight leaves fits a byte, with 255 left for *never*."""

FEW_STEPS = 16
"""A layer with fewer steps than this has no level of its own; it moves with its block."""

_BLOCK_DEPTH = 4
"""How many segments of a module path may name its block."""


class Allocation(Mapping[str, int]):
    """An immutable, hashable mapping: layer address -> level. Layers at level 0 are left out."""

    __slots__ = ("_levels", "key")

    key: str

    def __init__(self, levels: Mapping[str, int] | None = None) -> None:
        self._levels = {k: int(v) for k, v in sorted((levels or {}).items()) if v}
        text = json.dumps(self._levels, separators=(",", ":"))
        self.key = hashlib.sha256(text.encode()).hexdigest()[:16]

    def __getitem__(self, layer: str) -> int:
        return self._levels.get(layer, 0)

    def __contains__(self, layer: object) -> bool:
        return layer in self._levels

    def __iter__(self) -> Iterator[str]:
        return iter(self._levels)

    def __len__(self) -> int:
        return len(self._levels)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Allocation) and other.key == self.key

    def __repr__(self) -> str:
        return f"Allocation({self.key}, {len(self)} layers)"


def block_of(address: str) -> str:
    """The address of the block a layer belongs to.

    The block is the layer's path up to the last number among its first four segments, or the first segment
    where there is no number: ``unet:down_blocks.0.attentions.1.to_q`` -> ``unet:down_blocks.0.attentions.1``,
    ``text_encoder:encoder.layers.3.mlp.fc1`` -> ``text_encoder:encoder.layers.3``,
    ``unet:time_embedding.linear_1`` -> ``unet:time_embedding``. The rule knows no architecture.
    """
    component, path = address.split(":", 1)
    head = path.split(".")[:_BLOCK_DEPTH]
    numbers = [i for i, segment in enumerate(head) if segment.isdigit()]
    return f"{component}:{'.'.join(head[: numbers[-1] + 1] if numbers else head[:1])}"


class _Steps:
    """Which steps a grid's layers get, see `LevelGrid`."""

    def __init__(self, sizes: Mapping[str, int], max_layer_sparsity: float, max_levels: int) -> None:
        self._n, self._cap, self._max_levels = sizes, max_layer_sparsity, max_levels

    def limit(self, n: int) -> int:
        """The most weights that a layer of so many can lose."""
        # The product may fall just short of a whole number (0.29 * 100), which must not cost a weight.
        return min(n, math.floor(self._cap * n + 1e-9))

    def step_for(self, n: int, base: int) -> int:
        """Weights of a step of a layer with so many."""
        step = base
        while self.limit(n) // step > self._max_levels:
            step *= 2
        return step

    def least_base(self) -> int:
        """The smallest base for which every total can be met."""
        smallest = min(self._n.values())
        base = max(1, -(-self.limit(smallest) // self._max_levels))
        while not self._every_total_reachable(base):
            base *= 2
        return base

    def _every_total_reachable(self, base: int) -> bool:
        """Whether the layers with small steps can always make up what a large step leaves open."""
        leaders = self.find_leaders(base)
        pairs = sorted((self.step_for(n, base), self.limit(n)) for a, n in self._n.items() if leaders[a] == a)
        reach = 0
        for step, group in groupby(pairs, key=lambda pair: pair[0]):
            if reach < step - base:
                return False
            reach += sum(limit // step * step for _, limit in group)
        return True

    def find_leaders(self, base: int) -> dict[str, str]:
        """Layer -> the layer whose level moves it."""
        enough = min(FEW_STEPS, (self._max_levels + 1) // 2)
        few = {a for a, n in self._n.items() if self.limit(n) // self.step_for(n, base) < enough}
        largest: dict[str, str] = {}
        for address in (a for a in self._n if a not in few):
            for place in (block_of(address), address.split(":", 1)[0]):
                if place not in largest or self._n[address] > self._n[largest[place]]:
                    largest[place] = address
        return {
            a: a if a not in few else largest.get(block_of(a), largest.get(a.split(":", 1)[0], a))
            for a in self._n
        }


# long: all arithmetic of levels, which belongs together
class LevelGrid:
    """The levels of every layer of a study.

    A layer's step is ``c·2^p`` weights: `base` (c) is fixed for the study, p is the least that leaves the
    layer at most 255 steps below its largest sparsity. The base is the smallest, by doubling from what the smallest
    layer needs, for which every multiple of it up to `max_zeros` is the total of some allocation; so a
    requested total is met within one base step, and totals are kept exactly by switches.

    A layer with fewer than 16 steps moves with the largest layer of its block (of its component, if the
    block has no larger one): that layer's level then counts weights of both together, shared out by size.
    Such a layer has `top` 0 and may not stand in an allocation. If the component has only such layers,
    they keep the few steps they have.

    Args:
        layers: (address, number of weights) of each selected layer, in network order.
        max_layer_sparsity: The largest sparsity a layer may reach, in (0, 1].
        max_levels: The largest level of any layer, 1 to 255.

    Raises:
        RaysenseError: No layers, or the largest sparsity or number of levels out of range.
    """

    def __init__(
        self, layers: Iterable[tuple[str, int]], max_layer_sparsity: float, max_levels: int = MAX_LEVELS
    ) -> None:
        self._n = dict(layers)
        self.max_layer_sparsity = float(max_layer_sparsity)
        self.max_levels = int(max_levels)
        if not self._n:
            raise RaysenseError("layers: none to give levels to; select at least one prunable layer")
        if not 0 < self.max_layer_sparsity <= 1:
            raise RaysenseError(
                f"max_layer_sparsity: must be above 0 and at most 1, but is {max_layer_sparsity}"
            )
        if not 1 <= self.max_levels <= MAX_LEVELS:
            raise RaysenseError(f"max_levels: must be 1 to {MAX_LEVELS}, but is {max_levels}")
        steps = _Steps(self._n, self.max_layer_sparsity, self.max_levels)
        self._limit = steps.limit
        self.base = steps.least_base()
        self._leaders = steps.find_leaders(self.base)
        self._units = {
            leader: tuple(a for a in self._n if self._leaders[a] == leader)
            for leader in dict.fromkeys(self._leaders[a] for a in self._n)
        }
        self._steps = {leader: steps.step_for(self._n[leader], self.base) for leader in self._units}
        self._tops = {leader: self._limit(self._n[leader]) // self._steps[leader] for leader in self._units}

    @classmethod
    def fixed(cls, layers: Iterable[tuple[str, int]], removed: Mapping[str, int]) -> LevelGrid:
        """One level for each layer, which removes a given number of weights.

        Totals are met only as far as the layers' own numbers allow, and a switch exists only between layers
        whose numbers divide.
        """
        grid = cls(layers, 1.0, 1)
        grid._units = {a: (a,) for a in grid._n}
        grid._leaders = {a: a for a in grid._n}
        grid._steps = {a: removed[a] for a in grid._n}
        grid._tops = {a: int(removed[a] > 0) for a in grid._n}
        grid.base = min(step for step in grid._steps.values() if step)
        return grid

    def part(self, addresses: Iterable[str]) -> LevelGrid:
        """The same levels for some of the layers, with all that moves with them; other layers are unknown to it.

        Raises:
            RaysenseError: None of them has a level of its own.
        """
        wanted = set(addresses)
        units = {leader: members for leader, members in self._units.items() if leader in wanted}
        if not units:
            raise RaysenseError(
                f"allocation: {', '.join(sorted(wanted)[:3])} have no levels of their own: they move with others"
            )
        part = copy.copy(self)
        members = {address for unit in units.values() for address in unit}
        part._n = {address: n for address, n in self._n.items() if address in members}
        part._leaders = {address: self._leaders[address] for address in part._n}
        part._units = units
        part._steps = {leader: self._steps[leader] for leader in units}
        part._tops = {leader: self._tops[leader] for leader in units}
        part.base = min(part._steps.values())
        return part

    @property
    def addresses(self) -> tuple[str, ...]:
        """The layers that have a level of their own, in network order."""
        return tuple(self._units)

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers, those that move with another included."""
        return tuple(self._n)

    @property
    def max_zeros(self) -> int:
        """The zeros of the allocation that has every layer at its top."""
        return sum(self._steps[a] * self._tops[a] for a in self._units)

    @property
    def n(self) -> int:
        """Weights of all layers."""
        return sum(self._n.values())

    def leader(self, address: str) -> str:
        """The layer whose level moves this one: itself, unless it has too few steps."""
        self._require(address)
        return self._leaders[address]

    def members(self, address: str) -> tuple[str, ...]:
        """The layers that this layer's level moves: itself and those that ride with it."""
        self._require(address)
        return self._units.get(address, ())

    def weights(self, address: str) -> int:
        """Weights that this layer's level governs: its own and those of the layers that ride with it."""
        return sum(self._n[a] for a in self.members(address))

    def step(self, address: str) -> int:
        """Weights that leave with each level of this layer; 0 for one that moves with another."""
        self._require(address)
        return self._steps.get(address, 0)

    def top(self, address: str) -> int:
        """The highest level of this layer; 0 for one that moves with another."""
        self._require(address)
        return self._tops.get(address, 0)

    def zeros_at(self, address: str, level: int) -> int:
        """Weights removed with this layer at this level, followers included."""
        self._check_level(address, level)
        return self.step(address) * level

    def zeros(self, allocation: Mapping[str, int]) -> int:
        """Weights that the allocation removes in all.

        Raises:
            RaysenseError: An unknown layer or a level out of range.
        """
        return sum(self.zeros_at(address, level) for address, level in allocation.items())

    def removed_by_level(self, address: str) -> list[int]:
        """Weights this one layer loses at each of its leader's levels but the lowest, see `removed`."""
        return [self.removed(address, level) for level in range(1, self.top(self.leader(address)) + 1)]

    def removed(self, address: str, level: int) -> int:
        """Weights this one layer loses when its leader stands at `level`.

        Followers take their proportional share one after the other, the leader what is left. Taking shares from
        what is left, instead of from the total, lets no layer get a weight back at a higher level.
        """
        leader = self.leader(address)
        self._check_level(leader, level)
        left, n = self._steps[leader] * level, self.weights(leader)
        for follower in (a for a in self._units[leader] if a != leader):
            share = min(left * self._n[follower] // n, self._limit(self._n[follower]))
            if follower == address:
                return share
            left, n = left - share, n - self._n[follower]
        return left

    def level_for(self, address: str, sparsity: float) -> int:
        """The level nearest to a sparsity (share of the layer's weights), clipped to what there is."""
        step = self.step(address)
        if not step:
            return 0
        return min(max(math.floor(sparsity * self.weights(address) / step + 0.5), 0), self._tops[address])

    def limit(self, address: str) -> int:
        """The most weights that this layer can lose."""
        return self.removed(address, self.top(self.leader(address)))

    def validate(self, allocation: Mapping[str, int]) -> None:
        """Raise a `RaysenseError` unless every layer is known and every level in range."""
        for address, level in allocation.items():
            self._check_level(address, level)

    def uniform(self, sparsity: float) -> Allocation:
        """Every layer at the level nearest to one sparsity."""
        return Allocation({a: self.level_for(a, sparsity) for a in self._units})

    def switch(self, allocation: Mapping[str, int], up: str, down: str, times: int = 1) -> Allocation | None:
        """Prune `up` more and `down` less by the same number of weights.

        The layer with the larger step moves `times` levels, the other as many as make up for it.

        Returns:
            The allocation with the same total, or None if one of the two has no room for it.
        """
        large = max(self.step(up), self.step(down)) * times if self.step(up) and self.step(down) else 0
        if up == down or not large or large % self.step(up) or large % self.step(down):
            return None
        raised = allocation.get(up, 0) + large // self.step(up)
        lowered = allocation.get(down, 0) - large // self.step(down)
        if raised > self._tops[up] or lowered < 0:
            return None
        return Allocation({**allocation, up: raised, down: lowered})

    def nearest(
        self, wanted: Mapping[str, float], total: int, among: Collection[str] | None = None
    ) -> Allocation:
        """The allocation close to a wish whose total is the requested one, less than one base step short.

        Layers with the same step are settled together, large steps first: they get what leaves to the
        smaller steps what those wish for, as far as those can take it. Within such a set the layers
        furthest below their wish are raised first. So a layer may end beside its wish by up to half a step
        of the next larger ones: the price of an exact total.

        Args:
            wanted: Layer -> zeros wished for (any layers, followers too; missing ones count as 0).
            total: Requested zeros in all.
            among: The layers that may be pruned, all by default. Fewer of them meet the total only as
                closely as their own steps allow.

        Raises:
            RaysenseError: The total is negative or beyond `max_zeros`.
        """
        leaders = self.addresses if among is None else tuple(dict.fromkeys(self.leader(a) for a in among))
        if not 0 <= total < self.max_zeros + self.base:
            raise RaysenseError(
                f"zeros: {total:,} cannot be removed; with max_layer_sparsity {self.max_layer_sparsity:g} "
                f"between 0 and {self.max_zeros:,} of {self.n:,} weights can"
            )
        wish = {leader: sum(float(wanted.get(a, 0.0)) for a in self._units[leader]) for leader in leaders}
        levels: dict[str, int] = {}
        rest, wished = total, sum(wish.values())
        room = sum(self._steps[a] * self._tops[a] for a in leaders)
        for step, group in groupby(sorted(wish, key=lambda a: -self._steps[a]), key=lambda a: self._steps[a]):
            peers = list(group)
            wished -= sum(wish[a] for a in peers)
            room -= step * sum(self._tops[a] for a in peers)
            if not step:
                continue
            least = max(0, -(-(rest - room - self.base + 1) // step))
            most = min(rest // step, sum(self._tops[a] for a in peers))
            count = min(max(round((rest - wished) / step), least), most)
            levels |= _share_out(count, {a: wish[a] / step for a in peers}, self._tops)
            rest -= step * count
        return Allocation(levels)

    def signature(self) -> str:
        """A hash of everything that gives a level its meaning."""
        parts = [list(self._n.items()), self.max_layer_sparsity, self._steps, self._tops]
        return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()[:16]

    def _check_level(self, address: str, level: int) -> None:
        self._require(address)
        if not 0 <= level <= self.top(address):
            moved = "" if address in self._units else f" (it moves with {self._leaders[address]})"
            raise RaysenseError(
                f"allocation: level {level} of {address} is out of range; its levels are "
                f"0 to {self.top(address)}{moved}"
            )

    def _require(self, address: str) -> None:
        if address not in self._n:
            known = sorted(self._n)
            near = known[max(0, bisect_right(known, address) - 2) :][:3]
            raise RaysenseError(
                f"allocation: {address!r} is not a selected layer; there are {len(known)}, such as "
                + ", ".join(near)
            )


def _share_out(count: int, wish: Mapping[str, float], tops: Mapping[str, int]) -> dict[str, int]:
    """Give `count` levels to the layers, each near its wish and at most its top."""
    levels = {a: min(max(math.floor(w), 0), tops[a]) for a, w in wish.items()}
    missing = count - sum(levels.values())
    while missing:
        sign = 1 if missing > 0 else -1
        movable = [a for a in levels if (levels[a] < tops[a] if sign > 0 else levels[a] > 0)]
        movable.sort(key=lambda a: sign * (levels[a] - wish[a]))
        for address in movable[: abs(missing)]:
            levels[address] += sign
        missing = count - sum(levels.values())
    return levels
