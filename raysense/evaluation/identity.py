"""What the keys of a study's rows and cache entries follow from, and which layers it prunes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from torch import nn

from raysense.allocation import LevelGrid
from raysense.errors import RaysenseError
from raysense.evaluation.inputs import inputs_of
from raysense.evaluation.scoring import ImageScorer
from raysense.hashing import content_key
from raysense.pipelines.idle_modules import foreseen_for, idle_in
from raysense.prompts.sets import PromptSets
from raysense.pruning.layers import Inventory, take_inventory
from raysense.pruning.patterns import Pattern, pattern_grid
from raysense.store.differences import contents_differ
from raysense.study import Study


class Identity:
    """The keys of one study on one machine; networks are loaded when the first key is asked for.

    Args:
        study: The study.
        prompts: Its prompts.
        grid: Its layers' levels.
        device: ``cpu`` or ``cuda``.
        scorer: Gives the networks that score images.
    """

    def __init__(
        self,
        study: Study,
        prompts: PromptSets,
        grid: LevelGrid,
        device: str,
        scorer: Callable[[], ImageScorer],
    ) -> None:
        self._study, self._prompts, self._grid = study, prompts, grid
        self._device, self._scorer = device, scorer

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What the study is measured on, by content."""
        return inputs_of(self._study, self._prompts, self._scorer(), self._device)

    @cached_property
    def signature(self) -> str:
        """What every key starts from."""
        return signature(self._study, self._grid, self.inputs)

    @cached_property
    def dense(self) -> str:
        """What the keys of dense images start from."""
        return dense_identity(self._study, self.inputs)

    def external(self, size: int) -> str:
        """The cache's name for the study's own reference images, at a size."""
        return external_key(self.inputs, self._scorer(), size)

    def expect(self, inputs: Mapping[str, Any]) -> None:
        """Refuse to measure something else than the driver asks for.

        Raises:
            RaysenseError: `inputs` differ from this machine's; says in what.
        """
        if changed := contents_differ(inputs, self.inputs):
            what = "; ".join(map(str.strip, changed))
            raise RaysenseError(
                f"this machine would measure something else than the driver: {what} (first the driver's, then this "
                "machine's). Give every machine the same files under the same paths, and the same packages"
            )


def inventory_and_grid(study: Study, components: Mapping[str, object]) -> tuple[Inventory, LevelGrid]:
    """The layers that `study` selects from `components`, and their levels."""
    inventory = inventory_of(study, components)
    return inventory, grid_of(study, inventory)


def inventory_of(study: Study, components: Mapping[str, object]) -> Inventory:
    """The layers that `study` selects from `components`."""
    modules = {name: part for name, part in components.items() if isinstance(part, nn.Module)}
    return take_inventory(
        components,
        select=study.prune.components,
        include=study.prune.include,
        exclude=study.prune.exclude,
        kinds=study.prune.kinds,
        idle=idle_in(modules, foreseen_for(study).order),
    )


def grid_of(study: Study, inventory: Inventory) -> LevelGrid:
    """The levels of the layers that `study` selects."""
    if study.prune.pattern:
        return pattern_grid(inventory, Pattern.parse(study.prune.pattern))
    if study.prune.updates:
        return LevelGrid(inventory.sizes, study.prune.max_layer_sparsity, study.prune.calibration.levels)
    return LevelGrid(inventory.sizes, study.prune.max_layer_sparsity)


def dense_identity(study: Study, inputs: Mapping[str, Any]) -> str:
    """What the dense pipeline's images and their features follow from, prompts and seeds aside."""
    return content_key(
        {name: content for name, content in inputs.items() if name not in ("prompts", "reference")},
        study.dtype,
        study.channels_last,
        study.compile,
        study.sampling.model_dump(),
        sorted(study.metrics.model_dump(mode="json")["custom"].items()),
        sorted(study.measured()),
        study.seed,
    )


def signature(study: Study, grid: LevelGrid, inputs: Mapping[str, Any]) -> str:
    """What every key of the study's evaluations starts from: whatever changes a value changes it."""
    return content_key(study.identity(), inputs, grid.signature())


def external_key(inputs: Mapping[str, Any], scorer: ImageScorer, size: int) -> str:
    """The cache's name for the features of a study's own reference images."""
    decides = {name: inputs[name] for name in ("judges", "reference", "plugins", "versions", "device")}
    return content_key("external", decides, scorer.identity, scorer.external.limit, size)
