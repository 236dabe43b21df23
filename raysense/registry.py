"""Plug-ins: what their decorators say of them, and how one is found by name, by dotted path or by entry point.

A plug-in is a function (an extractor may be a class) in a module of its author's own. A decorator gives it a name and
says what raysense must know without calling it; the object itself stays as it is. A study names a plug-in by its dotted
path, by its name where its module has been imported, or by the name of an entry point of the group `raysense.plugins`
(``sharpness = my_package.metrics:sharpness``), which is known without importing anything. Loads no torch.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Literal, TypeVar

from raysense.errors import RaysenseError

GROUP = "raysense.plugins"
"""Entry points of this group are plug-ins: name -> ``module:object``."""

DOTTED = re.compile(r"[A-Za-z_]\w*([.:][A-Za-z_]\w*)+")
"""A dotted path: ``package.module.name`` or ``package.module:name``."""

Kind = Literal["metric", "saliency", "strategy", "allocation_rule", "extractor"]
Plugin = TypeVar("Plugin", bound=Callable[..., Any])

_ATTRIBUTE = "__raysense__"


@dataclass(frozen=True)
class Declaration:
    """What a decorator says of a plug-in.

    Attributes:
        kind: Which decorator it was.
        name: The plug-in's name.
        facts: The decorator's other arguments, those that were given.
    """

    kind: Kind
    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)


_REGISTERED: dict[tuple[str, str], Callable[..., Any]] = {}
"""(kind, name) -> what was decorated in this process."""


def metric(
    name: str,
    *,
    higher_is_better: bool = True,
    kind: Literal["image", "set"] = "image",
    label: str = "",
    unit: str = "",
    meaning: str = "",
) -> Callable[[Plugin], Plugin]:
    """Declare a metric of your own.

    A metric of images takes ``(images, prompts, dense)``: float32 (n, 3, h, w) in [0, 1], n texts, and the dense
    pipeline's images of the same prompts and noise, shaped alike. It returns n finite numbers; their mean counts, with
    Student's t interval over prompts. A metric of the set (``kind="set"``) takes ``(features, reference)``: float32
    (n, d) and (m, d) of the study's extractor, and returns one number; its interval is a delete-a-group jackknife over
    prompts, see `raysense.metrics.custom`.

    Example:
        >>> @metric("brightness", label="mean brightness", unit="share of white")
        ... def brightness(images, prompts, dense):
        ...     return images.mean(dim=(1, 2, 3))

    Args:
        name: A short name, lower case with underscores.
        higher_is_better: Which way is good: bounds are ``min`` and ``max_drop``, or else ``max`` and ``max_rise``.
        kind: ``image`` or ``set``, see above.
        label: For people; the name if missing.
        unit: Of the value.
        meaning: What it says, in half a sentence.

    Raises:
        RaysenseError: `kind` is neither.
    """
    if kind not in ("image", "set"):
        raise RaysenseError(f"@metric({name!r}): `kind` must be 'image' or 'set', but is {kind!r}")
    facts = {
        "higher_is_better": higher_is_better,
        "kind": kind,
        "label": label,
        "unit": unit,
        "meaning": meaning,
    }
    return _declaring("metric", name, facts)


def saliency(
    name: str,
    *,
    needs: Iterable[Literal["inputs", "gradients"]] = (),
    kinds: Iterable[str] | None = None,
    updates_weights: bool = False,
    weighted_steps: bool = False,
) -> Callable[[Plugin], Plugin]:
    """Declare a pruning method of your own: one that scores weights, or one that also updates those that stay.

    A method that scores takes ``(weight, stats)``, the tensor and a `raysense.pruning.saliency.LayerStats` with the
    statistics that it `needs`; it returns one finite score a weight, in the weight's shape; the lowest leave first. A
    method that updates takes ``(weight, hessian, zeros, kind)``: the tensor, float32 (groups, columns, columns) E[x·xᵀ]
    of the layer's inputs, how many weights are zero in the end, and the layer's kind. It returns the new weight, of the
    same shape and dtype, with exactly that many zeros (more only where the dense weight has more).

    Example:
        >>> @saliency("by_input", needs=["inputs"], kinds=["linear"])
        ... def by_input(weight, stats):
        ...     return weight.abs() * stats.inputs.sqrt().to(weight)

    Args:
        name: A short name.
        needs: Statistics of the dense pipeline at work: ``inputs`` (mean square of each input) and ``gradients`` (mean
            square of each weight's gradient).
        kinds: Layers that it can handle (``linear``, ``conv2d`` …); all if missing.
        updates_weights: Which of the two contracts above holds.
        weighted_steps: Whether early denoising steps count more in the Hessians, as in OBS-Diff.

    Raises:
        RaysenseError: An unknown statistic, or statistics for a method that updates weights.
    """
    wanted, layers = tuple(needs), None if kinds is None else tuple(kinds)
    if strange := [need for need in wanted if need not in ("inputs", "gradients")]:
        raise RaysenseError(
            f"@saliency({name!r}): `needs` has {strange[0]!r}; there are 'inputs' and 'gradients'"
        )
    if updates_weights and wanted:
        raise RaysenseError(
            f"@saliency({name!r}): a method that updates weights gets Hessians; leave `needs` out"
        )
    facts = {
        "needs": wanted,
        "kinds": layers,
        "updates_weights": updates_weights,
        "weighted_steps": weighted_steps,
    }
    return _declaring("saliency", name, facts)


def strategy(name: str) -> Callable[[Plugin], Plugin]:
    """Declare a search strategy of your own: a generator that proposes allocations and is told how they fared.

    It takes ``(search, candidates)``, a `raysense.strategies.context.SearchContext` and the candidates that allocation
    rules led to. It yields an `Allocation` and is sent its `Candidate`, yields a list of allocations and is sent a
    list, or yields a `TrialSpec` for any rung and is sent its evaluations. It ends when it returns, or when it has
    spent what `search.rounds` × `search.offspring` candidates cost. It must be deterministic given what it is sent.

    Example:
        >>> @strategy("steps")
        ... def steps(search, candidates):
        ...     for share in (0.2, 0.4): yield search.grid.uniform(share)

    Args:
        name: A short name.
    """
    return _declaring("strategy", name, {})


def allocation_rule(name: str) -> Callable[[Plugin], Plugin]:
    """Declare an allocation rule of your own: how a total is shared out over the layers.

    It takes ``(inventory, grid, zeros)``, a `raysense.pruning.layers.Inventory`, a `raysense.allocation.LevelGrid` and
    the number of weights to remove, and returns an `Allocation` that removes as many, within a step of the grid
    (`LevelGrid.nearest` rounds). Its sparsest total inside the quality budget is searched for.

    Example:
        >>> @allocation_rule("by_size")
        ... def by_size(inventory, grid, zeros):
        ...     return grid.nearest({a: zeros * grid.weights(a) / grid.n for a in grid.addresses}, zeros)

    Args:
        name: A short name.
    """
    return _declaring("allocation_rule", name, {})


def extractor(name: str) -> Callable[[Plugin], Plugin]:
    """Declare a feature extractor of your own for `metrics.features.extractor`.

    It is called with ``device=…, batch=…`` and gives an object with a `name` and a method ``images(images)``: float32
    (n, 3, h, w) in [0, 1] to float32 (n, d). Module attributes of it are part of the study's identity.

    Example:
        >>> @extractor("colours")
        ... class Colours: name = "colours"

    Args:
        name: A short name.
    """
    return _declaring("extractor", name, {})


def _declaring(kind: Kind, name: str, facts: Mapping[str, Any]) -> Callable[[Plugin], Plugin]:
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise RaysenseError(f"@{kind}({name!r}): a name has letters, digits and underscores only")

    def declare(plugin: Plugin) -> Plugin:
        setattr(plugin, _ATTRIBUTE, Declaration(kind, name, facts))
        _REGISTERED[kind, name] = plugin
        return plugin

    return declare


def declaration_of(plugin: object) -> Declaration | None:
    """What the decorator of an object says; None where it has none."""
    found = getattr(plugin, _ATTRIBUTE, None)
    return found if isinstance(found, Declaration) else None


@functools.cache
def installed() -> Mapping[str, str]:
    """Plug-ins that installed packages offer: name -> dotted path. Nothing is imported."""
    return {point.name: point.value for point in entry_points(group=GROUP)}


def located(name: str, kind: Kind) -> str:
    """The dotted path behind a plug-in's name; an empty text if there is none.

    Args:
        name: A dotted path, the name of something decorated in this process, or of an entry point.
        kind: What is looked for.

    Raises:
        RaysenseError: It was decorated where no other process can import it from.
    """
    if DOTTED.fullmatch(name):
        return name
    own = _REGISTERED.get((kind, name))
    if own is None:
        return installed().get(name, "")
    module, inside = own.__module__, getattr(own, "__qualname__", name)
    if module == "__main__" or "<" in inside:
        raise RaysenseError(
            f"{kind} {name!r} is defined in {'a script or notebook' if module == '__main__' else 'a function'}, where "
            "workers cannot import it from; put it into a module of its own"
        )
    return f"{module}:{inside}"


def find(path: str, where: str, may_be: type | None = None) -> Any:
    """Import the object at a dotted path.

    Args:
        path: ``package.module.name`` or ``package.module:name``.
        where: What names it, for the error message, e.g. a field of the study.
        may_be: Objects of this class need not be callable.

    Returns:
        The function or class.

    Raises:
        RaysenseError: There is no such module or name, importing it fails, or it cannot be called.
    """
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name) if module else None
    except (ImportError, AttributeError) as error:
        raise RaysenseError(
            f"{where}: {path!r} cannot be imported ({error}); check the name and PYTHONPATH."
        ) from error
    except Exception as error:
        raise RaysenseError(
            f"{where}: {path!r} cannot be imported: its module raises {type(error).__name__}: {error}"
        ) from error
    if not callable(found) and (may_be is None or not isinstance(found, may_be)):
        raise RaysenseError(
            f"{where}: {path!r} is {type(found).__name__}, which cannot be called; write `package.module.function`."
        )
    return found
