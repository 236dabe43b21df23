"""A study's pipeline, loaded, with the masks that bring it to an allocation and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.evaluation import checks
from raysense.evaluation.calibration import Calibration, with_method
from raysense.evaluation.identity import inventory_and_grid
from raysense.evaluation.inputs import device_of, identity_of_choice
from raysense.evaluation.memory import decode_in_slices, release_memory
from raysense.evaluation.method_selection import components_of, method_in_words
from raysense.evaluation.stepping import pruned_in
from raysense.pipelines.idle_modules import foreseen_for
from raysense.pipelines.load import compile_denoiser, load_for, modules_of
from raysense.pipelines.offload import place
from raysense.pipelines.sample import call_pipeline
from raysense.pipelines.text_cache import TextCache, room_for
from raysense.prompts.sets import PromptSets
from raysense.pruning.masks import Pruner
from raysense.store.disk import Disk
from raysense.study import Study
from raysense.study.sweep import by_component


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
        method: What chooses the weights that leave in place of the study's own; empty for that.
        by: The study with that in its place.
        steps: The part of the trajectory in which the denoiser is pruned; None for all of it.
        batch: Images sampled at a time; halved for good where they do not fit.
        notes: What departed from the plan in this evaluation.
        sampled: Images sampled in it.
    """

    def __init__(self, study: Study, directory: str, prompts: PromptSets) -> None:
        self.study, self.prompts, self.disk = study, prompts, Disk(directory)
        self.device = device_of(study)
        self.pipeline = load_for(study)
        self.inventory, self.grid = inventory_and_grid(study, self.pipeline.components)
        place(self.pipeline, study.offload, self.device)
        self.method, self.by = "", study
        self.steps: tuple[float, float] | None = None
        self.calibration = self._calibration()
        self.methods = self._methods()
        self._choices: dict[str, tuple[Study, Calibration, dict[str, str]]] = {}
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

    def _calibration(self) -> Calibration:
        return Calibration(
            self.by,
            self.pipeline,
            self.inventory,
            self.grid,
            self.prompts,
            self.disk,
            identity_of_choice(self.study),
        )

    def _methods(self) -> dict[str, str]:
        named = by_component(self.method)
        own = (self.study if named else self.by).prune.methods
        if len(own) > 1:
            return {}
        return {component: named.get(component, own[0]) for component in components_of(self.grid)}

    def prune_by(self, method: str) -> None:
        """Let a method other than the study's own choose the weights that leave; empty for the study's own."""
        if method == self.method:
            return
        self.give_up_masks()
        self._choices[self.method] = self.by, self.calibration, self.methods
        self.method = method
        if method in self._choices:
            self.by, self.calibration, self.methods = self._choices[method]
        else:
            self.by = with_method(self.study, method)
            self.calibration, self.methods = self._calibration(), self._methods()

    @property
    def pruned_as(self) -> tuple[str, Allocation, tuple[float, float] | None]:
        """All that the images follow from, prompts and noise aside."""
        return self.method, self.standing, self.steps

    def stepping(self) -> AbstractContextManager[None]:
        """While this is open, the denoiser is pruned only in the steps of `steps`, and dense in the others."""
        if self.steps is None or not self.standing:
            return nullcontext()
        return pruned_in(self.steps, self.pipeline, self.masker)

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
        """What prunes, in words: all methods that compete where nothing is pruned.

        The dense pipeline's rows are the same whether the choice between methods has been made or not.
        """
        return method_in_words(self.by.prune.methods, self.methods if allocation else {})

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
        own = tuple(item for item in self.standing.items() if item[0].startswith(prefix))
        return (self.method, *own) if own else ()
