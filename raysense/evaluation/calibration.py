"""What a study's method learns from the dense pipeline at work: once a study, kept in the store's cache.

Methods that rank weights by more than the weights need statistics (`raysense.pruning.activations`); methods that
update what stays need Hessians, of which only the solved slices are kept (`raysense.evaluation.solved_weights`). Both
come from the study's own denoising loop over the first search prompts, under a seed that no evaluation uses.
Every file is named by what its content follows from, so all workers, and all studies of a folder, share it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from raysense.allocation import Allocation, LevelGrid
from raysense.errors import RaysenseError
from raysense.evaluation.learned import Learned
from raysense.evaluation.level_files import LevelFiles
from raysense.evaluation.memory import release_memory
from raysense.evaluation.method_selection import compared_allocations, components_of
from raysense.hashing import content_key
from raysense.names import OUTLIERS, OWL_BLOCK, UNIFORM, UPDATING
from raysense.pipelines.cost import Cost, assumed
from raysense.pipelines.load import denoiser_of, modules_of
from raysense.pipelines.sample import call_pipeline
from raysense.prompts import coco
from raysense.prompts.sets import PromptSets, check_counts
from raysense.pruning.activations import InputMoments, StepWeight, calibrate
from raysense.pruning.allocation_rules import outlier_ratios
from raysense.pruning.layers import Inventory, Layer, weight_of
from raysense.pruning.masks import Masker, Pruner
from raysense.pruning.obs import Substituter, check_pattern, find_updater, hessian_passes, solve
from raysense.pruning.saliency import LayerStats, find_method
from raysense.store.disk import Disk
from raysense.study import Study
from raysense.study.sweep import by_component

logger = logging.getLogger(__name__)

_Found = TypeVar("_Found")


def needs_of(study: Study) -> frozenset[str]:
    """What must be collected from the dense pipeline: any of ``inputs``, ``gradients`` and ``hessians``.

    Raises:
        RaysenseError: An unknown method, or one whose gradients cannot be had.
    """
    needs = frozenset({"inputs"} if set(OUTLIERS) & set(study.search.strategies) else ())
    for name in study.prune.methods:
        own = frozenset({"hessians"}) if name in UPDATING or study.prune.updates else find_method(name).needs
        if "gradients" in own and study.offload == "sequential":
            raise RaysenseError(
                f"`offload` is 'sequential', but {name} needs gradients of weights, which are gone after each layer's "
                "call; use `offload: model`, or another `prune.saliency`"
            )
        needs |= own
    return needs


def with_method(study: Study, method: str) -> Study:
    """The study with another method in the place of its own; one of `OUTLIERS` for what that rule needs alone.

    Of a mapping from components to methods, see `raysense.study.sweep.by_component`, with all that it names.
    """
    several = tuple(dict.fromkeys((*study.prune.methods, *by_component(method).values())))
    saliency: str | tuple[str, ...] = "magnitude" if method in OUTLIERS else method
    if by_component(method):
        saliency = several if len(several) > 1 else several[0]
    updating = study.prune.updates_weights and method == study.prune.saliency
    prune = study.prune.model_copy(update={"saliency": saliency, "updates_weights": updating})
    search = study.search.model_copy(update={"strategies": (method if method in OUTLIERS else UNIFORM,)})
    return study.model_copy(update={"prune": prune, "search": search})


def calibration_cost(
    study: Study,
    inventory: Inventory,
    grid: LevelGrid,
    modules: Mapping[str, nn.Module],
    cost: Cost | None = None,
) -> int:
    """NFE of the calibration, at most; 0 if the study needs none.

    Args:
        study: The study.
        inventory: Its layers.
        grid: Their levels.
        modules: The pipeline's.
        cost: Of an image.

    Raises:
        RaysenseError: The method is unknown or cannot handle the layers, or there are too few prompts.
    """
    cost = cost or assumed(study.sampling)
    needs, calibration, methods = needs_of(study), study.prune.calibration, study.prune.methods
    for name in methods:
        if name in UPDATING or study.prune.updates:
            find_updater(name)
            if len(methods) > 1:
                raise RaysenseError(
                    f"`prune.saliency`: {name} updates the weights that stay and cannot compete; name it alone, "
                    "or only methods that rank"
                )
            if study.prune.pattern:
                check_pattern(inventory.layers)
            continue
        method = find_method(name)
        strange = [layer for layer in inventory.layers if method.kinds and layer.kind not in method.kinds]
        if method.kinds and strange:
            raise RaysenseError(
                f"`prune.saliency`: {method.name} cannot score {strange[0].address}, which is {strange[0].kind}, nor "
                f"{len(strange) - 1} more; it handles {', '.join(sorted(method.kinds))}: set `prune.kinds` to these"
            )
    selection = _selection_cost(study, grid, cost) if len(methods) > 1 else 0
    if not needs:
        return selection
    known = check_counts(study.prompts, {})  # a plan is made where COCO's captions are not
    available = coco.PER_SET if known is None else len(known.search)
    if calibration.prompts > available:
        raise RaysenseError(
            f"`prune.calibration.prompts` must be ≤ {available}, the number of search prompts in `prompts`, but got "
            f"{calibration.prompts}"
        )
    # Gradients: the calls are recorded first, then replayed.
    passes = ("inputs" in needs) + 2 * ("gradients" in needs)
    if "hessians" in needs:
        limit = int(calibration.memory_gb * 1e9)
        passes += len(hessian_passes(modules, inventory.layers, limit))
    # One more image tells how often a run calls the denoiser.
    return (passes * calibration.prompts + 1) * cost.image + selection


def _selection_cost(study: Study, grid: LevelGrid, cost: Cost) -> int:
    """NFE of comparing the study's methods."""
    compared = sum(len(compared_allocations(grid, component)) for component in components_of(grid))
    probes, rung = len(study.prune.methods) * compared, study.rungs.probe
    return cost.probe(rung, records=True) + (probes - 1) * cost.probe(rung)


class Calibration(Learned):
    """Collects what a study's method needs, or finds it in the cache, and makes the pruner that uses it.

    Args:
        study: The study.
        pipeline: Dense whenever something is collected.
        inventory: The selected layers.
        grid: Their levels.
        prompts: The study's prompts; the first search prompts are used.
        disk: Where the cache is.
        identity: A hash of the pipeline's weights and of the software.

    Attributes:
        images: Images sampled by this object so far.
        notes: What departed from the plan while collecting.
    """

    def __init__(
        self,
        study: Study,
        pipeline: DiffusionPipeline,
        inventory: Inventory,
        grid: LevelGrid,
        prompts: PromptSets,
        disk: Disk,
        identity: str = "",
    ) -> None:
        super().__init__(study, inventory, grid, prompts, disk, identity)
        self._pipeline = pipeline
        self._modules = modules_of(pipeline)
        self._batch = study.sampling.batch
        self.images = 0
        self.notes: list[str] = []

    def learn(self) -> None:
        """Collect whatever is not in the cache yet. The pipeline must be dense."""
        self._statistics(needs_of(self._study) - {"hessians"})
        if "hessians" in needs_of(self._study):
            self._solve()

    def pruner(self, methods: Mapping[str, str]) -> Pruner:
        """What applies allocations; learns first what is not in the cache.

        Args:
            methods: Component -> method.
        """
        names = set(methods.values())
        if self._study.prune.updates:
            self._solve()
            return Substituter(self._modules, self._inventory, self._grid, self._slices.load)
        statistics = self._statistics(frozenset[str]().union(*(find_method(name).needs for name in names)))
        return Masker(
            self._modules,
            self._inventory,
            self._grid,
            methods,
            statistics,
            self._study.seed,
            pattern=self._pattern,
            keeper=LevelFiles(partial(_levels_key, self._base, self._study, self._grid, methods)),
        )

    def outliers(self, rule: str) -> dict[str, float]:
        """Layer -> what one of `OUTLIERS` allocates by, see `outlier_ratios`. The pipeline must be dense."""
        statistics = self._statistics(frozenset({"inputs"}))
        return outlier_ratios(
            self._inventory, self._modules, statistics, "block" if rule == OWL_BLOCK else "layer"
        )

    def noted(self, allocation: Allocation) -> str:
        """What departed from the plan in the weights of an allocation, or an empty text."""
        if "hessians" not in needs_of(self._study):
            return ""
        layers = [address for leader in allocation for address in self._grid.members(leader)]
        found = [f"{address} {note}" for address in layers if (note := self._slices.note(address))]
        return f"{len(found)} layers: {', '.join(found[:3])}{' …' * (len(found) > 3)}" if found else ""

    # --- statistics -----------------------------------------------------------------------------------

    def _statistics(self, needs: frozenset[str]) -> dict[str, LayerStats]:
        found: dict[str, dict[str, Tensor]] = {}
        for need in sorted(needs):
            stored = self._stored(need)
            if stored is None:
                stored = self._collect(need)
                for block, layers in self._blocks():
                    self._cache.put(self._statistic_key(need, block), {a: stored[a] for a in layers})
            found[need] = stored
        return {
            layer.address: LayerStats(
                layer.address,
                layer.kind,
                **{need: tensors[layer.address] for need, tensors in found.items()},
                seed=self._study.seed,
            )
            for layer in self._inventory.layers
        }

    def _stored(self, need: str) -> dict[str, Tensor] | None:
        tensors: dict[str, Tensor] = {}
        for block, _ in self._blocks():
            part = self._read(need, block)
            if part is None:
                return None
            tensors |= part
        return tensors

    def _collect(self, need: str) -> dict[str, Tensor]:
        logger.info("collecting %s over %d prompts", need, len(self._prompts))
        known = self._attempt(
            lambda: calibrate(
                self._modules,
                self._inventory,
                frozenset({need}),
                self._run,
                seed=self._study.seed,
                calls=self._study.prune.calibration.calls,
            )
        )
        return {address: getattr(entry, need) for address, entry in known.items()}

    # --- slices ---------------------------------------------------------------------------------------

    def _solve(self) -> None:
        """Solve the levels of every layer that is not in the cache, as many layers a pass as memory allows."""
        missing = [layer for layer in self._inventory.layers if not self._slices.has(layer.address)]
        if not missing:
            return
        calibration = self._study.prune.calibration
        weighted: dict[str, Callable[[int], float]] = {}
        updater = find_updater(self._study.prune.methods[0])
        if updater.weighted_steps:
            denoiser = denoiser_of(self._pipeline)
            steps = StepWeight(self._calls_of_a_run(denoiser))
            weighted = {name: steps for name, module in self._modules.items() if module is denoiser}
        passes = hessian_passes(self._modules, missing, int(calibration.memory_gb * 1e9))
        for number, layers in enumerate(passes):
            logger.info("Hessians: pass %d of %d, %d layers", number + 1, len(passes), len(layers))
            hessians = self._attempt(partial(self._hessians, layers, weighted))
            for layer in layers:
                weight, hessian = weight_of(self._modules, layer).data, hessians.pop(layer.address)
                levels, note = solve(
                    updater, layer, weight, hessian, self._grid, calibration.damping, self._pattern
                )
                self._slices.put(layer.address, levels, note)

    def _hessians(
        self, layers: Sequence[Layer], weighted: Mapping[str, Callable[[int], float]]
    ) -> dict[str, Tensor]:
        with InputMoments(self._modules, layers, full=True, step_weight=weighted) as moments:
            self._run()
        return moments.collected()

    # --- the dense pipeline at work -------------------------------------------------------------------

    def _run(self) -> None:
        """Sample the calibration prompts through the whole denoising loop."""
        for start in range(0, len(self._prompts), self._batch):
            prompts = self._prompts[start : start + self._batch]
            call_pipeline(self._pipeline, prompts, [self._seed] * len(prompts), self._study.sampling)
            self.images += len(prompts)

    def _calls_of_a_run(self, denoiser: nn.Module) -> int:
        """How often sampling calls the denoiser: some schedulers call it more than once a step."""
        calls: list[Any] = []
        handle = denoiser.register_forward_pre_hook(lambda *_: calls.append(None))
        try:
            call_pipeline(self._pipeline, self._prompts[:1], [self._seed], self._study.sampling)
            self.images += 1
        finally:
            handle.remove()
        return len(calls)

    def _attempt(self, collect: Callable[[], _Found]) -> _Found:
        """What `collect` gives; a batch that does not fit is halved for good, and everything begun again."""
        while True:
            try:
                # Evaluations run in inference mode, whose tensors know no gradients.
                with torch.inference_mode(False), torch.no_grad():
                    return collect()
            except torch.OutOfMemoryError:
                if self._batch == 1:
                    raise
                self.notes.append(f"out of memory: calibration batch {self._batch} -> {self._batch // 2}")
                self._batch //= 2
                release_memory()


def _levels_key(base: str, study: Study, grid: LevelGrid, methods: Mapping[str, str], layer: Layer) -> str:
    """What a layer's bytes follow from; the file is the machine's, so other studies' must not be taken for it."""
    beside = {"variant", "config", "lora", "channels_last"}
    return content_key(
        "levels",
        base,
        study.model_dump(mode="json", include=beside, context={"every_field": True}),
        study.prune.calibration.calls,
        study.prune.pattern,
        methods[layer.component],
        layer.address,
        grid.removed_by_level(layer.address),
    )
