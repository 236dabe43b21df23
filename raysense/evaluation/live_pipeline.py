"""A study's pipeline, loaded, with the masks that bring it to an allocation and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.evaluation import checks
from raysense.evaluation.calibration import Calibration
from raysense.evaluation.identity import inventory_and_grid
from raysense.evaluation.inputs import taken_away, versions
from raysense.evaluation.memory import decode_in_slices, release_memory
from raysense.evaluation.method_selection import components_of
from raysense.hashing import content_key
from raysense.pipelines.idle_modules import foreseen_for
from raysense.pipelines.load import compile_denoiser, load_for, modules_of
from raysense.pipelines.offload import place
from raysense.pipelines.sample import call_pipeline
from raysense.pipelines.text_cache import TextCache, room_for
from raysense.prompts.sets import PromptSets
from raysense.pruning.layers import count_zeros, weight_of
from raysense.pruning.masks import Pruner
from raysense.store.disk import Disk
from raysense.study import Study


class LivePipeline:
    """The pipeline that all rungs measure, one after another; the masks change and nothing else.

    Args:
        study: The study.
        directory: Its store; what calibration finds is cached there.
        prompts: Its prompts.

    Attributes:
        study: See above.
        prompts: See above.
        disk: Where the store is.
        device: Where the pipeline is.
        pipeline: The pipeline.
        inventory: The selected layers and the denominators.
        grid: Their levels.
        calibration: What the study's method learns from the dense pipeline.
        texts: Text embeddings that were computed.
        methods: Component -> the method that prunes it; empty while that is not decided.
        select_methods: Decides `methods`, where several compete.
        batch: Images sampled at a time; halved for good where they do not fit.
        notes: What departed from the plan in this evaluation.
        sampled: Images sampled in it.
    """

    def __init__(self, study: Study, directory: str, prompts: PromptSets) -> None:
        self.study, self.prompts, self.disk = study, prompts, Disk(directory)
        self.device = "cuda" if study.cluster.gpus_per_evaluator > 0 else "cpu"
        self.pipeline = load_for(study)
        self.inventory, self.grid = inventory_and_grid(study, self.pipeline.components)
        place(self.pipeline, study.offload, self.device)
        self.calibration = Calibration(
            study,
            self.pipeline,
            self.inventory,
            self.grid,
            prompts,
            self.disk,
            content_key(taken_away(study), versions(), self.device),
        )
        names = study.prune.methods
        self.methods = dict.fromkeys(components_of(self.grid), names[0]) if len(names) == 1 else {}
        self.select_methods: Callable[[], dict[str, str]] = dict
        self.batch = study.sampling.batch
        self._masker: Pruner | None = None
        self.begin()
        self._refuse_what_is_measured_wrongly()
        self.texts = TextCache(self.pipeline, self._state, room_for(torch.device(self.device)))
        decode_in_slices(self.pipeline, lambda text: self.notes.append(text))
        if study.compile:
            compile_denoiser(self.pipeline)

    @torch.inference_mode()
    def _refuse_what_is_measured_wrongly(self) -> None:
        """The cheap ones of `raysense.evaluation.checks`, as far as the dry run left them open.

        Raises:
            RaysenseError: The pipeline would be measured wrongly.
        """
        foreseen, study = foreseen_for(self.study), self.study
        try:
            if foreseen.why_not or study.offload != "none":  # some code uses weights that nobody brought
                with checks.traced(modules_of(self.pipeline)) as ran:
                    call_pipeline(self.pipeline, [checks.SHORT], [0], study.sampling)
                checks.refuse(checks.layers_run(self.inventory, (), ran))
            if foreseen.pads and study.sampling.batch > 1:
                checks.refuse(checks.neighbours(self.pipeline, study.sampling, study.dtype))
        except (RaysenseError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the pipeline's own code raises
            raise RaysenseError(
                f"`pipeline`: `{study.pipeline}` could be loaded, but not sampled ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:300]}); check its configuration files, or `sampling`: some make one "
                "image at a time (`sampling.batch: 1`)"
            ) from error

    def begin(self) -> None:
        """A new evaluation begins."""
        self.notes: list[str] = []
        self.sampled = 0
        self._moved = False

    @property
    def masker(self) -> Pruner:
        """Holds the dense master; restores it exactly. Made when first needed: its method may have to learn."""
        if self._masker is None:
            self.methods = self.methods or self.select_methods()
            masker = self.prune_with(self.methods)
            if masker.place == "mapped":
                self.notes.append(masker.described)
            return masker
        return self._masker

    def prune_with(self, methods: Mapping[str, str]) -> Pruner:
        """Let these methods choose the weights that leave: component -> method."""
        self.give_up_masks()
        with self.watchable():
            self._masker = self.calibration.pruner(methods)
        return self._masker

    def prune_for_good(self, allocation: Allocation) -> int:
        """Bring the pipeline to an allocation once and for all, without a dense master; the zeros, counted."""
        self.methods = self.methods or self.select_methods()
        self.give_up_masks()
        with self.watchable():
            self.calibration.prune_for_good(self.methods, allocation)
        modules = modules_of(self.pipeline)
        return sum(count_zeros(weight_of(modules, layer)) for layer in self.inventory.layers)

    def give_up_masks(self) -> None:
        """Give up the masks, one byte a weight and a master, for others'; the pipeline is dense."""
        if self._masker is not None:
            self._masker.restore()
            self._masker = None

    def stand_at(self, allocation: Allocation) -> None:
        """Bring the pipeline to an allocation; it stands at the dense one from the start."""
        if allocation or self._masker is not None:
            self.masker.apply(allocation)

    @property
    def standing(self) -> Allocation:
        """The allocation that the pipeline stands at."""
        return Allocation() if self._masker is None else self._masker.current

    @property
    def zeros(self) -> int:
        """Zeros among the selected layers' weights, counted."""
        return self.inventory.zeros_before if self._masker is None else self._masker.count_zeros()

    def saliency(self, allocation: Allocation) -> str:
        """What prunes: ``wanda``; where methods compete, each component's, or all where nothing is pruned.

        The dense pipeline's rows are the same whether the choice between methods has been made or not.
        """
        names = self.study.prune.methods
        if len(names) == 1:
            return names[0]
        if not allocation or not self.methods:
            return " or ".join(names)
        return ", ".join(f"{component}: {name}" for component, name in self.methods.items())

    @contextmanager
    def watchable(self) -> Iterator[None]:
        """While this is open, hooks on the layers inside text encoders and denoiser see every call."""
        with self.texts.bypassed(), torch.compiler.set_stance("force_eager"):
            yield

    def has_moved(self) -> bool:
        """Whether the weights were not those of the allocation; they are now, and what was sampled does not count.

        Raises:
            RaysenseError: Not for the first time in this evaluation.
        """
        if self._masker is None or not (changed := self._masker.rewrite_changed()):
            return False
        if self._moved:
            raise RaysenseError(
                f"`pipeline`: sampling changes the weights of {len(changed)} pruned layers ({changed[0]} …) again and "
                "again, so that what is sampled is not what is counted; leave their component out of `prune.components`"
            )
        self._moved = True
        self.notes.append(f"sampled anew: the weights of {len(changed)} layers had been changed")
        return True

    def halve_batch(self) -> None:
        """Go on with half the batch after running out of memory, and record it.

        Raises:
            torch.OutOfMemoryError: A batch of one does not fit either; to be called while handling the error.
        """
        if self.batch == 1:
            raise
        self.notes.append(f"out of memory: batch {self.batch} -> {self.batch // 2}")
        self.batch //= 2
        release_memory()

    def _state(self, component: str) -> Any:
        """What a component's weights are determined by: its own part of the allocation."""
        prefix = f"{component}:"
        return tuple(item for item in self.standing.items() if item[0].startswith(prefix))
