"""The resident evaluator: holds the pipeline, answers task after task, changes masks and nothing else."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from raysense import plugins
from raysense.allocation import Allocation, LevelGrid
from raysense.errors import RaysenseError
from raysense.evaluation.cache import Blobs
from raysense.evaluation.calibration import Calibration
from raysense.evaluation.inputs import (
    device_in_words,
    inputs_of,
    stored_prompts,
    taken_away,
    versions,
)
from raysense.evaluation.memory import release_memory
from raysense.evaluation.method_selection import as_measures, components_of, hold_contest, winners
from raysense.evaluation.rungs.layer import LayerOutputs
from raysense.evaluation.rungs.probe import EXTRACTOR, Probe
from raysense.evaluation.scoring import DISTANCES, Judged, Judges, Reference, joined, measure
from raysense.evaluation.shards import REFERENCE_SEEDS, is_kept, ranges_of, reference_rung
from raysense.hashing import content_key
from raysense.metrics import frechet
from raysense.metrics.intervals import Estimate, mean_interval
from raysense.names import OWL, UPDATING
from raysense.pipelines.load import compile_denoiser, load_pipeline, modules_of, notes_of
from raysense.pipelines.sample import call_pipeline, first_seed, metered, refuse_other_scale
from raysense.pipelines.text_cache import TextCache, cut_off
from raysense.prompts.sets import Prompt, PromptSets, load_prompts
from raysense.pruning.layers import Inventory, take_inventory
from raysense.pruning.masks import Pruner
from raysense.pruning.patterns import Pattern, pattern_grid
from raysense.records import (
    CALIBRATION,
    OUTLIERS,
    PART,
    Evaluation,
    Measure,
    Part,
    Task,
)
from raysense.store.disk import Disk
from raysense.store.store import contents_differ
from raysense.study import ImageRung, Study, parse

logger = logging.getLogger(__name__)

Pairs = tuple[list[Prompt], list[int]]
"""Prompts and, for each, a seed."""

Work = TypeVar("Work")

_FIRST_REFERENCE_SEED = 1_000_000
_SEEDS_A_DRAW = 1_000


class Evaluator:
    """Measures allocations of one pipeline.

    Args:
        study: The study.
        directory: The study's store; dense references are cached beside it.
        threads: CPU threads for torch; None leaves torch's own choice.
        prompts: The study's prompts; None to read them from where the study says.

    Attributes:
        inventory: The selected layers and the denominators.
        grid: Their levels.
        calibration: What the study's method learns from the dense pipeline.
        pipeline: The live pipeline.
        texts: Text embeddings that were computed.
    """

    def __init__(
        self,
        study: Study,
        directory: str,
        threads: int | None = None,
        prompts: PromptSets | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.study = study
        self.device = "cuda" if study.cluster.gpus_per_evaluator > 0 else "cpu"
        self.pipeline = load_pipeline(
            study.pipeline,
            revision=study.revision,
            dtype=study.dtype,
            device=self.device,
            channels_last=study.channels_last,
        )
        self.inventory, self.grid = inventory_and_grid(study, self.pipeline.components)
        self.prompts = prompts or load_prompts(study.prompts)
        self._blobs = Blobs(Disk(directory))
        self.calibration = Calibration(
            study,
            self.pipeline,
            self.inventory,
            self.grid,
            self.prompts,
            Disk(directory),
            content_key(taken_away(study), versions(), self.device),
        )
        self._ran_on = {
            "device": device_in_words(self.device),
            "versions": " ".join(f"{name} {version}" for name, version in versions().items()),
        }
        self._masker: Pruner | None = None
        names = study.prune.methods
        self._methods = dict.fromkeys(components_of(self.grid), names[0]) if len(names) == 1 else {}
        self._batch = study.sampling.batch
        self._notes: list[str] = []
        self._sampled = 0
        self._moved = False
        self._probes: list[Probe] = []
        self._known: dict[str, dict[str, Tensor]] = {}
        self._dense_sets: dict[str, Judged] = {}
        self._references: dict[tuple[str, int], Reference] = {}
        self._layers: LayerOutputs | None = None
        self._seen: tuple[Allocation, dict[tuple[str, int], tuple[Judged, int]]] = (Allocation(), {})
        self.texts = TextCache(self.pipeline, self._state)
        if study.compile:
            compile_denoiser(self.pipeline)

    @cached_property
    def _judges(self) -> Judges:
        """Loaded when the first image is judged: an export needs none."""
        return Judges(self.study, self.device)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What the study is measured on, by content."""
        return inputs_of(self.study, self.prompts, self._judges, self.device)

    @cached_property
    def signature(self) -> str:
        """What every key starts from."""
        return signature(self.study, self.grid, self.inputs)

    @cached_property
    def _dense_identity(self) -> str:
        return dense_identity(self.study, self.inputs)

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

    @property
    def masker(self) -> Pruner:
        """Holds the dense master; restores it exactly. Made when first needed: its method may have to learn."""
        if self._masker is None:
            self._methods = self._choose_methods()
            with self._watchable():
                self._masker = self.calibration.pruner(self._methods)
            if self._masker.place == "mapped":
                self._notes.append(self._masker.described)
        return self._masker

    @property
    def saliency(self) -> str:
        """What prunes: ``wanda``; where methods compete, each component's, or all before that is decided."""
        names = self.study.prune.methods
        if len(names) == 1:
            return names[0]
        if not self._methods:
            return " or ".join(names)
        return ", ".join(f"{component}: {name}" for component, name in self._methods.items())

    def stand_at(self, allocation: Allocation) -> None:
        """Bring the pipeline to an allocation; it stands at the dense one from the start."""
        if allocation or self._masker is not None:
            self.masker.apply(allocation)

    @property
    def _standing(self) -> Allocation:
        return Allocation() if self._masker is None else self._masker.current

    @contextmanager
    def _watchable(self) -> Iterator[None]:
        """While this is open, hooks on the layers inside text encoders and denoiser see every call."""
        with self.texts.bypassed(), torch.compiler.set_stance("force_eager"):
            yield

    @torch.inference_mode()
    def evaluate(self, task: Task) -> Evaluation:
        """Measure one allocation on one rung.

        The pipeline is left at the task's allocation; the next task changes only what differs.
        """
        began = time.perf_counter()
        self._notes, self._sampled, self._moved = [], 0, False
        samples: Sequence[Mapping[str, Any]] = ()
        collapsed = ""
        with metered(self.pipeline) as meter:
            if task.rung == CALIBRATION:
                measures = self._calibrated()
                self._sampled = self.calibration.images
            elif task.rung == "probe":
                measures = self._probed(task.allocation)
            elif task.rung == "layer":
                measures, forwards = self._layered(task.allocation)
                meter.forwards += forwards
            elif task.rung == PART and task.part is not None:
                measures = {}
                self._part(task.allocation, task.part, task.draw)
                self.stand_at(task.allocation)  # for its zeros, should the part have been there
            else:
                pairs = self._pairs(task.rung, task.draw)
                dense = self._dense(task.rung, task.draw)
                reference = self._reference(task.rung, task.draw, dense)
                pruned = self._pruned(task.allocation, task.rung, task.draw)
                self.stand_at(task.allocation)
                collapsed = pruned.collapsed
                if not task.allocation:
                    self._notes += notes_of(self.pipeline)
                    self._notes += self._cut_off([p.text for p in pairs[0]])
                measures, values = self._judges.compare(pairs[0], pruned, dense, reference)
                samples = _sample_rows(pairs, values)
        return Evaluation(
            key=task.key(self.signature),
            question="",
            stage="",
            allocation=task.allocation.key,
            rung=task.rung,
            draw=task.draw,
            measures=measures,
            zeros=self.inventory.zeros_before if self._masker is None else self._masker.count_zeros(),
            images=self._sampled,
            cost=meter.forwards,
            seconds=time.perf_counter() - began,
            collapsed=collapsed,
            method=" ".join(part for part in (self.saliency, self.study.prune.pattern) if part),
            notes="; ".join(note for note in (*self._notes, self.calibration.noted(task.allocation)) if note),
            samples=samples,
            **self._ran_on,
        )

    def _cut_off(self, texts: Sequence[str]) -> list[str]:
        """Who reads only the beginning of how many prompts, a sentence each."""
        readers = {"the CLIP model": len(self._judges.truncated(texts))}
        readers |= {
            f"the pipeline's `{name}`": n
            for name, n in cut_off(self.pipeline, list(dict.fromkeys(texts))).items()
        }
        return [
            f"{count} prompts are longer than {reader} reads" for reader, count in readers.items() if count
        ]

    def sample(self, allocation: Allocation, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Tensor:
        """Images of an allocation: float32 (n, 3, height, width) in [0, 1], on the CPU."""
        self.stand_at(allocation)
        pairs = (list(prompts), list(seeds))
        with torch.inference_mode():
            return torch.cat(
                [images for _, images in self._batches(pairs, range(len(prompts)), _as_they_are)]
            )

    def _state(self, component: str) -> Any:
        """What a component's weights are determined by: its own part of the allocation."""
        prefix = f"{component}:"
        return tuple(item for item in self._standing.items() if item[0].startswith(prefix))

    def forget(self) -> None:
        """Drop what was kept of the last climb, so that the next evaluation samples all of its images."""
        self._seen = (Allocation(), {})

    # --- learning -------------------------------------------------------------------------------------

    def _calibrated(self) -> dict[str, Measure]:
        """Learn what the study's method needs; gives the outlier ratios where the study allocates by them."""
        self.stand_at(Allocation())
        with self._watchable():
            self.calibration.learn()
        names, measures = self.study.prune.methods, dict[str, Measure]()
        if len(names) > 1:
            self._methods = self._choose_methods()
            measures = as_measures(names, self.grid, self._contest())
        self._notes += self.calibration.notes
        if OWL not in self.study.search.strategies:
            return measures
        n = len(self.prompts.search[: self.study.prune.calibration.prompts])
        return measures | {
            OUTLIERS + address: Measure(ratio, ratio, ratio, n, "inputs of the dense layer")
            for address, ratio in self.calibration.outliers().items()
        }

    def _choose_methods(self) -> dict[str, str]:
        """Component -> the method that prunes it."""
        return self._methods or winners(self.study.prune.methods, self._contest())

    def _contest(self) -> dict[str, Tensor]:
        """The contest between the study's methods: from the cache, or held now; the pipeline is dense afterwards."""

        def hold() -> dict[str, Tensor]:
            try:
                # Text embeddings are remembered by allocation, and here several methods share one.
                with torch.inference_mode(), self.texts.bypassed():
                    return hold_contest(self.study.prune.methods, self.grid, self._contend)
            finally:
                self._leave()

        return self._remembered(content_key("contest", self.signature), hold)

    def _contend(self, method: str) -> Callable[[Allocation], Measure]:
        """Let one method prune everything; gives what measures its allocations."""
        self._leave()
        with self._watchable():
            self._masker = self.calibration.pruner(dict.fromkeys(components_of(self.grid), method))
        return lambda allocation: self._probed(allocation)["probe_error"]

    def _leave(self) -> None:
        """Give up the masks, one byte a weight and a master, for others'; the pipeline is dense."""
        if self._masker is not None:
            self._masker.restore()
            self._masker = None

    # --- the probe ------------------------------------------------------------------------------------

    def _probed(self, allocation: Allocation) -> dict[str, Measure]:
        while True:
            try:
                if not self._probes:
                    self.stand_at(Allocation())
                    self._probes = self._make_probes()
                self.stand_at(allocation)
                found = [probe.errors() for probe in self._probes]
                if self._has_moved():
                    continue
                break
            except torch.OutOfMemoryError:
                self._probes = []
                self._halve()
        tuples = sum(probe.tuples for probe in self._probes)
        return {
            name: measure(mean_interval(torch.cat([errors[name] for errors in found]).numpy()), what, n=n)
            for name, what, n in (
                ("probe_error", EXTRACTOR, tuples),
                ("text_error", "text embeddings", None),
            )
            if all(name in errors for errors in found)
        }

    def _make_probes(self) -> list[Probe]:
        """One probe for as many prompts as fit into a batch."""
        rung, study, modules = self.study.rungs.probe, self.study, modules_of(self.pipeline)
        prompts = self.prompts.of("probe", rung.prompts)
        return [
            Probe(
                self.pipeline,
                prompts[start : start + self._batch],
                [self._seed(0, 0)] * len(prompts[start : start + self._batch]),
                study.sampling,
                rung.timesteps,
                decodes=any(hasattr(modules[name], "decode") for name in study.prune.components),
                tilt=rung.tilt,
            )
            for start in range(0, len(prompts), self._batch)
        ]

    def _layered(self, allocation: Allocation) -> tuple[dict[str, Measure], int]:
        """Error of the layers' own outputs, and what it cost in denoiser sample-forwards, by share of weights."""
        rung, study = self.study.rungs.layer, self.study
        if self._layers is None:
            self.stand_at(Allocation())
            prompts = self.prompts.of("layer", rung.prompts)
            with self._watchable():
                self._layers = LayerOutputs(
                    self.pipeline,
                    self.inventory,
                    prompts,
                    [self._seed(0, 0)] * len(prompts),
                    study.sampling,
                    rung.timesteps,
                )
        self.stand_at(allocation)
        pruned = {a for host in allocation for a in self.grid.members(host)}
        errors = self._layers.errors(pruned)
        share = sum(layer.n for layer in self.inventory.layers if layer.address in pruned) / self.grid.n
        return {"layer_error": measure(mean_interval(errors.numpy()), "layer outputs")}, math.ceil(
            share * self._layers.forwards
        )

    # --- images ---------------------------------------------------------------------------------------

    def _rung(self, name: str) -> ImageRung:
        rung = getattr(self.study.rungs, name, None)
        if not isinstance(rung, ImageRung):
            raise RaysenseError(
                f"`rungs` has no rung {name!r}; there are layer, probe, preview, score and validation"
            )
        return rung

    def _seed(self, draw: int, number: int) -> int:
        return first_seed(self.study.seed) + draw * _SEEDS_A_DRAW + number

    def _pairs(self, name: str, draw: int) -> Pairs:
        rung = self._rung(name)
        prompts = self.prompts.of(name, rung.prompts)
        # Seed by seed, so that a rung with fewer seeds is a prefix of one with more.
        seeds = [self._seed(draw, number) for number in range(rung.seeds) for _ in prompts]
        return list(prompts) * rung.seeds, seeds

    def _reference_pairs(self, name: str) -> Pairs:
        """Seeds that no evaluation uses."""
        largest = reference_rung(name)
        prompts = self.prompts.of(largest, self._rung(largest).prompts)
        seeds = [self._seed(0, _FIRST_REFERENCE_SEED + i) for i in range(REFERENCE_SEEDS) for _ in prompts]
        return list(prompts) * REFERENCE_SEEDS, seeds

    def _dense(self, name: str, draw: int) -> Judged:
        """The dense pipeline on the same prompts and seeds; sampled once a study."""
        return self._sampled_once("dense", self._pairs(name, draw), ranges_of(self.study, name), name, draw)

    def _dense_reference(self, name: str) -> Judged:
        """What distributions are compared with, unless the study brings images of its own."""
        parts = ranges_of(self.study, reference_rung(name), reference=True)
        return self._sampled_once("reference", self._reference_pairs(name), parts)

    def _pruned(self, allocation: Allocation, name: str, draw: int) -> Judged:
        """The pruned pipeline on a rung's prompts and seeds; what was sampled in parts comes from the cache."""
        if not allocation:
            return self._dense(name, draw)
        parts = ranges_of(self.study, name)
        return joined([self._pruned_part(allocation, name, draw, chosen) for chosen in parts])

    def _pruned_part(self, allocation: Allocation, name: str, draw: int, chosen: range) -> Judged:
        """Some of a rung's images."""
        pairs, dense = self._pairs(name, draw), self._dense(name, draw)

        def sample() -> Judged:
            self.stand_at(allocation)
            return self._judge(pairs, chosen, dense, name, draw)

        if not is_kept(self.study, name):
            return sample()
        some = _some(pairs, chosen)
        key = content_key("part", self.signature, allocation.key, [p.id for p in some[0]], some[1])
        return self._cached(key, sample)

    def _part(self, allocation: Allocation, part: Part, draw: int) -> None:
        """Sample a part of a set of images into the cache."""
        chosen = ranges_of(self.study, part.rung, part.reference)[part.number]
        if part.reference:
            self._dense_part("reference", self._reference_pairs(part.rung), chosen, "", 0)
        elif not allocation:
            self._dense_part("dense", self._pairs(part.rung, draw), chosen, part.rung, draw)
        else:
            self._pruned_part(allocation, part.rung, draw, chosen)

    def _reference(self, name: str, draw: int, dense: Judged) -> Reference:
        """What distribution metrics compare with, and the dense pipeline's own distances to it."""
        if (name, draw) not in self._references:
            self._references[name, draw] = self._make_reference(name, draw, dense)
        return self._references[name, draw]

    def _make_reference(self, name: str, draw: int, dense: Judged) -> Reference:
        judges, external = self._judges, self._judges.external
        features: Mapping[str, Tensor] = {}
        if external.is_saved:
            gaussian = judges.saved_reference()
        else:
            if external.path is None:
                features = self._dense_reference(name).features
            else:
                features = self._remembered(
                    external_key(self.inputs, judges, dense.size),
                    lambda: judges.external_features(dense.size),
                )
            gaussian = frechet.statistics(features["frechet"])
        metrics = [metric for metric in DISTANCES if metric in judges.measured]

        def estimate() -> dict[str, Tensor]:
            found = {metric: judges.estimate(metric, dense, features, gaussian) for metric in metrics}
            tensors = {}
            for metric, estimate in found.items():
                tensors[f"{metric}/value"] = torch.tensor(estimate.value, dtype=torch.float64)
                tensors[f"{metric}/influence"] = torch.from_numpy(estimate.influence)
                if estimate.joint is not None:
                    tensors[f"{metric}/joint"] = torch.from_numpy(estimate.joint)
            return tensors

        key = content_key("distances", self.signature, name, draw, metrics)
        stored = self._remembered(key, estimate)
        distances = {
            metric: Estimate(
                float(stored[f"{metric}/value"]),
                stored[f"{metric}/influence"].numpy(),
                stored[f"{metric}/joint"].numpy() if f"{metric}/joint" in stored else None,
            )
            for metric in metrics
        }
        return Reference(gaussian, features, distances)

    def _sampled_once(
        self, what: str, pairs: Pairs, parts: Sequence[range], rung: str = "", draw: int = 0
    ) -> Judged:
        """A set of dense images from memory, from the cache, or made now, part by part."""
        key = self._dense_key(what, pairs)
        if key not in self._dense_sets:
            self._dense_sets[key] = joined(
                [self._dense_part(what, pairs, chosen, rung, draw) for chosen in parts]
            )
        return self._dense_sets[key]

    def _dense_part(self, what: str, pairs: Pairs, chosen: range, rung: str, draw: int) -> Judged:
        def sample() -> Judged:
            self.stand_at(Allocation())
            judged = self._judge(pairs, chosen, None, rung, draw)
            if judged.collapsed:
                raise RaysenseError(
                    f"`pipeline`: the dense pipeline's own images are broken ({judged.collapsed}); check `dtype`, "
                    "`sampling.steps` and the weights"
                )
            return judged

        return self._cached(self._dense_key(what, _some(pairs, chosen)), sample)

    def _cached(self, key: str, sample: Callable[[], Judged]) -> Judged:
        """Some images' features from the cache, or sampled now and put there."""
        stored = self._blobs.get(key)
        if stored is not None:
            return Judged.from_tensors(stored)
        judged = sample()
        self._blobs.put(key, judged.to_tensors())
        return judged

    def _dense_key(self, what: str, pairs: Pairs) -> str:
        # Not under the study's signature: studies of one pipeline that share a folder share its dense images.
        return content_key(what, self._dense_identity, [(p.id, p.text) for p in pairs[0]], pairs[1])

    def _remembered(self, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors from memory, from the cache, or made now, whichever comes first."""
        if key not in self._known:
            stored = self._blobs.get(key)
            if stored is None:
                stored = make()
                self._blobs.put(key, stored)
            self._known[key] = stored
        return self._known[key]

    def _judge(
        self, pairs: Pairs, wanted: Sequence[int], dense: Judged | None, rung: str, draw: int
    ) -> Judged:
        """Sample the wanted ones of some pairs, which ascend, and extract features batch by batch.

        Images of the preview rung are judged apart from the others, in batches of their own: a candidate that
        climbs from preview to score is not sampled twice, and what it gets there is the same to the bit as
        without the preview.
        """
        prompts, seeds = pairs
        names = [(prompt.id, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        current = self._standing
        if self._seen[0] != current:
            self._seen = (current, {})
        seen = self._seen[1]
        first = set()
        if rung in ("preview", "score"):
            previewed = self._pairs("preview", draw)
            first = {(prompt.id, seed) for prompt, seed in zip(*previewed, strict=True)}
        parts: list[Judged] = []
        order: list[int] = []
        for chosen in (
            [i for i in wanted if names[i] in first],
            [i for i in wanted if names[i] not in first],
        ):
            if chosen and all(names[i] in seen for i in chosen):
                parts += [seen[names[i]][0].rows([seen[names[i]][1]]) for i in chosen]
                order += chosen
                continue

            def judge(images: Tensor, indices: Sequence[int]) -> Judged:
                against = None if dense is None or not len(dense.images) else dense.images[list(indices)]
                return self._judges.judge(images, [prompts[i] for i in indices], against)

            for indices, judged in self._batches(pairs, chosen, judge):
                parts.append(judged)
                order += indices
                if first and names[indices[0]] in first:
                    seen.update({names[i]: (judged, row) for row, i in enumerate(indices)})
        places = sorted(range(len(order)), key=order.__getitem__)
        return joined(parts).rows(places)

    def _batches(
        self, pairs: Pairs, chosen: Sequence[int], work: Callable[[Tensor, Sequence[int]], Work]
    ) -> Iterator[tuple[list[int], Work]]:
        """Sample the chosen pairs a batch at a time and work on the images; what does not fit is halved for good."""
        prompts, seeds = pairs
        start = 0
        while start < len(chosen):
            indices = list(chosen[start : start + self._batch])
            try:
                images = call_pipeline(
                    self.pipeline,
                    [prompts[i] for i in indices],
                    [seeds[i] for i in indices],
                    self.study.sampling,
                )
                if self._has_moved():
                    continue  # sampled with weights that nobody asked for
                if not self._standing:
                    refuse_other_scale(self.pipeline, images)
                done = work(images, indices)
            except torch.OutOfMemoryError:
                self._halve()
                continue
            self._sampled += len(indices)
            yield indices, done
            start += len(indices)

    def _has_moved(self) -> bool:
        """Whether the weights were not those of the allocation; they are now, and what was sampled does not count.

        Raises:
            RaysenseError: Not for the first time.
        """
        if self._masker is None or not (changed := self._masker.rewrite_changed()):
            return False
        if self._moved:
            raise RaysenseError(
                f"`pipeline`: sampling changes the weights of {len(changed)} pruned layers ({changed[0]} …) again and "
                "again, so that what is sampled is not what is counted; leave their component out of `prune.components`"
            )
        self._moved = True
        self._notes.append(f"sampled anew: the weights of {len(changed)} layers had been changed")
        return True

    def _halve(self) -> None:
        """Go on with half the batch after running out of memory, and record it.

        Raises:
            torch.OutOfMemoryError: A batch of one does not fit either; to be called while handling the error.
        """
        if self._batch == 1:
            raise
        self._notes.append(f"out of memory: batch {self._batch} -> {self._batch // 2}")
        self._batch //= 2
        release_memory()


def _some(pairs: Pairs, chosen: range) -> Pairs:
    return pairs[0][chosen.start : chosen.stop], pairs[1][chosen.start : chosen.stop]


def inventory_and_grid(study: Study, components: Mapping[str, object]) -> tuple[Inventory, LevelGrid]:
    """The layers that `study` selects from `components`, and their levels."""
    inventory = take_inventory(
        components,
        select=study.prune.components,
        include=study.prune.include,
        exclude=study.prune.exclude,
        kinds=study.prune.kinds,
    )
    if study.prune.pattern:
        return inventory, pattern_grid(inventory, Pattern.parse(study.prune.pattern))
    if study.prune.saliency in UPDATING:
        return inventory, LevelGrid(inventory.sizes, study.prune.cap, study.prune.calibration.levels)
    return inventory, LevelGrid(inventory.sizes, study.prune.cap)


def dense_identity(study: Study, inputs: Mapping[str, Any]) -> str:
    """What the dense pipeline's images and their features follow from, prompts and seeds aside."""
    return content_key(
        {name: content for name, content in inputs.items() if name not in ("prompts", "reference")},
        study.dtype,
        study.channels_last,
        study.compile,
        study.sampling.model_dump(),
        sorted(study.metrics.custom.items()),
        study.measured(),
        study.seed,
    )


def signature(study: Study, grid: LevelGrid, inputs: Mapping[str, Any]) -> str:
    """What every key of the study's evaluations starts from: whatever changes a value changes it."""
    return content_key(study.identity(), inputs, grid.signature())


def external_key(inputs: Mapping[str, Any], judges: Judges, size: int) -> str:
    """The cache's name for the features of a study's own reference images."""
    decides = {name: inputs[name] for name in ("judges", "reference", "plugins", "versions", "device")}
    return content_key("external", decides, judges.identity, judges.external.limit, size)


def build(
    study: Mapping[str, Any],
    directory: str,
    threads: int | None = None,
    expected: Mapping[str, Any] | None = None,
    code: Mapping[str, Any] | None = None,
) -> Evaluator:
    """An evaluator from plain data, as a worker receives it.

    Args:
        study: The study's definition.
        directory: Its store.
        threads: See `Evaluator`.
        expected: What the driver's `inputs_of` gave; None for no comparison.
        code: What the driver's `plugins.packed` gave.
    """
    plugins.unpack(code or {})
    known = None if expected is None else stored_prompts(Disk(directory), expected["prompts"])
    evaluator = Evaluator(parse(study), directory, threads, known)
    if expected is not None:
        evaluator.expect(expected)
    return evaluator


def _as_they_are(images: Tensor, indices: Sequence[int]) -> Tensor:
    return images


def _sample_rows(pairs: Pairs, values: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    columns = {name: value.tolist() for name, value in values.items()}
    return [
        {
            "prompt_id": prompt.id,
            "prompt": prompt.text,
            "seed": seed,
            **{name: column[row] for name, column in columns.items()},
        }
        for row, (prompt, seed) in enumerate(zip(*pairs, strict=True))
    ]
