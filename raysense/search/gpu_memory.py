"""What of a study fits a GPU: the bytes of an evaluator's parts, and the largest batch for each `offload`.

Weights, master and levels are counted. What a batch takes is measured where an evaluator of the study measured it
(`raysense.evaluation.footprint`), else estimated: on the dry run without weights, as the bytes that the results of a
component's layers hold at a time. Workspaces of the GPU's libraries are in the one and not in the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from torch import nn

from raysense import names
from raysense.evaluation.calibration import needs_of
from raysense.evaluation.footprint import Footprint
from raysense.pipelines.without_weights import Foreseen
from raysense.pruning.layers import Inventory
from raysense.pruning.masks import fits_beside
from raysense.pruning.obs import hessian_bytes
from raysense.study import Study, bundled_scorer

GIB = 2**30
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
FREE = 0.1
"""Share of a GPU that is left for CUDA's own context and for memory between blocks: assumed, not measured."""


@dataclass(frozen=True)
class Needs:
    """Bytes of one evaluator.

    Attributes:
        weights: Component -> its live weights.
        largest: The largest module's own weights: what is there at a time under ``sequential``.
        master: The dense master.
        levels: A byte a selected weight; none for methods that update weights.
        learning: What calibration holds at a time, statistics or Hessians.
        judges: Network -> its weights; None where they are known only once loaded.
        image: Component -> activations of one image.
        measured: What was measured in its place, if it was.
    """

    weights: Mapping[str, int]
    largest: int
    master: int
    levels: int
    learning: int
    judges: Mapping[str, int | None]
    image: Mapping[str, int]
    measured: Footprint | None = None

    @property
    def known_judges(self) -> int:
        """Bytes of the judges that are known."""
        return sum(size or 0 for size in self.judges.values())

    @property
    def an_image(self) -> int:
        """Bytes that an image takes beside the weights."""
        return self.measured.image if self.measured else max(self.image.values(), default=0)


@dataclass(frozen=True)
class Fit:
    """Whether a study fits a GPU under one `offload`.

    Attributes:
        offload: Which.
        resting: Bytes on the GPU beside activations.
        batch: The largest batch; 0 where not even one image fits.
        told: Where the dense master lies, or why nothing fits.
    """

    offload: str
    resting: int
    batch: int
    told: str


def needs(
    study: Study,
    inventory: Inventory,
    empty: Mapping[str, nn.Module],
    foreseen: Foreseen,
    measured: Footprint | None = None,
) -> Needs:
    """The bytes of an evaluator's parts.

    Args:
        study: The study.
        inventory: Its layers.
        empty: The pipeline's components, without weights.
        foreseen: Of the dry run.
        measured: What an evaluator measured.
    """
    width = BYTES[study.dtype]
    weights = {
        name: width * sum({id(p): p.numel() for p in module.parameters()}.values())
        for name, module in empty.items()
    }
    largest = max(
        (
            width * sum(p.numel() for p in part.parameters(recurse=False))
            for module in empty.values()
            for part in module.modules()
        ),
        default=0,
    )
    return Needs(
        weights,
        largest,
        inventory.n_selected * width,
        0 if study.prune.updates else inventory.n_selected,
        _learning(study, inventory, empty),
        judges(study),
        {name: size * width // 4 for name, size in foreseen.activations.items()},
        measured,
    )


def _learning(study: Study, inventory: Inventory, empty: Mapping[str, nn.Module]) -> int:
    """Bytes of what calibration holds at a time; moments of inputs are a number a column and not counted."""
    wanted, most = needs_of(study), 0
    if "gradients" in wanted:
        most = 4 * inventory.n_selected
    if "hessians" in wanted:
        every = sum(
            hessian_bytes(one, empty[one.component].get_submodule(one.path)) for one in inventory.layers
        )
        most = max(most, min(every, int(study.prune.calibration.memory_gb * 1e9)))
    return most


def judges(study: Study) -> dict[str, int | None]:
    """Network that judges images -> bytes of its weights, float32; None where only loading it tells."""
    from raysense.metrics import features  # torch-fidelity and open_clip take their time

    clip, extractor = study.metrics.clip, study.metrics.features.extractor
    model = f"{names.LOCAL}{bundled_scorer()}" if clip.model == names.BUNDLED else clip.model
    return {"CLIP": features.ClipFeatures.weights_bytes(model), extractor: features.weights_bytes(extractor)}


def fits(need: Needs, gpu: int) -> list[Fit]:
    """What fits a GPU of so many bytes, for each `offload`."""
    room = int((1 - FREE) * gpu)
    every, one = sum(need.weights.values()), max(need.weights.values(), default=0)
    beside = fits_beside(need.master, gpu - every)
    found = []
    for offload in get_args(names.Offload):
        resting, told = {
            "none": (
                every + need.levels + need.master * beside,
                "beside the weights" if beside else "in the host's memory",
            ),
            "model": (one, "in the host's memory, levels too"),
            "sequential": (need.largest, "in the host's memory, levels too"),
        }[offload]
        resting += need.known_judges
        # What is learned is learned before there are a master and levels.
        learning = (every if offload == "none" else resting) + need.learning
        left = room - max(resting, learning)
        batch = left // need.an_image if need.an_image else 0
        found.append(Fit(offload, max(resting, learning), max(0, int(batch)), told))
    return found


def in_words(study: Study, need: Needs) -> Iterator[str]:
    """The parts of an evaluator, a line each."""
    every = sum(need.weights.values())
    yield (
        f"Memory of an evaluator, GiB: weights {_gib(every)} ({study.dtype}: {_listed(need.weights)}); dense master "
        f"{_gib(need.master)}; levels, one byte a selected weight, {_gib(need.levels)}; calibration, at a time, "
        f"{_gib(need.learning)}; judges: {_listed(need.judges)}."
    )
    if need.measured:
        yield (
            f"An image takes {_gib(need.an_image)} GiB beside that, measured by an evaluator on {need.measured.device} "
            f"in a batch of {need.measured.batch}."
        )
    elif need.image:
        yield (
            f"An image takes {_gib(need.an_image)} GiB beside that, estimated without weights: the results of layers "
            f"that are held at a time ({_listed(need.image)}). Workspaces of the GPU's libraries are not in it."
        )
    else:
        yield "What an image takes beside that is not known: there was no dry run without weights."


def verdicts(study: Study, need: Needs, gpu: int) -> Iterator[str]:
    """Whether the study fits, for each `offload`, a line each; the study's own is marked."""
    for fit in fits(need, gpu):
        mine = " (the study's)" if fit.offload == study.offload else ""
        yield f"offload: {fit.offload}{mine}: {_verdict(study, need, gpu, fit)}"
    yield f"Of the GPU {FREE:.0%} is left for CUDA's own needs in this: assumed, not measured."


def _verdict(study: Study, need: Needs, gpu: int, fit: Fit) -> str:
    whole, before = f"{_gib(gpu)} GiB", f"{_gib(fit.resting)} GiB before an image is made"
    kind = "measured" if need.measured else "estimated"
    if fit.resting > (1 - FREE) * gpu:
        return f"does not fit {whole}: {before}"
    if not need.an_image:
        return f"fits {whole} with {before}; the largest batch is not known"
    if not fit.batch:
        return f"does not fit {whole}: {before}, and one takes {_gib(need.an_image)} ({kind})"
    wanted = study.sampling.batch
    fewer = f", fewer than `sampling.batch` {wanted}" if fit.batch < wanted else ""
    return (
        f"fits {whole}, batches of up to {fit.batch:,} ({kind}{fewer}); {before}, the dense master {fit.told}"
    )


def _listed(sizes: Mapping[str, int | None]) -> str:
    return ", ".join(
        f"{name} {'known once it is loaded' if size is None else _gib(size)}" for name, size in sizes.items()
    )


def _gib(size: float) -> str:
    """GiB with three digits."""
    return f"{size / GIB:.3g}"
