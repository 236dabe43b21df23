"""`raysense doctor`: is this pipeline measured rightly? Everything that a study takes for granted, tried on it.

A few images with a few steps, no image network, no Ray. The pipeline is loaded, pruned, restored and exported as a
study would do it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from raysense.allocation import Allocation
from raysense.errors import RaysenseError
from raysense.evaluation import checks
from raysense.evaluation.checks import Finding, judged
from raysense.evaluation.live_pipeline import LivePipeline
from raysense.evaluation.rungs.probe import ProbeRung
from raysense.evaluation.scoring import weights_hash
from raysense.export.pack import compress, load_compressed
from raysense.metrics.builtin.probe_error import PROBE_ERROR
from raysense.metrics.builtin.text_error import TEXT_ERROR
from raysense.pipelines.adapter import NO_GUIDANCE, denoisers_of
from raysense.pipelines.idle_modules import foreseen_for, heads_of, idle_in
from raysense.pipelines.load import empty_components, load_pipeline, modules_of, notes_of
from raysense.pipelines.offload import at_rest
from raysense.pipelines.origin import Origin
from raysense.pipelines.sample import call_pipeline
from raysense.pipelines.without_weights import watched
from raysense.prompts.sets import Prompt, PromptSets
from raysense.pruning.layers import find_layers
from raysense.study import Study

SHARE = 0.5
"""How much of a component's weights leave in these checks."""

PROMPTS = tuple(Prompt(f"doctor-{n}", text) for n, text in enumerate(("a small cat", "two dogs")))


@dataclass(frozen=True)
class Diagnosis:
    """What `examine` found.

    Attributes:
        pipeline: Where the pipeline came from.
        kind: Its class.
        findings: One a check, in order.
    """

    pipeline: str
    kind: str
    findings: tuple[Finding, ...]

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.verdict != "wrong" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "pipeline": self.pipeline,
            "class": self.kind,
            "well": self.is_well,
            "findings": [asdict(finding) for finding in self.findings],
        }


def examine(study: Study, tell: Callable[[Finding], None] = lambda finding: None) -> Diagnosis:
    """Try everything that a study takes for granted on its pipeline.

    Args:
        study: Which pipeline, how it is sampled, which components are pruned. Its prompts and rungs do not matter.
        tell: Is told each finding as soon as it is there.

    Raises:
        RaysenseError: The pipeline is refused before anything is measured.
    """
    foreseen_for(study)
    small = {"probe": {"prompts": 2, "timesteps": 2}}
    study = study.model_copy(
        update={"rungs": study.rungs.model_validate({**study.rungs.model_dump(), **small})}
    )
    findings = []
    with tempfile.TemporaryDirectory(prefix="raysense-doctor-") as folder, torch.inference_mode():
        patient = _Patient(study, folder)
        for check in CHECKS:
            for finding in _answer(check, patient):
                findings.append(finding)
                tell(finding)
        kind = type(patient.live.pipeline).__name__
    return Diagnosis(study.pipeline, kind, tuple(findings))


def components_to_prune(origin: Origin) -> tuple[str, ...]:
    """What is studied of a pipeline if nobody says: its denoisers and text encoders, not what decodes images.

    Raises:
        RaysenseError: Its configuration cannot be read.
    """
    modules = empty_components(origin)
    chosen = []
    for name, module in modules.items():
        is_decoder = hasattr(module, "decode")
        if not is_decoder and "image" not in name and next(find_layers({name: module}), None) is not None:
            chosen.append(name)
    return tuple(chosen)


class _Patient:
    """A pipeline under examination, with what several checks need of it."""

    def __init__(self, study: Study, folder: str) -> None:
        self.study, self.folder = study, Path(folder)
        self.live = LivePipeline(study, str(self.folder / "store"), PromptSets(PROMPTS, PROMPTS))
        self.modules = modules_of(self.live.pipeline)
        self.probe = ProbeRung(self.live)
        self.foreseen = foreseen_for(study)

    def images(self, prompts: Sequence[Prompt], **sampling: Any) -> Tensor:
        """One image a prompt, each with the seed of its place in `PROMPTS`, all in one call."""
        chosen = self.study.sampling.model_copy(update=sampling)
        return call_pipeline(self.live.pipeline, prompts, [PROMPTS.index(p) for p in prompts], chosen)

    @cached_property
    def alone(self) -> Tensor:
        """The dense image of the first prompt."""
        self.live.stand_at(Allocation())
        return self.images(PROMPTS[:1])

    def pruned(self, components: Sequence[str]) -> Allocation:
        """Half the weights of some components gone."""
        grid = self.live.grid
        return Allocation(
            {a: grid.level_for(a, SHARE) for a in grid.addresses if a.partition(":")[0] in components}
        )

    def hashes(self) -> dict[str, str]:
        """Component -> hash of its weights."""
        with at_rest(self.live.pipeline):
            return {name: weights_hash(module) for name, module in self.modules.items()}

    @cached_property
    def encoders(self) -> frozenset[str]:
        """The components that turn texts into what the denoisers are told."""
        others = denoisers_of(self.live.pipeline)
        return frozenset(
            name
            for name, module in self.modules.items()
            if isinstance(module, PreTrainedModel) and name not in others
        )

    @cached_property
    def idle(self) -> frozenset[str]:
        return idle_in(self.modules, self.foreseen.order) - heads_of(self.modules)


Check = Callable[[_Patient], Iterator[Finding]]


def _answer(check: Check, patient: _Patient) -> Iterator[Finding]:
    """A check's findings; what it raises is wrong too."""
    try:
        yield from check(patient)
    except (
        RaysenseError,
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        AssertionError,
        OSError,
    ) as error:
        told = f"{type(error).__name__}: " if not isinstance(error, RaysenseError) else ""
        name = check.__name__.strip("_").replace("_", " ")
        yield Finding(name, "wrong", told + " ".join(str(error).split())[:300])


def _inventory(patient: _Patient) -> Iterator[Finding]:
    with at_rest(patient.live.pipeline):
        yield checks.same_parameters(empty_components(Origin.of(patient.study)), patient.modules)
    inventory = patient.live.inventory
    order = inventory.n_selected <= inventory.n_prunable <= inventory.n_components <= inventory.n_pipeline
    yield judged(
        "denominators",
        order,
        f"{inventory.n_selected:,} selected, {inventory.n_prunable:,} prunable, {inventory.n_components:,} in "
        f"{', '.join(patient.study.prune.components)}, {inventory.n_pipeline:,} in the pipeline",
    )


def _types(patient: _Patient) -> Iterator[Finding]:
    yield checks.types(patient.modules, patient.study.dtype)


def _idle_layers_and_cost(patient: _Patient) -> Iterator[Finding]:
    pipeline, foreseen = patient.live.pipeline, patient.foreseen
    with patient.live.watchable(), checks.traced(patient.modules) as ran, watched(pipeline) as watch:
        patient.images(PROMPTS[:1])
    if foreseen.why_not:
        told = f"unknown without a dry run ({foreseen.why_not}); what runs: "
        found = checks.layers_run(patient.live.inventory, (), ran)
        yield Finding(found.check, found.verdict, told + found.told)
    else:
        yield checks.layers_run(patient.live.inventory, patient.idle, ran)
    yield checks.cost((foreseen.cost.image, foreseen.cost.steps), (watch.nfe, watch.steps))


def _pixels(patient: _Patient) -> Iterator[Finding]:
    yield checks.pixels(patient.alone)


def _dense_probe(patient: _Patient) -> Iterator[Finding]:
    found = patient.probe.errors(Allocation())
    yield judged("dense probe", all(m.value == 0 for m in found.values()), _values(found))


def _pruned_probe(patient: _Patient) -> Iterator[Finding]:
    for component in patient.study.prune.components:
        allocation = patient.pruned([component])
        if not allocation:
            yield Finding(f"pruned probe: {component}", "not applicable", "too few weights for one step")
            continue
        found = patient.probe.errors(allocation)
        fine, told = found[PROBE_ERROR].value > 0, _values(found)
        if component in patient.encoders and not (TEXT_ERROR in found and found[TEXT_ERROR].value > 0):
            fine, told = False, f"{told}; {TEXT_ERROR} does not see this text encoder"
        yield judged(f"pruned probe: {component}", fine, told)


def _values(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {measure.value:.3g}" for name, measure in found.items())


def _batch(patient: _Patient) -> Iterator[Finding]:
    patient.live.stand_at(Allocation())
    if patient.study.sampling.batch == 1:
        yield Finding("batch", "not applicable", "`sampling.batch` is 1: every image is sampled alone")
        return
    allowed = checks.ROUNDING[patient.study.dtype]
    beside = patient.images(PROMPTS[:2])
    yield checks.alike("batch", patient.alone[0], beside[0], allowed, "an image alone and in a batch")
    study = patient.study
    yield checks.neighbours(patient.live.pipeline, study.sampling, study.dtype)


def _guidance(patient: _Patient) -> Iterator[Finding]:
    strength = patient.study.sampling.guidance
    if strength in NO_GUIDANCE:
        yield Finding("guidance", "not applicable", f"`sampling.guidance` is {strength:g}: none is run")
        return
    try:
        other = patient.images(PROMPTS[:1], guidance=strength + 2.0)
    except RaysenseError as error:
        yield judged("guidance", False, str(error))
        return
    effect = float((other - patient.alone).abs().max())
    yield judged("guidance", effect > 0, f"two more of it change pixels by {effect:.2g}")


def _masks(patient: _Patient) -> Iterator[Finding]:
    live = patient.live
    chosen = patient.study.prune.components
    before = patient.hashes()
    allocation = patient.pruned(chosen)
    live.stand_at(allocation)
    wanted = live.masker.count_zeros()
    images = patient.images(PROMPTS[:1])
    fine = not live.masker.rewrite_changed() and live.masker.count_zeros() == wanted
    yield judged("masks", fine, f"{wanted:,} zeros before sampling, {live.masker.count_zeros():,} after it")
    yield from _exports(patient, images)
    live.stand_at(Allocation())
    other = [name for name, value in patient.hashes().items() if value != before[name]]
    again = patient.images(PROMPTS[:1])
    fine = not other and torch.equal(again, patient.alone)
    yield judged(
        "dense restored", fine, f"changed: {', '.join(other)}" if other else "bit for bit, image too"
    )


def _exports(patient: _Patient, images: Tensor) -> Iterator[Finding]:
    """What is written, plain and compressed, and loaded again, makes the same images."""
    study, live = patient.study, patient.live
    plain, packed = patient.folder / "plain", patient.folder / "packed"
    with at_rest(live.pipeline):
        live.pipeline.save_pretrained(plain, safe_serialization=True)
    compress(plain, packed)
    allowed = 1e-6 if study.dtype == "float32" else checks.ROUNDING[study.dtype]
    for name, again in (
        ("export", load_pipeline(str(plain), dtype=study.dtype, device=live.device)),
        ("compressed export", load_compressed(packed, dtype=getattr(torch, study.dtype)).to(live.device)),
    ):
        again.set_progress_bar_config(disable=True)
        image = call_pipeline(again, PROMPTS[:1], [0], study.sampling)
        yield checks.alike(name, images, image, allowed, "before and after it is written")


def _memory(patient: _Patient) -> Iterator[Finding]:
    live = sum(p.nbytes for module in patient.modules.values() for p in module.parameters())
    grid = patient.live.grid
    element = torch.empty((), dtype=getattr(torch, patient.study.dtype)).element_size()
    master, levels = grid.n * element, grid.n
    names = ", ".join(denoisers_of(patient.live.pipeline))
    told = (
        f"{live / 1e9:.3g} GB of live weights, {master / 1e9:.3g} GB of a dense master, {levels / 1e9:.3g} GB of "
        f"levels, and what a batch of {patient.study.sampling.batch} takes in {names}"
    )
    yield Finding("memory", "ok", told)


def _notes(patient: _Patient) -> Iterator[Finding]:
    for note in notes_of(patient.live.pipeline):
        yield Finding("note", "ok", note)


CHECKS: tuple[Check, ...] = (
    _inventory,
    _types,
    _idle_layers_and_cost,
    _pixels,
    _dense_probe,
    _pruned_probe,
    _batch,
    _guidance,
    _masks,
    _memory,
    _notes,
)
"""In this order."""
